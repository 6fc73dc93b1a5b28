"""Indexes by name: what they find is scored exactly, deletions and replacements hold in each, filters before the top-k."""

from __future__ import annotations

import json
import os
import sqlite3
from threading import Thread

import faiss
import numpy as np
import pytest

from racm3.document import Document
from racm3.errors import MemoryCorrupt, MemoryStoreError
from racm3.interfaces import Encoder
from racm3.memories import approximate, index, page_cache, snapshot
from racm3.memories.checksum import json_checksum
from racm3.memories.faiss import FaissMemory

DIM, N = 16, 1500
ENCODER = Encoder("e", DIM)
KINDS = ["exact", "hnsw", "ivf", "ivf-pq", "IDMap,SQ8", "IVF8,SQ8", "LSH"]


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
    monkeypatch.setattr(approximate, "CODED", 16)


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
        assert memory._kept.index.kind == kind and memory.stats()["index"] == kind
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
        measured = getattr(memory._kept.index, "recall", None), getattr(memory._kept.index, "effort", None)
    with FaissMemory(tmp_path) as memory:
        assert_finds(memory, state, kind)
        assert memory._kept.index.kind == kind and memory.stats()["recall"] == measured[0]
        assert measured == (getattr(memory._kept.index, "recall", None), getattr(memory._kept.index, "effort", None))
        assert memory.verify() == []


@pytest.mark.parametrize("kind", ["hnsw", "ivf", "ivf-pq"])
@pytest.mark.parametrize("kept", [True, False])
def test_a_memory_is_in_use_while_its_index_is_made(tmp_path, kind, kept, monkeypatch):
    """By other threads, which neither wait for the new index nor get in its way."""
    monkeypatch.setattr(approximate, "ROWS", 256)  # which makes the index in several steps
    gone = [f"d{n:04d}" for n in range(0, 1200, 9)]
    state = dict(zip((document.id for document in DOCUMENTS[:1200]), VECTORS[:1200], strict=True))
    with FaissMemory(tmp_path / "memory" if kept else None) as memory:
        memory.bind(ENCODER)
        memory.add(DOCUMENTS[:1200], VECTORS[:1200])

        def use():
            assert_finds(memory, state, "exact")
            memory.delete(gone)
            memory.add(DOCUMENTS[1200:], VECTORS[1200:])
            memory.add(DOCUMENTS[1:2], VECTORS[2:3], on_duplicate="replace")
            memory.flush()
            if kept:
                with FaissMemory(tmp_path / "memory", read_only=True) as reader:
                    assert len(reader.search(QUERIES[:1], k=3)[0]) == 3
            done.append(True)

        def meanwhile(entered, total, what):
            if not done:
                user = Thread(target=use)
                user.start()
                user.join(60)
                assert done and entered < total

        done = []
        memory.reindex(kind, meanwhile)
        state = dict(zip((document.id for document in DOCUMENTS), VECTORS, strict=True))
        state = {id: vector for id, vector in state.items() if id not in gone} | {DOCUMENTS[1].id: VECTORS[2]}
        assert memory._kept.index.kind == kind and len(memory) == len(state)
        assert_finds(memory, state, kind)
        assert memory.verify() == []
    if kept:
        with FaissMemory(tmp_path / "memory") as memory:
            assert_finds(memory, state, kind)
            assert memory._kept.index.kind == kind and memory.verify() == []


def test_an_index_that_cannot_be_written_leaves_the_one_there_is(tmp_path, monkeypatch):
    with FaissMemory(tmp_path) as memory:
        memory.bind(ENCODER)
        memory.add(DOCUMENTS, VECTORS)
        monkeypatch.setattr(snapshot, "write_faiss", lambda *a: (_ for _ in ()).throw(OSError(28, "No space left")))
        with pytest.raises(MemoryStoreError, match="No space left"):
            memory.reindex("ivf")
        assert memory.stats()["index"] == "exact"
        assert_finds(memory, dict(zip([d.id for d in DOCUMENTS], VECTORS, strict=True)), "exact")


def test_an_index_that_is_lost_is_built_again_of_the_same_kind(tmp_path, caplog):
    with FaissMemory(tmp_path) as memory:
        memory.bind(ENCODER)
        memory.add(DOCUMENTS, VECTORS)
        memory.reindex("ivf")
    (path,) = tmp_path.glob("index-*.faiss")
    path.write_bytes(b"torn")
    with FaissMemory(tmp_path) as memory:
        assert_finds(memory, dict(zip([d.id for d in DOCUMENTS], VECTORS, strict=True)), "ivf")
        assert memory._kept.index.kind == "ivf"
    assert f"The memory at {tmp_path} makes its index ivf anew, of 1,500 documents." in caplog.messages


def test_an_index_becomes_what_it_is_called_when_there_are_documents_enough(tmp_path):
    with FaissMemory(tmp_path) as memory:
        memory.bind(ENCODER)
        memory.add(DOCUMENTS[:150], VECTORS[:150])
        memory.reindex("ivf")
        assert memory._kept.index.kind == "exact"
        memory.add(DOCUMENTS[150:], VECTORS[150:])
        memory.flush()
        assert memory._kept.index.kind == "ivf"


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_an_index_looks_as_far_as_it_has_to(kind):
    """Where neighbours lie all over, more cells have to be scanned than where they lie together."""
    efforts = []
    for vectors in (clustered(0, N), unit(np.random.default_rng(0).standard_normal((N, DIM)))):
        with FaissMemory() as memory:
            memory.bind(ENCODER)
            memory.add(DOCUMENTS, vectors)
            memory.reindex(kind)
            assert memory._kept.index.recall >= approximate.FOUND
            efforts.append(memory._kept.index.effort)
    assert efforts[0] <= efforts[1] and (kind == "hnsw" or efforts[0] < efforts[1])


@pytest.mark.parametrize("alike", [0, 1400, N])
@pytest.mark.parametrize("cells", [1, 2, 37])
def test_there_are_as_many_cells_as_were_asked_for(alike, cells):
    """Also of documents that are nearly all the same, which leave clusters empty."""
    vectors = np.concatenate([np.repeat(VECTORS[:1], alike, axis=0), VECTORS[alike:]])
    centres = approximate._centres(vectors, cells)
    assert centres.shape == (cells, DIM) and centres.dtype == np.float32
    assert np.linalg.norm(centres, axis=1) == pytest.approx(1, abs=1e-3)
    assert (vectors @ centres.T).max(axis=1).mean() >= (VECTORS @ VECTORS.mean(axis=0)).mean()


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
        assert memory._kept.index.dead == 0 and memory._kept.index.kind == kind
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


@pytest.mark.parametrize("name", ["PQ8", "IVF9999,Flat", None, 5])
def test_an_index_that_cannot_be_made_of_these_documents_changes_nothing(tmp_path, name):
    with FaissMemory(tmp_path) as memory:
        memory.bind(ENCODER)
        memory.add(DOCUMENTS[:12], VECTORS[:12])
        memory.flush()
        before = sorted((path.name, path.stat().st_size) for path in tmp_path.iterdir())
        with pytest.raises(MemoryStoreError, match=r"No index '?(PQ8|IVF9999|None|5)") as caught:
            memory.reindex(name)
        assert "Error in" not in str(caught.value) and "exact" in caught.value.hint
        assert memory.stats()["index"] == "exact"
        assert sorted((path.name, path.stat().st_size) for path in tmp_path.iterdir()) == before
        memory.add(DOCUMENTS[12:13], VECTORS[12:13])
        assert memory.search(VECTORS[12:13], k=1)[0][0].id == DOCUMENTS[12].id


def test_an_index_that_cannot_be_made_any_more_gives_way_to_an_exact_one(tmp_path, caplog):
    with FaissMemory(tmp_path) as memory:
        memory.bind(ENCODER)
        memory.add(DOCUMENTS, VECTORS)
        memory.reindex("IVF100,Flat")
        memory.delete([document.id for document in DOCUMENTS[50:]])
    (tmp_path / "index.json").unlink()
    with FaissMemory(tmp_path) as memory:
        assert_finds(memory, {d.id: v for d, v in zip(DOCUMENTS[:50], VECTORS[:50], strict=True)}, "exact")
        assert "IVF100,Flat" in caplog.text and "An exact one is made" in caplog.text
        memory.add(DOCUMENTS[50:], VECTORS[50:])
        memory.flush()
        assert memory._kept.index.kind == "IVF100,Flat"


@pytest.mark.parametrize(
    "name", ["HNSW1", "RQ0x4", "HNSW0", "IVF64_HNSW0,Flat", "PQ8x0", "NSG0", "NSG1", "IVF0,Flat", "PCA0,Flat", "IVF64,Flat\0",
             "x" * 10**6, "IVF99999999,Flat", "IVF4000,Flat", None, 5],
)  # fmt: skip
def test_what_faiss_would_not_survive_or_try_for_long_is_refused_at_once(name):
    with FaissMemory() as memory:
        memory.bind(ENCODER)
        memory.add(DOCUMENTS, VECTORS)
        with pytest.raises(MemoryStoreError, match="No index") as raised:
            memory.reindex(name)
        assert len(str(raised.value)) < 1000
        assert memory.stats()["index"] == "exact" and memory.search(QUERIES[:1], k=1)[0]


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
        assert memory._kept.index.kind == kind and memory._kept.index.recall is None
        assert len(memory.search(QUERIES[:1], k=5)[0]) == documents


def filled(path, kind, n=N - 50):
    """A memory with an index that was saved, opened again."""
    with FaissMemory(path) as memory:
        memory.bind(ENCODER)
        memory.add(DOCUMENTS[:n], VECTORS[:n])
        memory.reindex(kind)
    return FaissMemory(path)


def saved(path):
    (file,) = path.glob("index-*.faiss")
    return file


@pytest.mark.parametrize("kind", ["hnsw", "ivf", "ivf-pq"])
@pytest.mark.parametrize("gone", [False, True])
def test_few_new_documents_are_scanned_and_many_enter_the_index(tmp_path, kind, gone, monkeypatch):
    monkeypatch.setattr(approximate, "LATE", 20)
    state = {document.id: vector for document, vector in zip(DOCUMENTS, VECTORS, strict=True)}
    with filled(tmp_path, kind) as memory:
        before = saved(tmp_path).name
        memory.add(DOCUMENTS[-50:-40], VECTORS[-50:-40])
        assert_finds(memory, {id: state[id] for id in list(state)[:-40]}, kind)
        made = memory._kept.index
        assert made.file is not None and made.faiss.ntotal == N - 50
        # What is new is found like all others: with filters, without what is excluded, and after it was removed.
        for number in range(N - 50, N - 40):
            query = VECTORS[number : number + 1]
            assert memory.search(query, k=1)[0][0].id == f"d{number:04d}"
            assert memory.search(query, k=1, where={"n": number})[0][0].id == f"d{number:04d}"
            assert memory.search(query, k=1, exclude=[[f"d{number:04d}"]])[0][0].id != f"d{number:04d}"
        memory.delete(["d1451"])
        assert memory.search(VECTORS[1451:1452], k=1)[0][0].id != "d1451"
    assert saved(tmp_path).name == before  # it is not written anew for so few
    del state["d1451"]
    with FaissMemory(tmp_path) as memory:
        assert_finds(memory, {id: state[id] for id in list(state)[:-40]}, kind)
        if gone:  # another process has put one of its own in its place
            saved(tmp_path).unlink()
        memory.add(DOCUMENTS[-40:], VECTORS[-40:])
        assert_finds(memory, state, kind)
        assert memory._kept.index.file is None and memory._kept.index.faiss.ntotal == N
        state["d0003"] = VECTORS[1451]
        memory.add(DOCUMENTS[3:4], VECTORS[1451:1452], on_duplicate="replace")
        assert_finds(memory, state, kind)
        assert memory.search(VECTORS[1451:1452], k=1)[0][0].id == "d0003"
    with FaissMemory(tmp_path) as memory:
        assert_finds(memory, state, kind)
        assert memory._kept.index.faiss.ntotal == N + 1 and saved(tmp_path).name != before and not memory.verify()


@pytest.mark.parametrize("kind", ["ivf", "ivf-pq"])
def test_the_cells_that_a_query_needs_are_brought_side_by_side(tmp_path, kind, monkeypatch):
    with filled(tmp_path, kind) as memory:
        expected = answers(memory, 10)
    data, brought = saved(tmp_path).read_bytes(), []
    monkeypatch.setattr(page_cache, "is_cached", lambda *place: False)
    monkeypatch.setattr(os, "posix_fadvise", lambda _, start, length, advice: brought.append((start, length)))
    with FaissMemory(tmp_path) as memory:
        memory.refresh()
        index = memory._kept.index.faiss
        cells = {}
        for cell in range(index.nlist):
            n = index.invlists.list_size(cell) * index.code_size
            codes = faiss.rev_swig_ptr(index.invlists.get_codes(cell), n).tobytes() if n else b""
            cells[cell] = codes
        for query in QUERIES[:2]:
            brought.clear()
            memory.search(query[None], k=3)
            _, (near,) = index.quantizer.search(query[None], memory._kept.index.effort)
            held = [data[start : start + length] for start, length in brought if length > 4 * DIM]
            assert held and all(any(piece.startswith(cells[cell]) for cell in near.tolist()) for piece in held)
        assert answers(memory, 10) == expected
        brought.clear()
        assert answers(memory, 10) == expected
        assert not [length for _, length in brought if length > 4 * DIM + 16]  # only records of vectors are asked for


def test_what_the_system_holds_in_memory_is_not_asked_for(tmp_path, monkeypatch):
    with filled(tmp_path, "ivf") as memory:
        expected = answers(memory, 10)
    asked = []
    monkeypatch.setattr(page_cache, "want", lambda *place: asked.append(place))
    with FaissMemory(tmp_path) as memory:
        assert answers(memory, 10) == expected and not asked


def test_cells_are_found_by_codes_as_by_their_centres(monkeypatch):
    monkeypatch.setattr(approximate, "CELL", 8)
    found = {}
    for kind, cells, name in (
        ("ivf", 16, "IndexRefine"),
        ("ivf-pq", 16, "IndexPQFastScan"),
        ("ivf", 10**6, "IndexScalarQuantizer"),
    ):
        monkeypatch.setattr(approximate, "CODED", cells)
        with FaissMemory() as memory:
            memory.bind(ENCODER)
            memory.add(DOCUMENTS, VECTORS)
            memory.reindex(kind)
            made = memory._kept.index.faiss
            assert type(faiss.downcast_index(made.quantizer)).__name__ == name
            found[name] = made.quantizer.search(QUERIES, 4)[1]

    def shared(one):
        pairs = zip(found[one], found["IndexScalarQuantizer"], strict=True)
        return np.mean([len(set(first) & set(second)) for first, second in pairs])

    assert shared("IndexRefine") > 3.8 and shared("IndexPQFastScan") > 2


def test_a_lost_index_file_is_written_again(tmp_path):
    with filled(tmp_path, "ivf") as memory:
        memory.refresh()
        saved(tmp_path).unlink()
        memory.add(DOCUMENTS[-5:], VECTORS[-5:])
        memory.flush()
        assert memory._kept.index.faiss.ntotal == N - 45 and not memory.verify()


@pytest.mark.parametrize("below", [2**63, N - 50, 5])  # labels that are none, that are others', that are few
@pytest.mark.parametrize("removed", [[], ["d0007", "d0002"]])
@pytest.mark.parametrize(("kind", "size"), [("ivf", 2 * DIM + 8), ("hnsw", 2 * DIM)])
def test_damage_at_the_end_of_an_index_file_gives_no_wrong_answer(tmp_path, below, removed, kind, size, monkeypatch):
    filled(tmp_path, kind).close()
    monkeypatch.setattr(approximate, "LATE", 0)
    data, rng = bytearray(saved(tmp_path).read_bytes()), np.random.default_rng(0)
    end = (N - 50) * size
    data[-end:] = rng.integers(0, below, end // 8).tobytes()
    saved(tmp_path).write_bytes(data)
    with FaissMemory(tmp_path) as memory:
        memory.delete(removed)
        for k in (1, 10, 100):
            for query, hits in zip(QUERIES, memory.search(QUERIES, k=k), strict=True):
                assert len({hit.id for hit in hits} - set(removed)) == k
                for hit in hits:
                    assert hit.score == pytest.approx(float(VECTORS[int(hit.id[1:])] @ query), abs=1e-6)
        assert memory.verify() == ["The snapshot of the index is damaged; compacting the memory builds it anew."]
        memory.add(DOCUMENTS[-50:], VECTORS[-50:])
        with pytest.raises(MemoryCorrupt, match="does not match its checksum"):
            memory.search(QUERIES, k=1)
        memory.compact()
        assert not memory.verify()
        state = {document.id: vector for document, vector in zip(DOCUMENTS, VECTORS, strict=True)}
        assert_finds(memory, {id: vector for id, vector in state.items() if id not in removed}, kind)


@pytest.mark.parametrize("damaged", [False, True])
def test_an_index_of_an_earlier_version_is_checked_as_a_whole(tmp_path, damaged, caplog):
    filled(tmp_path, "ivf").close()
    header = json.loads((tmp_path / "index.json").read_text())
    header["index"]["head_sha256"] = "0" * 64
    del header["index"]["head_crc32"]
    header["checksum"] = json_checksum(header)
    (tmp_path / "index.json").write_text(json.dumps(header))
    data = bytearray(saved(tmp_path).read_bytes())
    data[-1] ^= damaged
    saved(tmp_path).write_bytes(data)
    with FaissMemory(tmp_path) as memory:
        memory.refresh()
        assert ("is passed over" in caplog.text) == damaged and memory._kept.index.kind == "ivf"
        assert_finds(memory, {document.id: VECTORS[n] for n, document in enumerate(DOCUMENTS[: N - 50])}, "ivf")
    assert json.loads((tmp_path / "index.json").read_text()) != header or not damaged


@pytest.mark.parametrize("kind", ["hnsw", "ivf", "ivf-pq", "IVF8,SQ8,RFlat"])
@pytest.mark.parametrize("damage", ["first", "last of the head", "shorter", "longer", "empty"])
def test_what_faiss_would_trust_is_checked_before(tmp_path, kind, damage, caplog):
    filled(tmp_path, kind).close()
    path = saved(tmp_path)
    data = bytearray(path.read_bytes())
    head = json.loads((tmp_path / "index.json").read_text())["index"]["head"]
    assert (head < len(data)) == (kind in ("hnsw", "ivf", "ivf-pq"))
    place = {"first": 0, "last of the head": head - 1}.get(damage)
    if place is not None:
        data[place] ^= 1
    path.write_bytes({"shorter": data[:-1], "longer": data + b"0", "empty": b""}.get(damage, data))
    with FaissMemory(tmp_path) as memory:
        memory.refresh()
        assert "is passed over" in caplog.text and memory._kept.index.kind == kind
        assert_finds(memory, {document.id: VECTORS[n] for n, document in enumerate(DOCUMENTS[: N - 50])}, kind)
