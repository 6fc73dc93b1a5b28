"""The index stays in step with the journal, and is a cache: whatever becomes of it, searches are answered, and rightly."""

from __future__ import annotations

import errno
import shutil

import numpy as np
import pytest

from racm3.document import Document
from racm3.errors import MemoryStoreError
from racm3.interfaces import Encoder
from racm3.memories import index, kept_index, snapshot
from racm3.memories.faiss import FaissMemory

DIM = 8
ENCODER = Encoder("e", DIM)


def unit(seed, n):
    vectors = np.random.default_rng(seed).standard_normal((n, DIM)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def texts(n, start=0, text="text"):
    return [Document(f"{text} {i}", id=f"d{i}") for i in range(start, start + n)]


def filled(folder, seed=0, text="text"):
    """An open memory of 300 documents, with its snapshot."""
    memory = FaissMemory(folder)
    memory.bind(ENCODER)
    memory.add(texts(300, text=text), unit(seed, 300))
    memory.flush()
    return memory


def assert_finds(memory, seed, n, start=0):
    """Each of so many documents is the nearest to its own vector, and is what it was."""
    for place, (hit,) in enumerate(memory.search(unit(seed, n), k=1)):
        assert (hit.id, hit.document.text) == (f"d{start + place}", f"text {start + place}")


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("name", ["joined", "_numbers_of", "Segment"])
def test_a_search_that_is_interrupted_leaves_no_torn_index(tmp_path, monkeypatch, interruption, name):
    def interrupted(*arguments, **options):
        raise interruption

    with filled(tmp_path) as memory:
        memory.search(unit(0, 1), k=1)
        memory.add(texts(300, 300), unit(1, 300))
        memory.search(unit(0, 1), k=1)
        memory.add(texts(300, 600), unit(2, 300))
        with monkeypatch.context() as patched:
            patched.setattr(index, name, interrupted)
            if name == "_numbers_of":  # only of an index that is made
                memory._kept.index = None
            with pytest.raises(interruption):
                memory.search(unit(0, 1), k=1)
        assert_finds(memory, 0, 300)
        assert_finds(memory, 2, 300, 600)
        memory.flush()
        assert memory.verify() == []


def test_an_interruption_between_rows_and_their_numbers_is_one(tmp_path, monkeypatch):
    with filled(tmp_path) as memory:
        memory.search(unit(0, 1), k=1)
        memory.add(texts(300, 300), unit(1, 300))
        concatenate = np.concatenate

        def interrupted(arrays, *rest, **options):
            if len(arrays) == 2 and arrays[0] is memory._kept.index.seqs:
                raise KeyboardInterrupt
            return concatenate(arrays, *rest, **options)

        with monkeypatch.context() as patched:
            patched.setattr(index.np, "concatenate", interrupted)
            with pytest.raises(KeyboardInterrupt):
                memory.search(unit(0, 1), k=1)
        assert_finds(memory, 1, 300, 300)
        memory.flush()
        assert memory.verify() == []


def test_many_deletions_leave_a_memory_that_can_be_saved_whatever_its_index(tmp_path, caplog):
    with filled(tmp_path) as memory:
        memory.reindex("IVF100,Flat")
        memory.delete([f"d{i}" for i in range(50, 300)])
        memory.flush()
        memory.compact()
        assert snapshot.saved_state(tmp_path) == (300, 1) and memory.verify() == []
        assert_finds(memory, 0, 50)
        memory.add(texts(250, 50), unit(0, 300)[50:])
        memory.flush()
        assert memory._kept.index.kind == "IVF100,Flat"
    assert "without a snapshot" not in caplog.text


@pytest.mark.parametrize("place", [3, 200])
def test_compacting_mends_what_verify_says_of_the_snapshot(tmp_path, place):
    filled(tmp_path).close()
    path = tmp_path / "index.json"
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    with FaissMemory(tmp_path) as memory:
        assert memory.verify() == ["The snapshot of the index is damaged; compacting the memory builds it anew."]
        memory.compact()
        assert memory.verify() == []
        assert_finds(memory, 0, 300)
    assert snapshot.load(tmp_path, DIM) is not None


def test_a_snapshot_of_which_a_file_cannot_be_opened_now_is_left_where_it_is(tmp_path, monkeypatch, caplog):
    filled(tmp_path).close()

    def refused(*arguments):
        raise OSError(errno.EMFILE, "Too many open files")

    before = (tmp_path / "index.json").read_bytes()
    with FaissMemory(tmp_path) as memory, monkeypatch.context() as patched:
        patched.setattr(snapshot, "mapped", refused)
        assert_finds(memory, 0, 300)
        assert "Too many open files" in caplog.text and (tmp_path / "index.json").read_bytes() == before


@pytest.mark.parametrize("name", ["_loaded", "sha256_of"])
def test_a_snapshot_that_is_replaced_meanwhile_is_not_taken_for_damaged(tmp_path, monkeypatch, caplog, name):
    filled(tmp_path).close()
    (before,) = tmp_path.glob("vectors-*")
    read = getattr(snapshot, name)

    def slow(*arguments):
        if before.exists():
            with FaissMemory(tmp_path) as writer:
                monkeypatch.setattr(snapshot, name, read)
                writer.add(texts(300, 300), unit(1, 300))
                writer.delete(["d299"])  # which the reader still sees
            assert not before.exists()
        return read(*arguments)

    with FaissMemory(tmp_path, read_only=True) as memory:
        monkeypatch.setattr(snapshot, name, slow)
        if name == "_loaded":
            assert_finds(memory, 0, 299)  # it began before the writer did
            assert_finds(memory, 1, 300, 300)
        else:
            assert not snapshot.damaged(tmp_path)
    assert not before.exists() and not caplog.messages


@pytest.mark.parametrize("documents", [300, 200])
def test_the_index_of_another_memory_is_not_believed(tmp_path, caplog, documents):
    filled(tmp_path / "ours").close()
    filled(tmp_path / "other", seed=5, text="another").close()
    if documents < 300:
        with FaissMemory(tmp_path / "ours") as memory:
            memory.delete([f"d{i}" for i in range(documents, 300)])
    shutil.copy(tmp_path / "ours" / "memory.db", tmp_path / "other" / "memory.db")
    for _ in range(2):
        with FaissMemory(tmp_path / "other") as memory:
            assert_finds(memory, 0, documents)
            assert memory.verify() == []
    assert sum("is of another memory" in message for message in caplog.messages) == 1


def test_a_damaged_document_does_not_make_its_index_another_memorys(tmp_path, caplog):
    filled(tmp_path).close()
    with FaissMemory(tmp_path) as memory:
        with memory._journal.writing():
            memory._journal.connection.execute("UPDATE documents SET vector = x'00' WHERE seq = 300")
        assert len(memory.search(unit(0, 1), k=300)[0]) == 300
    assert not caplog.messages


def test_a_search_is_answered_when_its_index_cannot_be_written_on_the_way(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(kept_index, "HELD", 100)
    with FaissMemory(tmp_path) as memory:
        memory.bind(ENCODER)
        memory.add(texts(1500), unit(0, 1500))

        def full(*arguments, **options):
            raise MemoryStoreError("The disk is full.")

        with monkeypatch.context() as patched:
            patched.setattr(snapshot, "spill", full)
            assert_finds(memory, 0, 1500)
        assert caplog.messages == ["The disk is full. It is held in memory instead."]
    with FaissMemory(tmp_path) as memory:
        assert_finds(memory, 0, 1500)
