"""Shards as others write them: what is read of them as documents, and what becomes of damaged ones."""

from __future__ import annotations

import io
import json
import os
import tarfile
import tracemalloc
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from racm3 import Document, Image, read_folder
from racm3.errors import ConfigError
from racm3.evaluation.pairs import read_pairs
from racm3.interfaces import Encoder
from racm3.memories.faiss import FaissMemory
from racm3.memories.shards import export_memory


def png(colour: str) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (8, 8), colour).save(buffer, "PNG")
    return buffer.getvalue()


def write(shard: Path, files: Mapping[str, bytes]) -> Path:
    with tarfile.open(shard, "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return shard


def said(**values: object) -> bytes:
    return json.dumps(values).encode()


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    folder = tmp_path / "shards"
    folder.mkdir()
    described = said(
        caption="not this one", url="https://a/1", entity="kite", width=8, exif="{}", similarity=float("nan")
    )
    write(folder / "00000.tar", {"0001.png": png("red"), "0001.txt": b" a red kite\n", "0001.json": described,
                                 "0002.JPG": png("grey"), "0002.json": said(caption="a whale", entity="whale")})  # fmt: skip
    write(
        folder / "00001.tar", {"a/b/1.png": png("blue"), "a/b/2.png": b"no picture", "a/b/3.txt": b"no picture at all"}
    )
    return folder


@pytest.fixture
def skipped() -> list[str]:
    return []


def texts(path: Path, skipped: list[str]) -> list[str]:
    return [document.text for document in read_folder(path, on_skip=lambda where, error: skipped.append(where))]


def test_documents_of_a_folder_a_shard_and_a_pattern(shards: Path, skipped):
    steps: list[tuple[int, int, str]] = []
    documents = list(
        read_folder(shards, on_skip=lambda where, error: skipped.append(where), progress=lambda *s: steps.append(s))
    )
    kite, whale, blue = documents
    assert (kite.id, kite.text, dict(kite.metadata)) == (
        "shards/00000.tar/0001",
        "a red kite",
        {"url": "https://a/1", "entity": "kite"},
    )
    assert (whale.text, dict(whale.metadata)) == ("a whale", {"entity": "whale"})
    assert (blue.id, blue.texts, len(blue.images)) == ("shards/00001.tar/a/b/1", (), 1)
    assert skipped == ["shards/00001.tar/a/b/2", "shards/00001.tar/a/b/3"]
    assert steps[0] == (1, 0, "shards/00000.tar/0001") and len(steps) == 5
    assert texts(shards / "00000.tar", skipped) == texts(shards / "0000[0].tar", skipped) == ["a red kite", "a whale"]
    with pytest.raises(ConfigError, match="There are no shards"):
        read_folder(shards / "9*.tar")


def test_shards_beside_pictures_are_told_of(shards: Path, skipped):
    (shards / "one.png").write_bytes(png("red"))
    assert texts(shards, skipped) == [""] and skipped == ["00000.tar", "00001.tar"]


def test_pairs_and_an_exported_memory(shards: Path, tmp_path: Path):
    pairs = read_pairs(shards / "00000.tar", entity="entity")
    assert [(pair.caption, pair.entity) for pair in pairs] == [("a red kite", "kite"), ("a whale", "whale")]
    memory = FaissMemory()
    memory.bind(Encoder("shards", 2))
    picture = Image(PIL.Image.new("RGB", (8, 8), "red"))
    memory.add(
        [Document(["a kite", picture], id="k", metadata={"entity": "kite", "status": "kept"})],
        np.array([[1, 0]], np.float32),
    )
    export_memory(memory, tmp_path / "out")
    (document,) = read_folder(tmp_path / "out")
    assert (document.id, document.text, dict(document.metadata)) == (
        "k",
        "a kite",
        {"entity": "kite", "status": "kept"},
    )


def test_of_a_damaged_shard_what_comes_before_the_last_sample_is_read(shards: Path, skipped):
    path = shards / "00000.tar"
    whole = path.read_bytes()
    last, size = whole.index(b"0002.json"), len(whole.rstrip(b"\0"))
    # In the last file; its header; the mark at the end.
    for damaged in (whole[: last + 530], whole[:last] + b"\xff" + whole[last + 1 :], whole[: -(-size // 512) * 512]):
        skipped.clear()
        path.write_bytes(damaged)
        assert texts(path, skipped) == ["a red kite"] and skipped == ["shards/00000.tar"]
    first = whole.index(b"0001.txt")  # no picture is taken for one without a caption
    path.write_bytes(whole[:first] + b"\xff" + whole[first + 1 :])
    assert texts(path, skipped) == []
    path.write_bytes(b"torn" * 300)
    assert texts(path, skipped) == []


def forged(path: Path, name: bytes, size: bytes) -> None:
    """Give a file of a shard another size, under a right checksum."""
    data = bytearray(path.read_bytes())
    at = data.index(name)
    data[at + 124 : at + 136] = size
    data[at + 148 : at + 156] = b" " * 8
    data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    path.write_bytes(data)


def test_a_size_below_zero_does_not_lead_back(tmp_path: Path, skipped):
    path = write(tmp_path / "0.tar", {"1.png": png("red"), "2.png": png("blue"), "3.png": png("grey")})
    forged(path, b"2.png", (256**12 - 1536).to_bytes(12))
    assert texts(path, skipped) == [] and skipped == [f"{tmp_path.name}/0.tar"]


def test_what_is_wrong_with_one_sample_does_not_cost_the_others(tmp_path: Path, skipped, monkeypatch):
    monkeypatch.setattr("racm3.collection.MAX_BYTES", 1000)
    path = write(tmp_path / "0.tar", {"1.png": png("red"), "1.txt": b"x" * 1001, "2.png": png("red"), "2.txt": b"two"})
    with tarfile.open(path, "a") as tar:
        for name, kind in (("3.png", tarfile.LNKTYPE), ("4.png", tarfile.SYMTYPE)):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, "1.png"
            tar.addfile(link)
        for name, data in (
            ("5.png", png("blue")),
            ("5.png", png("red")),
            ("6.png", png("red")),
            ("6.txt", b"\xef\xbb\xbfsix"),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    assert texts(path, skipped) == ["two", "six"]
    assert [where.rpartition("/")[2] for where in skipped] == ["1", "3", "4", "5"]


def test_what_no_document_can_hold_is_left_out_of_the_metadata(tmp_path: Path):
    odd = b'{"boxes": [[0.1, 0.2]], "$schema": 1, "": 2, "big": 1e999, "half": "\\ud800", "tags": ["a"], "year": 2021}'
    path = write(tmp_path / "0.tar", {"1.png": png("red"), "1.txt": b"red", "1.json": odd})
    (document,) = read_folder(path, on_skip=lambda where, error: pytest.fail(f"{where}: {error}"))
    assert dict(document.metadata) == {"tags": ["a"], "year": 2021}


def test_two_sets_whose_shards_have_the_same_names_have_other_ids(tmp_path: Path):
    for name in ("cats", "dogs [2021]"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "00000.tar", {"1.png": png("red")})
        (tmp_path / name / ".hidden.tar").write_bytes(b"")
    os.mkfifo(tmp_path / "cats" / "pipe.tar")
    apart = [document.id for name in ("cats", "dogs [2021]") for document in read_folder(tmp_path / name)]
    assert apart == ["cats/00000.tar/1", "dogs [2021]/00000.tar/1"]
    together = [document.id for document in read_folder(tmp_path / "*" / "00000.tar")]
    assert together == [f"{tmp_path.name}/{id}" for id in apart]


def test_what_a_callback_raises_is_not_taken_for_damage(shards: Path):
    def fail(*step: object) -> None:
        raise BrokenPipeError("nobody listens")

    with pytest.raises(BrokenPipeError):
        list(read_folder(shards, progress=fail))


def test_a_file_name_is_never_a_command(tmp_path: Path, monkeypatch, skipped):
    monkeypatch.chdir(tmp_path)
    os.rename(write(tmp_path / "x.tar", {"1.png": png("red"), "1.txt": b"red"}), "pipe:touch run;.tar")
    assert texts(Path("*.tar"), skipped) == texts(Path("."), skipped) == ["red"]
    assert not (tmp_path / "run").exists()


def test_no_room_is_made_for_more_than_the_file_has(tmp_path: Path, skipped):
    path = write(tmp_path / "0.tar", {"1.png": png("red"), "2.png": png("blue")})
    forged(path, b"2.png", b"%011o\0" % 2**25)  # below the limit of a picture
    tracemalloc.start()
    try:
        assert texts(path, skipped) == [""] and skipped == [f"{tmp_path.name}/0.tar"]
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()
