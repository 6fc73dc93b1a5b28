"""The default memory: what is stored stays, and what is found is exactly the nearest."""

from __future__ import annotations

import numpy as np
import pytest

from racm3.document import Document, Image
from racm3.errors import (
    DimensionMismatch,
    DuplicateDocument,
    EncoderMismatch,
    InvalidDocument,
    MemoryLocked,
    MemoryStoreError,
)
from racm3.interfaces import Encoder
from racm3.memories import index as index_module
from racm3.memories.answer import AHEAD
from racm3.memories.faiss import FaissMemory
from racm3.memories.journal import SHORT

DIM = 8
ENCODER = Encoder("clip-test", DIM)


def unit(rng, n, dim=DIM):
    vectors = rng.standard_normal((n, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def texts(n, start=0):
    return [
        Document(f"text {i}", id=f"d{i:05d}", metadata={"i": i, "even": i % 2 == 0}) for i in range(start, start + n)
    ]


def picture(seed):
    return np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def memory():
    with FaissMemory() as memory:
        memory.bind(ENCODER)
        yield memory


def ids(hits):
    return [hit.id for hit in hits]


def brute_force(items, query, k):
    """The specification of a search: (id, score) of the k nearest of (document, vector), ties by id."""
    scored = sorted((-float(np.dot(vector, query)), document.id) for document, vector in items)
    return [(id, pytest.approx(-negative, abs=1e-6)) for negative, id in scored[:k]]


# Searching


@pytest.mark.parametrize("scan", [4096, 20], ids=["by scanning", "by FAISS"])
@pytest.mark.parametrize("k", [1, 7, 300, 1000])
def test_a_search_finds_exactly_the_nearest(memory, rng, monkeypatch, scan, k):
    monkeypatch.setattr(index_module, "SCAN", scan)
    documents, vectors, queries = texts(300), unit(rng, 300), unit(rng, 5)
    memory.add(documents, vectors)
    memory.delete(["d00003", "d00250"])
    gone = {"d00003", "d00250"}
    exclude = [set(), {"d00001"}, {documents[2].content_hash}, set(ids(documents[:150])), {"unknown", "\ud800"}]
    filters = [
        (None, lambda document: True),
        ({"even": True}, lambda document: document.metadata["even"]),
        ({"i": {"$lt": 5}}, lambda document: document.metadata["i"] < 5),
        ({"i": -1}, lambda document: False),
    ]
    for where, fits in filters:
        answers = memory.search(queries, k=k, where=where, exclude=exclude)
        for query, hits, names in zip(queries, answers, exclude, strict=True):
            left = [
                (document, vector)
                for document, vector in zip(documents, vectors, strict=True)
                if fits(document) and not {document.id, document.content_hash} & (names | gone)
            ]
            assert [(hit.id, hit.score) for hit in hits] == brute_force(left, query, k)


@pytest.mark.parametrize("scan", [4096, 20], ids=["by scanning", "by FAISS"])
def test_ties_come_in_order_of_id_and_at_the_cut_off_the_smallest_ids_win(memory, rng, monkeypatch, scan):
    monkeypatch.setattr(index_module, "SCAN", scan)
    best, twin = unit(rng, 2)
    vectors = np.concatenate([np.tile(twin, (100, 1)), [best, -best], np.tile(twin, (13, 1))])
    order = rng.permutation(len(vectors))
    documents = [Document("x", id=f"{number:03d}") for number in order]
    memory.add(documents, vectors)
    twins = sorted(documents[row].id for row in [*range(100), *range(102, 115)])
    hits = memory.search(best[None], k=6)[0]
    assert ids(hits) == [documents[100].id, *twins[:5]]
    assert len({hit.score for hit in hits[1:]}) == 1
    without = memory.search(best[None], k=6, exclude=[{*twins[:3]}])[0]
    assert ids(without) == [documents[100].id, *twins[3:8]]


def test_a_hit_whose_document_has_changed_since_says_so(memory, rng):
    documents, vectors = texts(2), unit(rng, 2)
    memory.add(documents, vectors)
    hit = memory.search(vectors[1:], k=1)[0][0]
    memory.add([documents[1].replace(metadata={"new": True})], vectors[1:], on_duplicate="replace")
    with pytest.raises(MemoryStoreError, match="'d00001' was removed or replaced"):
        _ = hit.document


@pytest.fixture
def statements(memory):
    """What a memory asks its database."""
    asked: list[str] = []
    memory._journal.connection.set_trace_callback(asked.append)
    return asked


def read(statements):
    return [statement for statement in statements if "FROM documents LEFT JOIN" in statement]


def test_who_looks_at_one_hit_has_read_those_behind_it(memory, rng, statements):
    memory.add(texts(2 * AHEAD), unit(rng, 2 * AHEAD))
    hits = memory.search(unit(rng, 1), k=AHEAD + 3)[0]
    assert not read(statements)
    assert [hit.document.id for hit in hits[:AHEAD]] == ids(hits[:AHEAD]) and len(read(statements)) == 1
    assert hits[-1].document == memory.get([hits[-1].id])[0]
    assert [hit.document.id for hit in hits] == ids(hits)
    assert hits[0].document is hits[0].document


def test_a_long_content_is_not_read_before_it_is_looked_at(memory, rng, statements):
    long = [Document(letter * (SHORT + extra), id=letter) for letter, extra in [("a", 0), ("b", 1), ("c", 1)]]
    memory.add(long, unit(rng, 3))
    (hits,) = memory.search(unit(rng, 1), k=3)
    for looked_at, hit in enumerate(sorted(hits, key=lambda hit: hit.id)):
        assert hit.document == long[looked_at]
    assert len(read(statements)) >= 3  # "b" and "c" each by a statement of its own


def test_a_document_that_was_read_ahead_is_still_there_when_it_was_removed(memory, rng):
    documents = texts(3)
    memory.add(documents, unit(rng, 3))
    (hits,) = memory.search(unit(rng, 1), k=3)
    _ = hits[0].document
    memory.delete(ids(hits))
    assert sorted((hit.document for hit in hits), key=lambda document: document.id) == documents


def test_a_memory_that_is_not_bound_finds_nothing(rng):
    with FaissMemory() as memory:
        assert memory.search(unit(rng, 2), k=3) == [[], []]
        assert memory.random(3, rng=rng) == []


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"k": -1}, "0 or more, not -1"),
        ({"k": 1, "exclude": []}, "0 exclusions for 1 queries"),
        ({"k": 1, "exclude": ["d0"]}, "a collection of names for each query"),
        ({"k": 1, "exclude": [None]}, "a collection of names for each query"),
        ({"k": 1, "exclude": [{5}]}, "a collection of names for each query"),
        ({"k": 1, "exclude": [{None}]}, "a collection of names for each query"),
        ({"k": 1, "exclude": 5}, "a collection of names for each query"),
    ],
)
def test_what_cannot_be_searched_is_an_error(memory, rng, asked, message):
    with pytest.raises(MemoryStoreError, match=message):
        memory.search(unit(rng, 1), **asked)


@pytest.mark.parametrize("documents", [100, 250, 5000])
@pytest.mark.parametrize("k", [10**9, np.uint8(10), np.uint64(10)])
@pytest.mark.parametrize("queries", [1, 3])
def test_any_whole_number_of_hits_can_be_asked_for(rng, documents, k, queries):
    with FaissMemory() as memory:
        memory.bind(ENCODER)
        memory.add([Document(f"text {n}") for n in range(documents)], unit(rng, documents))
        for hits in memory.search(unit(rng, queries), k=k):
            assert len({hit.id for hit in hits}) == min(int(k), documents)


def test_vectors_that_want_a_gradient_are_an_error_of_ours(memory):
    import torch

    with pytest.raises(MemoryStoreError, match="cannot be read as such"):
        memory.search(torch.ones(1, DIM, requires_grad=True), k=1)


# Adding


@pytest.mark.parametrize("documents", [None, 5, Document("text")])
def test_what_is_no_list_of_documents_is_an_error_and_stores_nothing(memory, rng, documents):
    before = len(memory)
    with pytest.raises(InvalidDocument, match="a list of Documents"):
        memory.add(documents, unit(rng, 1))
    assert len(memory) == before


@pytest.mark.parametrize("between", [0, 300])
def test_a_document_that_comes_twice_in_one_call_is_named_as_that(memory, rng, between):
    once, others = Document("text", id="twice"), [Document(f"other {n}") for n in range(between)]
    with pytest.raises(DuplicateDocument, match="'twice' comes twice"):
        memory.add([once, *others, once], unit(rng, between + 2))
    assert memory.get(["twice"]) == [None]


def test_half_surrogates_are_kept_as_they_are(memory, rng):
    document = Document(["text \ud800 \0", Image(picture(2))], id="id \udcff", metadata={"surrogate\udcff": "\ud800"})
    memory.add([document], unit(rng, 1))
    assert memory.get([document.id]) == [document]


def test_ids_of_any_length_are_found_by_whoever_opens_the_memory(tmp_path, rng):
    named = [Document(f"text {n}", id="é" * n) for n in (1, 3, 61, 62, 500)]  # the last two are too long for the index
    vectors = unit(rng, 5)
    with FaissMemory(tmp_path) as memory:
        memory.bind(ENCODER)
        memory.add(named[:2], vectors[:2])
        memory.flush()
        memory.add(named[2:], vectors[2:])
        for _ in range(2):
            found = memory.search(vectors, k=1)
            assert [(hit.id, hit.document) for (hit,) in found] == [(document.id, document) for document in named]
            memory.flush()
    with FaissMemory(tmp_path, read_only=True) as memory:
        assert [hit.id for (hit,) in memory.search(vectors, k=1)] == [document.id for document in named]
        assert {hit.id for hit in memory.random(5, rng=rng)} == {document.id for document in named}
        assert memory.verify() == []


def test_a_search_is_not_made_twice_for_ids_that_are_asked_of_the_journal(memory, rng, monkeypatch):
    vectors, made = unit(rng, 3), []
    memory.add([Document("text", id="x" * 500 + str(n)) for n in range(3)], vectors)
    memory.search(vectors[:1], k=1)
    nearest = index_module.VectorIndex.nearest
    monkeypatch.setattr(
        index_module.VectorIndex, "nearest", lambda *given, **options: made.append(1) or nearest(*given, **options)
    )
    for _ in range(3):
        assert memory.search(vectors[:1], k=1)[0][0].id.endswith("x0")
    assert len(made) <= 4  # the first of them finds out


def test_an_unknown_duplicate_policy_is_an_error_with_the_nearest_name(memory, rng):
    with pytest.raises(MemoryStoreError, match="Did you mean 'replace'"):
        memory.add(texts(1), unit(rng, 1), on_duplicate="replaced")


@pytest.mark.parametrize("on_duplicate", ["skip", "replace"])
def test_a_long_addition_is_as_many_short_ones(rng, on_duplicate):
    # Longer than what is stored at a time; ids, texts, pictures and fields come again, nearby and far away.
    drawn = rng.integers(0, 350, 400)
    documents = [
        Document(
            [f"text {n % 9}", Image(picture(n % 5)), f"text {n % 9}"],
            id=f"d{n}",
            metadata={"n": number, "tags": ["a", n % 3, n % 3 + 0.5, n % 2 == 0, None], "none": []},
        )
        for number, n in enumerate(drawn.tolist())
    ]
    vectors = unit(rng, len(documents))
    with FaissMemory() as at_once, FaissMemory() as one_by_one:
        for memory in (at_once, one_by_one):
            memory.bind(ENCODER)
            memory.add(texts(3), vectors[:3])
        given = at_once.add(iter(documents), vectors, on_duplicate=on_duplicate)
        for document, vector in zip(documents, vectors, strict=True):
            one_by_one.add([document], vector[None], on_duplicate=on_duplicate)
        assert given == [document.id for document in documents]
        assert at_once.verify() == one_by_one.verify() == []
        (found, rows), (expected, expected_rows) = (
            zip(*memory.items(), strict=True) for memory in (at_once, one_by_one)
        )
        assert found == expected and len(found) == 3 + len(set(drawn.tolist()))
        assert np.array_equal(rows, expected_rows)
        for where in ({"tags": 2}, {"tags": 1.5}, {"tags": True}, {"none": None}, {"n": {"$gt": 200}}):
            assert [hit.id for hit in at_once.search(vectors[:1], k=500, where=where)[0]] == [
                hit.id for hit in one_by_one.search(vectors[:1], k=500, where=where)[0]
            ]
        with pytest.raises(DuplicateDocument, match=documents[-1].id):
            at_once.add([*texts(200, start=1000), documents[-1]], unit(rng, 201))
        assert len(at_once) == len(found)


def test_documents_that_ask_the_memory_while_they_are_added_are_an_error_and_not_a_deadlock(memory, rng):
    with pytest.raises(MemoryStoreError, match="Make a list of the documents"):
        memory.add((document for document in texts(2) if memory.get([document.id]) == [None]), unit(rng, 2))
    assert len(memory) == 0


def bad(row, value):
    vectors = np.eye(3, DIM, dtype=np.float32)
    vectors[row] = value
    return vectors


@pytest.mark.parametrize(
    ("vectors", "error", "message"),
    [
        (np.eye(3, DIM - 1), DimensionMismatch, "width 7; the memory has width 8"),
        (np.eye(DIM)[0], MemoryStoreError, r"vector\[None\]"),
        (bad(1, np.nan), MemoryStoreError, "Vector 1 is not finite"),
        (bad(2, np.inf), MemoryStoreError, "Vector 2 is not finite"),
        (bad(1, 0), MemoryStoreError, "Vector 1 has the norm 0, not 1"),
        (np.eye(3, DIM) * 1.01, MemoryStoreError, "Vector 0 has the norm 1.01"),
        ([["a"] * DIM] * 3, MemoryStoreError, "cannot be read"),
        (np.eye(3, DIM, dtype=complex), MemoryStoreError, "cannot be read"),
        (np.eye(2, DIM), MemoryStoreError, "more documents than vectors"),
        (np.eye(4, DIM), MemoryStoreError, "4 vectors for 3 documents"),
    ],
)
def test_vectors_are_checked(memory, vectors, error, message):
    with pytest.raises(error, match=message):
        memory.add(texts(3), vectors)
    assert len(memory) == 0


def test_inputs_are_not_changed_and_may_be_of_any_float_type(memory, rng):
    vectors = unit(rng, 3).astype(np.float64)
    vectors.flags.writeable = False
    documents = texts(3)
    memory.add(documents, vectors)
    assert documents == texts(3)
    assert ids(memory.search(vectors[:1], k=1)[0]) == ["d00000"]
    assert memory.add([], []) == []


def test_a_memory_belongs_to_one_encoder(rng):
    with FaissMemory() as memory:
        with pytest.raises(MemoryStoreError, match=r"Call bind"):
            memory.add(texts(1), unit(rng, 1))
        assert memory.encoder is None
        memory.bind(ENCODER)
        memory.bind(Encoder("clip-test", DIM))
        for other in (Encoder("other", DIM), Encoder("clip-test", 4)):
            with pytest.raises(EncoderMismatch, match=f"clip-test .*{other.fingerprint}"):
                memory.bind(other)
        assert memory.encoder == ENCODER


def test_vectors_can_be_kept_in_half_of_the_room(tmp_path, rng):
    vectors = unit(rng, 40)
    with FaissMemory(tmp_path / "m") as memory:
        memory.bind(ENCODER)
        memory.add(texts(20), vectors[:20])
    with FaissMemory(tmp_path / "m", precision="float16") as memory:
        memory.add(texts(20, 20), vectors[20:])
        expected = np.concatenate([vectors[:20], vectors[20:].astype(np.float16).astype(np.float32)])
        assert np.array_equal([vector for _, vector in memory.items()], expected)
        hits = [found[0] for found in memory.search(vectors, k=1)]
        assert ids(hits) == [f"d{i:05d}" for i in range(40)]
        assert np.array_equal([hit.vector for hit in hits], expected)
        memory.export_read_only(tmp_path / "copy")
    with FaissMemory(tmp_path / "copy", read_only=True) as memory:
        assert np.array_equal([vector for _, vector in memory.items()], expected)
    with pytest.raises(MemoryStoreError, match="No precision 'int8'"):
        FaissMemory(precision="int8")


# Reading and removing


def test_items_come_in_the_order_of_adding_while_others_write(memory, rng):
    documents, vectors = texts(1200), unit(rng, 1200)
    memory.add(documents[600:], vectors[600:])
    memory.add(documents[:600], vectors[:600])
    items = memory.items()
    first = next(items)
    memory.add(texts(1, start=5000), unit(rng, 1))  # not part of what was asked for
    memory.delete(["d00599"])
    seen = [first, *items]
    assert [document for document, _ in seen] == documents[600:] + documents[:599]
    assert np.array_equal(seen[-1][1], vectors[598])


def test_ids_are_a_list(memory):
    with pytest.raises(MemoryStoreError, match=r"Give \['a'\]"):
        memory.delete("a")


# Life


def test_a_closed_memory_cannot_be_used(rng):
    memory = FaissMemory()
    memory.bind(ENCODER)
    memory.add(texts(1), unit(rng, 1))
    hit = memory.search(unit(rng, 1), k=1)[0][0]
    memory.close()
    memory.close()
    uses = [
        lambda: memory.bind(ENCODER),
        lambda: memory.add(texts(1), unit(rng, 1)),
        lambda: memory.search(unit(rng, 1), k=1),
        lambda: memory.get(["a"]),
        lambda: memory.items(),
        lambda: memory.random(1, rng=rng),
        lambda: memory.delete(["a"]),
        lambda: len(memory),
        lambda: memory.refresh(),
        lambda: memory.flush(),
        lambda: hit.document,
    ]
    for use in uses:
        with pytest.raises(MemoryStoreError, match="is closed"):
            use()


def test_a_read_only_memory_ships_in_a_package(tmp_path, rng):
    vectors, folder = unit(rng, 50), tmp_path / "with space #1? 100%"
    with FaissMemory() as memory:
        memory.bind(ENCODER)
        memory.add([*texts(49), Document(["x", Image(picture(5))], id="image")], vectors)
        expected = [ids(hits) for hits in memory.search(vectors, k=3, where={"$not": {"even": True}})]
        memory.export_read_only(folder)
        memory.export_read_only(tmp_path / "fast", snapshot=True)
        with pytest.raises(MemoryStoreError, match="not an empty folder"):
            memory.export_read_only(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["memory.db"]
    assert sorted(path.name.split("-")[0] for path in (tmp_path / "fast").iterdir()) == [
        "index.json",
        "memory.db",
        "vectors",
    ]
    for place in (folder, tmp_path / "fast"):
        before = {path: path.read_bytes() for path in place.iterdir()}
        with FaissMemory(place, read_only=True) as memory:
            memory.bind(ENCODER)
            assert [ids(hits) for hits in memory.search(vectors, k=3, where={"$not": {"even": True}})] == expected
            assert memory.get(["image"])[0].image == Image(picture(5))
            with pytest.raises(MemoryLocked, match="read-only"):
                memory.add(texts(1, start=900), vectors[:1])
            with pytest.raises(MemoryLocked, match="read-only"):
                memory.delete(["image"])
            memory.flush()
        assert {path: path.read_bytes() for path in place.iterdir()} == before
    with FaissMemory(folder) as memory:  # in a folder of one's own it is a memory like any other
        memory.add(texts(1, start=900), vectors[:1])
        assert len(memory) == 51
