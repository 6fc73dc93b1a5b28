"""A memory that moves: out as webdataset shards, and into any other memory, the same in every bit."""

from __future__ import annotations

import io
import json
import os
import signal
import tarfile

import numpy as np
import pytest

from racm3.document import Document, Image
from racm3.errors import EncoderMismatch, MemoryCorrupt, MemoryStoreError
from racm3.interfaces import Encoder
from racm3.memories import shards as shards_module
from racm3.memories import snapshot
from racm3.memories.checksum import json_checksum
from racm3.memories.faiss import FaissMemory
from racm3.memories.journal import Journal
from racm3.memories.shards import Export, export_memory, import_memory

DIM = 8
ENCODER = Encoder("encoder", DIM)


def unit(seed, n):
    vectors = np.random.default_rng(seed).standard_normal((n, DIM)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def picture(seed):
    return np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)


def jpeg(seed):
    buffer = io.BytesIO()
    Image(picture(seed)).picture.save(buffer, "JPEG")
    return buffer.getvalue()


DOCUMENTS = [
    Document(["a red kite", Image(picture(0))], id="kites/red.png", metadata={"tags": ["a", None, 1.5], "n": 2**70}),
    Document([Image(jpeg(1)), "between", Image(picture(2)), "after"], id="d.o.t.s"),
    Document("text alone \ud800 \0 ☃", id="\udcff", metadata={"ключ": True}),
    Document(Image(picture(3))),
    Document([Image(b"no picture, but stored so"), ""], id="strange"),
    *[Document([f"number {n}", Image(picture(n))], id=f"d{n}", metadata={"n": n}) for n in range(10, 40)],
]
VECTORS = unit(0, len(DOCUMENTS))


@pytest.fixture
def memory():
    with FaissMemory() as memory:
        memory.bind(ENCODER)
        memory.add(DOCUMENTS, VECTORS)
        yield memory


@pytest.fixture
def shards(memory, tmp_path):
    """An export of several shards."""
    assert len(export_memory(memory, tmp_path / "shards", shard_bytes=30_000).shards) > 3
    return tmp_path / "shards"


def assert_same(memory):
    items = list(memory.items())
    assert [document for document, _ in items] == DOCUMENTS
    assert [image.data for document, _ in items for image in document.images] == [
        image.data for document in DOCUMENTS for image in document.images
    ]
    assert np.array_equal([vector for _, vector in items], VECTORS)


def test_a_memory_goes_out_and_in_unchanged(shards, tmp_path):
    told = []
    with FaissMemory(tmp_path / "other") as other:
        assert import_memory(shards, other, progress=lambda *said: told.append(said)) == {}
        assert other.encoder == ENCODER
        assert_same(other)
    assert told[-1] == (len(DOCUMENTS), len(DOCUMENTS), "import")
    assert sorted(path.name for path in shards.iterdir())[:2] == ["export.json", "shard-000000.tar"]


def test_a_memory_moves_to_chroma_and_back(shards, tmp_path):
    chroma = pytest.importorskip("racm3_chroma.memory")
    with chroma.ChromaMemory(tmp_path / "chroma") as other:
        import_memory(shards, other)
        export_memory(other, tmp_path / "back")
    with FaissMemory() as memory:
        import_memory(tmp_path / "back", memory)
        assert_same(memory)


def test_other_programs_read_the_shards(shards):
    webdataset = pytest.importorskip("webdataset")
    names = sorted(str(path) for path in shards.glob("*.tar"))
    samples = list(webdataset.WebDataset(names, shardshuffle=False))
    assert [json.loads(sample["json"])["id"] for sample in samples] == [document.id for document in DOCUMENTS]
    assert samples[1]["jpg"] == DOCUMENTS[1].images[0].data and samples[1]["txt"] == b"between after"
    assert np.array_equal(np.load(io.BytesIO(samples[1]["npy"])), VECTORS[1])


def test_an_import_that_was_stopped_goes_on(shards, tmp_path):
    class Stop(Exception):
        pass

    def stop(done, total, what):
        raise Stop

    with FaissMemory(tmp_path / "other") as other:
        Export(shards).check()
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("racm3.memories.shards.BATCH", 7)
            with pytest.raises(Stop):
                import_memory(shards, other, progress=stop)
        assert len(other) == 7
        import_memory(shards, other)
        assert_same(other)
        with pytest.raises(MemoryStoreError, match="already stored"):
            import_memory(shards, other, on_duplicate="error")


def test_an_import_into_a_memory_of_another_encoder_is_refused(shards):
    with FaissMemory() as other:
        other.bind(Encoder("another", DIM))
        with pytest.raises(EncoderMismatch, match=r"filled by encoder another .*not by encoder"):
            import_memory(shards, other)
        assert len(other) == 0


def flip(path, place=700):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (flip, "it does not match its checksum"),
        (lambda path: path.write_bytes(path.read_bytes()[:9000]), "it does not match its checksum"),
        (lambda path: path.unlink(), "No such file"),
    ],
)
def test_broken_shards_are_named_before_anything_is_imported(shards, damage, why):
    damage(shards / "shard-000001.tar")
    whole = Export(shards).shards
    with FaissMemory() as other:
        with pytest.raises(MemoryCorrupt, match=f"1 of {len(whole)} shards are broken. shard-000001.tar: {why}"):
            import_memory(shards, other)
        assert len(other) == 0 and other.encoder is None
        broken = import_memory(shards, other, skip_broken=True)
        assert list(broken) == ["shard-000001.tar"]
        assert len(other) == len(DOCUMENTS) - whole[1].documents


@pytest.mark.parametrize("place", range(0, 400, 37))
def test_a_flipped_bit_of_the_manifest_is_found(shards, place):
    flip(shards / "export.json", place)
    with pytest.raises(MemoryStoreError):
        Export(shards)


@pytest.mark.parametrize("dim", [0, -1, 2**31, 2**70, float("inf"), None, "wide"])
def test_a_width_that_no_vector_has_is_refused(shards, dim):
    """The checksum says nothing about who wrote it."""
    said = json.loads((shards / "export.json").read_text())
    said["encoder"]["dim"] = dim
    said["checksum"] = json_checksum(said)
    (shards / "export.json").write_text(json.dumps(said))
    with pytest.raises(MemoryCorrupt):
        Export(shards)


def test_a_shard_whose_name_is_none_is_refused(shards):
    said = json.loads((shards / "export.json").read_text())
    said["shards"][0]["name"] = "shard\0.tar"
    said["checksum"] = json_checksum(said)
    (shards / "export.json").write_text(json.dumps(said))
    with pytest.raises(MemoryCorrupt):
        Export(shards)


def test_half_an_export_is_refused_and_begun_anew(memory, tmp_path, monkeypatch):
    folder, fsyncs = tmp_path / "shards", []

    def full(descriptor):
        fsyncs.append(descriptor)
        if len(fsyncs) > 8:
            raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(MemoryStoreError, match=r"cannot be written .*No space left.* export again"):
            export_memory(memory, folder, shard_bytes=30_000)
    assert list(folder.glob("*.tar")) and not list(folder.glob(".shard*"))
    with pytest.raises(MemoryStoreError, match="was not finished"):
        Export(folder)
    memory.delete([document.id for document in DOCUMENTS[3:]])
    export_memory(memory, folder)
    assert [path.name for path in folder.glob("*.tar")] == ["shard-000000.tar"]  # none of the first attempt
    assert [document for document, _ in Export(folder).items()] == DOCUMENTS[:3]


def killed(work, *, at, patched):
    """Do work in another process, which is killed as it enters a function for the n-th time; False if it never does."""
    child = os.fork()
    if child == 0:
        try:
            owner, name = patched
            function, calls = getattr(owner, name), []

            def kill(*arguments, **options):
                calls.append(name)
                if len(calls) == at:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*arguments, **options)

            setattr(owner, name, kill)
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@forks
def test_an_export_that_was_killed_is_begun_anew_and_says_so(tmp_path, caplog):
    with FaissMemory(tmp_path / "memory") as memory:
        memory.bind(ENCODER)
        memory.add(DOCUMENTS, VECTORS)

    def export():
        with FaissMemory(tmp_path / "memory", read_only=True) as memory:
            export_memory(memory, tmp_path / "shards", shard_bytes=30_000)

    for name, at in [
        ("_write_manifest", 1),  # before the folder says whose it is
        ("_write", 3),
        ("publish", 2),  # the first shard, after the manifest
        ("_write", 30),
        ("publish", 4),
        ("_write_manifest", 1),  # when all shards are there
    ]:
        assert killed(export, at=at, patched=(shards_module, name)), (name, at)
        with pytest.raises(MemoryStoreError, match=r"was not finished|no export"):
            Export(tmp_path / "shards")
    export()
    assert caplog.messages == [f"The export at {tmp_path / 'shards'} was not finished; it is begun anew."]
    assert not list((tmp_path / "shards").glob(".*"))
    with FaissMemory() as other:
        import_memory(tmp_path / "shards", other)
        assert_same(other)


@forks
@pytest.mark.parametrize(
    ("patched", "at", "stored"),
    [
        ((Journal, "_store_fields"), 2, 7),
        ((FaissMemory, "add"), 3, 14),
        ((FaissMemory, "flush"), 1, len(DOCUMENTS)),
        ((snapshot, "publish"), 2, len(DOCUMENTS)),
    ],
    ids=["in a transaction", "between two", "before the index is written", "as the index is written"],
)
def test_an_import_that_was_killed_goes_on_with_nothing_twice(shards, tmp_path, monkeypatch, patched, at, stored):
    monkeypatch.setattr(shards_module, "BATCH", 7)

    def load():
        with FaissMemory(tmp_path / "other") as other:
            import_memory(shards, other)

    assert killed(load, at=at, patched=patched)
    with FaissMemory(tmp_path / "other") as other:
        assert len(other) == stored
    load()
    with FaissMemory(tmp_path / "other") as other:
        assert_same(other)
        assert other.verify() == []


def test_an_export_overwrites_nothing(memory, shards, tmp_path):
    with pytest.raises(MemoryStoreError, match="holds an export already"):
        export_memory(memory, shards)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "shard-000000.tar").write_bytes(b"")
    with pytest.raises(MemoryStoreError, match="not an empty folder"):
        export_memory(memory, tmp_path / "theirs")
    with pytest.raises(MemoryStoreError, match="no export of a memory"):
        Export(tmp_path / "theirs")
    with FaissMemory() as unbound, pytest.raises(MemoryStoreError, match="not bound"):
        export_memory(unbound, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_an_empty_memory_can_be_exported(tmp_path):
    with FaissMemory() as memory, FaissMemory() as other:
        memory.bind(ENCODER)
        assert len(export_memory(memory, tmp_path / "shards")) == 0
        import_memory(tmp_path / "shards", other)
        assert (len(other), other.encoder) == (0, ENCODER)


# Shards whose checksums are right, made to do harm


def forged(folder, files):
    """The export of one document, with other files under its key."""
    with FaissMemory() as memory:
        memory.bind(ENCODER)
        memory.add(DOCUMENTS[:1], VECTORS[:1])
        export_memory(memory, folder)
    shard = folder / "shard-000000.tar"
    with tarfile.open(shard) as tar:
        members = {member.name.partition(".")[2]: tar.extractfile(member).read() for member in tar}
    with tarfile.open(shard, "w") as tar:
        for suffix, data in {**members, **files}.items():
            member = data if isinstance(data, tarfile.TarInfo) else tarfile.TarInfo(f"0.{suffix}")
            if not isinstance(data, tarfile.TarInfo):
                member.size = len(data)
            tar.addfile(member, None if isinstance(data, tarfile.TarInfo) else io.BytesIO(data))
    export = Export(folder)
    export._broken = {}  # as if its checksum had been forged, too
    return export


def link(name):
    member = tarfile.TarInfo("0.png")
    member.type, member.linkname = tarfile.SYMTYPE, name
    return member


def sized(size):
    member = tarfile.TarInfo("0.npy")
    member.size = size
    return member


def array(shape, dtype="<f4", data=b""):
    header = repr({"descr": dtype, "fortran_order": False, "shape": shape}).encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


@pytest.mark.parametrize(
    "files",
    [
        {"json": b"{"},
        {"json": b"[" * 100_000},
        {"json": b"[]"},
        {"json": json.dumps({"id": "a", "metadata": {}, "parts": [{"image": "../x", "hash": ""}]}).encode()},
        {"json": json.dumps({"id": "a", "metadata": {"a": {}}, "parts": [{"text": "a"}]}).encode()},
        {"json": json.dumps({"id": 7, "metadata": {}, "parts": [{"text": "a"}]}).encode()},
        {"json": json.dumps({"id": "a", "metadata": {}, "parts": []}).encode()},
        {"png": DOCUMENTS[3].images[0].data},  # another picture than its hash names
        {"png": b""},
        {"png": link("/etc/passwd")},
        {"npy": b""},
        {"npy": sized(-512)},
        {"npy": sized(2**62)},
        {"npy": b"PK\x03\x04"},
        {"npy": array((DIM,), "|O", b"cos\nsystem\n")},
        {"npy": array((10**15,))},
        {"npy": b"\x93NUMPY\x01\x00\x0a\x00{'descr': ("},
        {"npy": array((DIM,), data=b"short")},
        {"npy": array((DIM,), data=b"\0" * 4 * DIM)},  # not of unit norm
    ],
)
def test_what_a_shard_holds_is_checked(tmp_path, files):
    with FaissMemory() as other:
        with pytest.raises(MemoryStoreError):
            import_memory(forged(tmp_path, files), other)
        assert len(other) == 0
