"""Documents that are waited for are brought side by side, and are the same as without."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import numpy as np
import pytest

from racm3.document import Document
from racm3.errors import MemoryCorrupt
from racm3.interfaces import Encoder
from racm3.memories import read_ahead
from racm3.memories.faiss import FaissMemory

N = 40
VECTORS = np.eye(N, dtype=np.float32)
DOCUMENTS = [Document(f"text {n}", id=f"d{n}", metadata={"n": n}) for n in range(N)]
IDS = [document.id for document in DOCUMENTS]


@pytest.fixture
def folder(tmp_path):
    with FaissMemory(tmp_path / "memory") as memory:
        memory.bind(Encoder("e", N))
        memory.add(DOCUMENTS, VECTORS)
    return tmp_path / "memory"


@pytest.fixture
def slow(monkeypatch):
    monkeypatch.setattr(read_ahead, "LONG", -1.0)


def found(memory):
    return [hit.document for hit in memory.search(VECTORS[:1], k=N)[0]]


def two_read(memory):
    return [hit.document for hit in memory.search(VECTORS[:1], k=2)[0]]


@pytest.mark.usefixtures("slow")
def test_after_readings_that_took_long_the_next_have_readers(folder):
    with FaissMemory(folder) as memory:
        expected, ahead = found(memory), memory._journal.ahead
        assert expected[0] == DOCUMENTS[0] and set(expected) == set(DOCUMENTS)
        assert found(memory) == expected
        connections = list(ahead._connections)
        assert 0 < len(connections) <= read_ahead.READERS
        memory.add([Document("new", id="new")], VECTORS[:1] * -1)
        assert Document("new", id="new") in [hit.document for hit in memory.search(VECTORS[:1], k=N + 1)[0]]
    for connection in connections:
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            connection.execute("SELECT 1")


def test_readers_are_tried_again_only_where_it_takes_long_without_them(folder, monkeypatch):
    brought = []
    monkeypatch.setattr(read_ahead.ReadAhead, "_bring", lambda *given: brought.append(given))
    with FaissMemory(folder) as memory:
        monkeypatch.setattr(read_ahead, "LONG", -1.0)
        two_read(memory)
        two_read(memory)
        monkeypatch.setattr(read_ahead, "LONG", 1e9)
        for _ in range(2 * read_ahead.TURNS):
            two_read(memory)
    assert len(brought) == 2 * read_ahead.TURNS


@pytest.mark.usefixtures("slow")
def test_errors_of_readers_are_left_to_the_reading_itself(folder, monkeypatch):
    def refused():
        raise sqlite3.OperationalError("unable to open database file")

    with FaissMemory(folder) as memory:
        ahead = memory._journal.ahead
        monkeypatch.setattr(ahead, "_connect", refused)
        assert set(found(memory)) == set(found(memory)) == set(DOCUMENTS)
        assert ahead._readers is not None and not ahead._connections
    with sqlite3.connect(folder / "memory.db") as database:
        database.execute("UPDATE documents SET metadata = x'7b7d' WHERE seq = 1")
    database.close()
    with FaissMemory(folder) as memory:
        for _ in range(4):
            with pytest.raises(MemoryCorrupt, match="'d0'"):
                two_read(memory)


@pytest.mark.usefixtures("slow")
def test_where_no_thread_can_be_had_documents_are_read_without(folder, monkeypatch):
    def refused(*given, **options):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(read_ahead, "ThreadPoolExecutor", refused)
    with FaissMemory(folder) as memory:
        assert two_read(memory) == two_read(memory) == two_read(memory)


@pytest.mark.usefixtures("slow")
def test_readers_open_what_the_memory_opened_and_wait_for_nobody(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder.parent)
    with FaissMemory(Path("memory")) as memory:
        elsewhere = tmp_path / "elsewhere" / "memory"
        elsewhere.mkdir(parents=True)
        monkeypatch.chdir(elsewhere.parent)
        assert set(found(memory)) == set(found(memory)) == set(DOCUMENTS)
        assert not list(elsewhere.iterdir())
        connections = memory._journal.ahead._connections
        assert {one.execute("PRAGMA busy_timeout").fetchone()[0] for one in connections} == {0}
        for one in connections:
            with pytest.raises(sqlite3.OperationalError, match="readonly"):
                one.execute("DELETE FROM documents")


@pytest.mark.usefixtures("slow")
def test_what_lies_on_no_disk_has_no_readers():
    with FaissMemory() as memory:
        memory.bind(Encoder("e", N))
        memory.add(DOCUMENTS, VECTORS)
        assert found(memory) == found(memory) and memory._journal.ahead._readers is None


@pytest.mark.usefixtures("slow")
def test_an_exported_memory_that_was_read_so_can_be_written_to(folder, tmp_path):
    with FaissMemory(folder) as memory:
        memory.export_read_only(tmp_path / "copy")
    with FaissMemory(tmp_path / "copy") as memory:
        assert set(found(memory)) == set(found(memory)) == set(DOCUMENTS)
        assert memory.delete(["d0"]) == 1 and memory.get(IDS[:2]) == [None, DOCUMENTS[1]]
        memory.compact()
        assert memory.verify() == []
