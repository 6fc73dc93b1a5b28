"""Indexes by name: what they find is scored exactly, deletions and replacements hold in each, filters before the top-k."""

from __future__ import annotations

import sqlite3

import numpy as np
import pytest

from racm3.document import Document
from racm3.errors import MemoryStoreError
from racm3.interfaces import Encoder
from racm3.memories import approximate, index
from racm3.memories.faiss import FaissMemory

DIM, N = 16, 1500
ENCODER = Encoder("e", DIM)
KINDS = ["exact", "hnsw", "ivf", "ivf-pq", "SQ8", "IVF8,SQ8"]


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def clustered(seed, n):
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((20, DIM))
    return unit(centres[rng.integers(0, 20, n)] + 0.5 * rng.standard_normal((n, DIM)))


VECTORS, QUERIES = clustered(0, N), clustered(1, 25)
DOCUMENTS = [Document(f"text {n}", id=f"d{n:04d}", metadata={"n": n, "even": n % 2 == 0}) for n in range(N)]
FILTERS = [
    ({"even": True}, lambda n: n % 2 == 0),
    ({"n": {"$lt": 100}}, lambda n: n < 100),
    ({"n": 7}, lambda n: n == 7),
]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Few documents are many, so that no search falls back on looking at all of them."""
    monkeypatch.setattr(approximate, "SMALL", 200)
    monkeypatch.setattr(index, "SCAN", 20)
    monkeypatch.setattr(approximate, "WIDTH", 64)


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def truth(state, k, fits=lambda n: True):
    """Ids and scores of the k nearest of a state (id -> vector), by looking at all."""
    found = []
    for query in QUERIES:
        scored = sorted((-float(vector @ query), id) for id, vector in state.items() if fits(int(id[1:])))
        found.append([(id, pytest.approx(-negative, abs=1e-6)) for negative, id in scored[:k]])
    return found


def answers(memory, k, where=None):
    return [[(hit.id, hit.score) for hit in hits] for hits in memory.search(QUERIES, k=k, where=where)]


def recall(found, expected):
    pairs = zip(found, expected, strict=True)
    hits = [len({id for id, _ in one} & {id for id, _ in other}) for one, other in pairs]
    return sum(hits) / max(1, sum(map(len, expected)))


def assert_finds(memory, state, kind):
    found, expected = answers(memory, 10), truth(state, 10)
    assert recall(found, expected) >= (1 if kind == "exact" else 0.95)
    scores = state
    for query, hits in zip(QUERIES, found, strict=True):
        assert hits == [(id, pytest.approx(float(scores[id] @ query), abs=1e-6)) for id, _ in hits]
        assert [(-score, id) for id, score in hits] == sorted((-score, id) for id, score in hits)
    for where, fits in FILTERS:
        found, expected = answers(memory, 10, where), truth(state, 10, fits)
        assert found == expected


def test_each_index_finds_what_is_there_through_changes_and_reopening(tmp_path, kind):
    state = dict(zip((document.id for document in DOCUMENTS), VECTORS, strict=True))
    with FaissMemory(tmp_path) as memory:
        memory.bind(ENCODER)
        memory.add(DOCUMENTS[:1200], VECTORS[:1200])
        memory.reindex(kind)
        assert memory._index.kind == kind and memory.stats()["index"] == kind
        memory.add(DOCUMENTS[1200:], VECTORS[1200:])
        gone = [f"d{n:04d}" for n in range(0, 1500, 9)]
        memory.delete(gone)
        moved = DOCUMENTS[1:1500:90]
        memory.add(moved, clustered(2, len(moved)), on_duplicate="replace")
        state = {id: vector for id, vector in state.items() if id not in gone}
        state |= {document.id: vector for document, vector in zip(moved, clustered(2, len(moved)), strict=True)}
        assert_finds(memory, state, kind)
        vector = memory.search(QUERIES[:1], k=1)[0][0].vector
        assert any(np.array_equal(vector, one) for one in state.values())  # not a compressed one
        measured = getattr(memory._index, "recall", None), getattr(memory._index, "effort", None)
    with FaissMemory(tmp_path) as memory:
        assert_finds(memory, state, kind)
        assert memory._index.kind == kind and memory.stats()["recall"] == measured[0]
        assert measured == (getattr(memory._index, "recall", None), getattr(memory._index, "effort", None))
        assert memory.verify() == []


def test_an_index_that_is_lost_is_built_again_of_the_same_kind(tmp_path):
    with FaissMemory(tmp_path) as memory:
        memory.bind(ENCODER)
        memory.add(DOCUMENTS, VECTORS)
        memory.reindex("ivf")
    (path,) = tmp_path.glob("index-*.faiss")
    path.write_bytes(b"torn")
    with FaissMemory(tmp_path) as memory:
        assert_finds(memory, dict(zip([d.id for d in DOCUMENTS], VECTORS, strict=True)), "ivf")
        assert memory._index.kind == "ivf"


def test_an_index_becomes_what_it_is_called_when_there_are_documents_enough(tmp_path):
    with FaissMemory(tmp_path) as memory:
        memory.bind(ENCODER)
        memory.add(DOCUMENTS[:150], VECTORS[:150])
        memory.reindex("ivf")
        assert memory._index.kind == "exact"
        memory.add(DOCUMENTS[150:], VECTORS[150:])
        memory.flush()
        assert memory._index.kind == "ivf"


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_an_index_looks_as_far_as_it_has_to(kind):
    """Where neighbours lie all over, more cells have to be scanned than where they lie together."""
    efforts = []
    for vectors in (clustered(0, N), unit(np.random.default_rng(0).standard_normal((N, DIM)))):
        with FaissMemory() as memory:
            memory.bind(ENCODER)
            memory.add(DOCUMENTS, vectors)
            memory.reindex(kind)
            assert memory._index.recall >= approximate.FOUND
            efforts.append(memory._index.effort)
    assert efforts[0] <= efforts[1] and (kind == "hnsw" or efforts[0] < efforts[1])


@pytest.mark.parametrize(("documents", "kind"), [(10, "exact"), (200_000, "exact"), (200_001, "ivf")])
def test_auto_chooses_by_size(documents, kind):
    assert approximate.chosen("auto", documents) == kind


@pytest.mark.parametrize("kind", ["exact", "hnsw", "ivf", "SQ8"])
def test_many_tombstones_are_cleared_away(tmp_path, kind):
    with FaissMemory(tmp_path) as memory:
        memory.bind(ENCODER)
        memory.add(DOCUMENTS, VECTORS)
        memory.reindex(kind)
        memory.delete([document.id for document in DOCUMENTS[:700]])
        memory.flush()
        assert memory._index.dead == 0 and memory._index.kind == kind
        assert_finds(memory, {d.id: v for d, v in zip(DOCUMENTS[700:], VECTORS[700:], strict=True)}, kind)


def test_who_has_the_memory_open_goes_on_while_it_is_indexed_anew(tmp_path):
    state = dict(zip([d.id for d in DOCUMENTS], VECTORS, strict=True))
    with FaissMemory(tmp_path) as memory, FaissMemory(tmp_path, read_only=True) as reader:
        memory.bind(ENCODER)
        memory.add(DOCUMENTS, VECTORS)
        memory.flush()
        before, told = answers(reader, 10), []
        memory.reindex("hnsw", lambda *said: told.append(said))
        assert told[-1] == (N, N, "index")
        assert answers(reader, 10) == before
        memory.delete(["d0001"])
        del state["d0001"]
        assert_finds(reader, state, "exact")
        assert_finds(memory, state, "hnsw")


@pytest.mark.parametrize(
    ("name", "said"), [("hnws", "Did you mean 'hnsw'"), ("IVF10,PQ7", "of width 16"), ("", "Use exact")]
)
def test_what_is_no_index_is_an_error_that_changes_nothing(tmp_path, name, said):
    with FaissMemory(tmp_path) as memory:
        with pytest.raises(MemoryStoreError, match="not bound"):
            memory.reindex("ivf")
        memory.bind(ENCODER)
        memory.add(DOCUMENTS[:5], VECTORS[:5])
        with pytest.raises(MemoryStoreError, match=said):
            memory.reindex(name)
        assert memory.stats()["index"] == "exact"


def test_a_damaged_name_of_the_index_costs_no_answer(tmp_path, caplog):
    with FaissMemory(tmp_path) as memory:
        memory.bind(ENCODER)
        memory.add(DOCUMENTS, VECTORS)
        memory.reindex("ivf")
    (tmp_path / "index.json").unlink()
    connection = sqlite3.connect(tmp_path / "memory.db")
    with connection:
        connection.execute("UPDATE manifest SET value = x'ff00' WHERE name = 'index'")
    connection.close()
    with FaissMemory(tmp_path) as memory:
        assert_finds(memory, dict(zip([d.id for d in DOCUMENTS], VECTORS, strict=True)), "exact")
        assert "An exact one is made" in caplog.text


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
@pytest.mark.parametrize("documents", [1, 3])
def test_of_very_few_documents_there_is_nothing_to_measure(kind, documents, monkeypatch):
    monkeypatch.setattr(approximate, "SMALL", 0)
    with FaissMemory() as memory:
        memory.bind(ENCODER)
        memory.add(DOCUMENTS[:documents], VECTORS[:documents])
        memory.reindex(kind)
        assert memory._index.kind == kind and memory._index.recall is None
        assert len(memory.search(QUERIES[:1], k=5)[0]) == documents
