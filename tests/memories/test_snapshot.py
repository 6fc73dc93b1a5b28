"""The snapshot in segments: it grows by what is new, keeps what was removed, and maps what is large unread."""

from __future__ import annotations

import json

import numpy as np
import pytest

from racm3.document import Document
from racm3.interfaces import Encoder
from racm3.memories import index, kept_index, scan, snapshot
from racm3.memories.faiss import FaissMemory

DIM = 16
ENCODER = Encoder("e", DIM)


def unit(seed, n):
    vectors = np.random.default_rng(seed).standard_normal((n, DIM)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def texts(n, start=0):
    return [Document(f"text {i}", id=f"d{i:05d}", metadata={"even": i % 2 == 0}) for i in range(start, start + n)]


def files(folder):
    return sorted(path.name for path in folder.glob("vectors-*"))


def rows(folder):
    return [entry["rows"] for entry in json.loads((folder / "index.json").read_text())["segments"]]


def answer(memory, where=None):
    return [[(hit.id, hit.score) for hit in hits] for hits in memory.search(unit(9, 6), k=7, where=where)]


@pytest.fixture(autouse=True)
def large(monkeypatch):
    """Few documents are many."""
    monkeypatch.setattr(index, "SCAN", 10)
    monkeypatch.setattr(scan, "PLAIN", 10)


@pytest.fixture
def memory(tmp_path):
    with FaissMemory(tmp_path) as memory:
        memory.bind(ENCODER)
        memory.add(texts(100), unit(0, 100))
        memory.flush()
        yield memory


def test_what_was_written_on_the_way_and_joined_since_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(kept_index, "HELD", 500)
    with FaissMemory(tmp_path) as memory:
        memory.bind(ENCODER)
        memory.add(texts(1000), unit(0, 1000))
        memory.refresh()
        assert len(files(tmp_path)) == 1  # of the first 512
        memory.flush()
        assert rows(tmp_path) == [1000] and len(files(tmp_path)) == 1


def test_what_is_new_is_written_and_small_segments_are_joined(memory, tmp_path):
    (first,) = files(tmp_path)
    memory.add(texts(20, 100), unit(1, 20))
    memory.flush()
    assert rows(tmp_path) == [100, 20] and first in files(tmp_path)
    memory.add(texts(15, 120), unit(2, 15))
    memory.flush()
    assert rows(tmp_path) == [100, 35] and len(files(tmp_path)) == 2
    memory.add(texts(40, 135), unit(3, 40))
    memory.flush()
    assert rows(tmp_path) == [175] and len(files(tmp_path)) == 1
    expected = answer(memory)
    with FaissMemory(tmp_path, read_only=True) as other, FaissMemory() as plain:
        plain.bind(ENCODER)
        for document, vector in other.items():
            plain.add([document], vector[None])
        assert answer(other) == expected == answer(plain)
        assert other.verify() == []


def test_what_was_removed_stays_removed_until_it_is_cleared_away(memory, tmp_path):
    memory.delete(["d00003", "d00050"])
    memory.flush()
    assert json.loads((tmp_path / "index.json").read_text())["removed"] == [4, 51]
    expected = answer(memory)
    with FaissMemory(tmp_path, read_only=True) as other:
        assert answer(other) == expected and other._kept.index.dead == 2 and other.verify() == []
    memory.delete([f"d{n:05d}" for n in range(60, 90)])
    memory.flush()
    assert rows(tmp_path) == [68] and len(files(tmp_path)) == 1
    assert json.loads((tmp_path / "index.json").read_text())["removed"] == []
    assert memory.verify() == []
    memory.delete([document.id for document, _ in memory.items()])
    memory.flush()
    assert rows(tmp_path) == [] and files(tmp_path) == [] and answer(memory) == [[]] * 6
    memory.add(texts(3), unit(0, 3))
    memory.flush()
    assert rows(tmp_path) == [3]


def test_a_memory_that_is_indexed_anew_holds_few_vectors_at_a_time(memory, tmp_path, monkeypatch):
    monkeypatch.setattr(kept_index, "HELD", 600)  # the journal is read in batches of 512
    memory.add(texts(1600, 100), unit(1, 1600))
    memory.flush()
    expected = answer(memory)
    for path in (tmp_path / "index.json", *tmp_path.glob("vectors-*")):
        path.unlink()
    with FaissMemory(tmp_path) as other:
        assert answer(other) == expected
        held = [len(segment) for segment in other._kept.index.segments if segment.path is None]
        assert sum(held) < 600 < sum(map(len, other._kept.index.segments)) == 1700
        other.flush()
        assert other.verify() == [] and sum(rows(tmp_path)) == 1700


def test_a_large_segment_is_mapped_unread_and_verify_reads_it(memory, tmp_path, monkeypatch):
    expected, (name,) = answer(memory), files(tmp_path)
    data = bytearray((tmp_path / name).read_bytes())
    data[-1] ^= 64
    (tmp_path / name).write_bytes(data)
    assert snapshot.load(tmp_path, DIM) is None
    monkeypatch.setattr(snapshot, "CHECKED", 0)
    assert snapshot.load(tmp_path, DIM).seqs.tolist() == list(range(1, 101))
    with FaissMemory(tmp_path) as other:
        assert other.verify() == ["The snapshot of the index is damaged; compacting the memory builds it anew."]
        other.compact()
        assert other.verify() == [] and answer(other) == expected


def test_a_segment_that_another_process_cleaned_away_is_written_again(memory, tmp_path):
    (tmp_path / files(tmp_path)[0]).unlink()
    memory.add(texts(5, 100), unit(1, 5))
    expected = answer(memory)
    memory.flush()
    with FaissMemory(tmp_path, read_only=True) as other:
        assert answer(other) == expected and other.verify() == []


@pytest.mark.parametrize("where", [{"even": True}, {"even": {"$ne": True}}, {"$or": [{"even": 1}, {"even": None}]}])
def test_what_a_filter_finds_is_remembered_and_new_documents_are_asked_for(memory, where, monkeypatch):
    asked, seqs_having = [], memory._journal.seqs_having

    def having(test, after):
        asked.append(after)
        return seqs_having(test, after)

    monkeypatch.setattr(memory._journal, "seqs_having", having)
    before = answer(memory, where)
    assert answer(memory, where) == before and set(asked) == {0}
    memory.add(texts(50, 100), unit(1, 50))
    memory.delete(["d00000", "d00001"])
    found = answer(memory, where)
    assert set(asked) == {0, 100}
    with FaissMemory() as plain:
        plain.bind(ENCODER)
        for document, vector in memory.items():
            plain.add([document], vector[None])
        assert answer(plain, where) == found


def test_only_the_filters_asked_for_last_are_remembered(memory):
    for number in range(3 * index.FILTERS):
        answer(memory, {"even": number})
    assert len(memory._kept.index._filters) == index.FILTERS


def test_what_another_process_is_writing_is_left_alone(memory, tmp_path):
    """It has no name in a snapshot yet; only what the one before named is taken away."""
    (superseded,) = files(tmp_path)
    (tmp_path / "vectors-0123456789abcdef.rows").write_bytes(b"of another process")
    memory.add(texts(90, 100), unit(1, 90))
    memory.flush()
    assert superseded not in files(tmp_path) and "vectors-0123456789abcdef.rows" in files(tmp_path)
