"""How a memory searches: exactly, ties by id, and with filters and exclusions before the top-k."""

from __future__ import annotations

import random as stdlib_random
from typing import Any

import numpy as np

from ..document import Document, Image
from ..errors import DimensionMismatch, FilterError, MemoryStoreError
from ..memories.predicate import predicate
from .contract import expect, expect_equal, expect_error
from .memory_ground import DIM, MemoryGround, axis, expect_nearest, ids, picture, same_ids, texts, unit

# What each filter finds among FIELDS, by hand; `racm3.memories.where` states the rules.
FIELDS: tuple[dict[str, Any], ...] = (
    {"f": 1},
    {"f": True},
    {"f": "1"},
    {"f": [1, 3]},
    {"f": []},
    {"g": 1},
    {"f": None},
)
FILTERS: tuple[tuple[dict[str, Any], set[int]], ...] = (
    ({}, {0, 1, 2, 3, 4, 5, 6}),
    ({"f": 1}, {0, 3}),
    ({"f": {"$eq": 1.0}}, {0, 3}),
    ({"f": True}, {1}),
    ({"f": {"$eq": "1"}}, {2}),
    ({"f": {"$ne": 1}}, {1, 2, 4, 5, 6}),
    ({"f": None}, {5, 6}),
    ({"f": {"$ne": None}}, {0, 1, 2, 3, 4}),
    ({"f": {"$gt": 1}}, {3}),
    ({"f": {"$gte": 1}}, {0, 3}),
    ({"f": {"$lt": 2}}, {0, 3}),
    ({"f": {"$lte": 0}}, set()),
    ({"f": {"$gte": "0"}}, {2}),
    ({"f": {"$in": [3, "1"]}}, {2, 3}),
    ({"f": {"$in": []}}, set()),
    ({"f": {"$nin": [1, True]}}, {2, 4, 5, 6}),
    ({"f": {"$nin": []}}, {0, 1, 2, 3, 4, 5, 6}),
    ({"f": {"$gte": 1, "$lt": 2}}, {0, 3}),
    ({"f": {"$not": {"$eq": 1}}}, {1, 2, 4, 5, 6}),
    ({"f": 1, "g": None}, {0, 3}),
    ({"$and": [{"f": {"$ne": True}}, {"g": {"$ne": 1}}]}, {0, 2, 3, 4, 6}),
    ({"$or": [{"f": True}, {"g": 1}]}, {1, 5}),
    ({"$not": {"$or": [{"f": 1}, {"$and": [{"f": None}, {"g": 1}]}]}}, {1, 2, 4, 6}),
    ({"$and": [{"$not": {"f": {"$in": [1, "1"]}}}, {"$or": [{"f": {"$ne": None}}, {"g": 1}]}]}, {1, 4, 5}),
)
MALFORMED: tuple[Any, ...] = (
    {"f": {"$equal": 1}}, {"$adn": [{"f": 1}]}, {"$eq": 1}, {"f": {}}, {"f": {"g": 1}}, {"f": [1, 2]},
    {"f": {"$in": "abc"}}, {"f": {"$gt": None}}, {"f": {"$not": 1}}, {"$and": []}, {"$or": {"f": 1}}, "f = 1",
)  # fmt: skip
NAMES = ("f", "g", "a.b", 'quo"te', "o'clock", "snow ☃", "x'); DROP TABLE documents; --")
VALUES = (None, True, False, 0, 1, 1.0, -2, 0.30000000000000004, 2.5, "", "1", "a", "é", "zoë ☃")


class SearchChecks(MemoryGround):
    def test_a_search_finds_exactly_the_nearest(self) -> None:
        """The hits are those of brute force, best first, for every k: more than there are gives all, 0 gives none."""
        memory, documents, vectors = self.filled(300)
        queries = unit(1, 4)
        for k in (0, 1, 7, 300, 1000):
            answers = memory.search(queries, k=k)
            expect_equal(len(answers), 4, "answers to 4 queries")
            for query, hits in zip(queries, answers, strict=True):
                expect_nearest(hits, query, k, zip(documents, vectors, strict=True))
        with expect_error(MemoryStoreError, "k=-1"):
            memory.search(queries, k=-1)

    def test_ties_come_in_order_of_id(self) -> None:
        """Of equal scores the smaller id comes first, and the smallest ids are the ones inside of the top-k."""
        memory = self.new_memory()
        order = np.random.default_rng(0).permutation(60)
        twins = [Document("twin", id=f"{number:03d}") for number in order]
        memory.add([*twins, Document("best", id="zzz")], np.concatenate([axis(1, 60), axis(0)]))
        query = (axis(0) * np.float32(0.8) + axis(1) * np.float32(0.6)).astype(np.float32)
        expect_equal(ids(memory.search(query, k=6)[0]), ["zzz", "000", "001", "002", "003", "004"], "ties")
        excluded = memory.search(query, k=3, exclude=[{"000", "002", "zzz"}])[0]
        expect_equal(ids(excluded), ["001", "003", "004"], "ties without some of them")

    def test_an_empty_memory_finds_nothing(self) -> None:
        """Nothing stored, nothing found, and no error; no queries, no answers."""
        memory = self.new_memory()
        expect_equal(memory.search(unit(0, 2), k=3), [[], []], "a search in an empty memory")
        expect_equal(memory.search(unit(0, 1), k=3, where={"a": 1}, exclude=[["a"]]), [[]], "the same with a filter")
        expect_equal(memory.search(np.zeros((0, DIM), np.float32), k=3), [], "a search without queries")
        expect_equal(memory.random(3, rng=np.random.default_rng(0)), [], "random documents of an empty memory")
        expect_equal(len(memory), 0, "len()")
        expect_equal(list(memory.items()), [], "items()")
        expect_equal(memory.get(["a"]), [None], "get() of an unknown id")
        expect_equal(memory.delete(["a"]), 0, "delete() of an unknown id")
        expect_equal(memory.add([], np.zeros((0, DIM), np.float32)), [], "add() of nothing")

    def test_a_hit_carries_what_a_sampler_needs(self) -> None:
        """Score, vector (float32 [dim], its own copy), content hashes of the parts; the document, when it is asked for."""
        memory, image = self.new_memory(), Image(picture(1))
        documents, vectors = [Document(["kite", image], id="a"), Document("dog", id="b")], unit(0, 2)
        memory.add(documents, vectors)
        hit = memory.search(vectors[:1], k=1)[0][0]
        expect_equal(hit.id, "a", "the nearest")
        expect(isinstance(hit.score, float), f"the score is a {type(hit.score).__name__}, not a float")
        expect_equal(hit.hashes, frozenset(part.content_hash for part in documents[0].parts), "hashes")
        vector = hit.vector
        expect(isinstance(vector, np.ndarray), "the hit has no vector")
        assert vector is not None
        expect_equal((vector.dtype, vector.shape), (np.dtype(np.float32), (DIM,)), "dtype and shape of the vector")
        expect(np.allclose(vector, vectors[0], atol=1e-6), "the vector is not the one that was stored")
        expect_equal(hit.document, documents[0], "the document of a hit")
        if vector.flags.writeable:
            vector[:] = 0
            expect_nearest(memory.search(vectors[:1], k=1)[0], vectors[0], 1, zip(documents, vectors, strict=True))

    def test_filters_mean_what_the_rules_say(self) -> None:
        """Each operator, their nesting, lists, None, missing fields and types, case by case (`racm3.memories.where`)."""
        memory = self.new_memory()
        documents = [Document("x", id=str(number), metadata=fields) for number, fields in enumerate(FIELDS)]
        memory.add(documents, axis(0, len(documents)))
        for where, expected in FILTERS:
            hits = memory.search(axis(0), k=99, where=where)[0]
            same_ids(hits, map(str, expected), f"where={where}")

    def test_filters_of_any_shape_agree_with_the_rules(self) -> None:
        """Random filters over odd field names and values find what `racm3.memories.predicate` lets through."""
        draw, memory = stdlib_random.Random(0), self.new_memory()

        def value() -> Any:
            return draw.sample(VALUES, draw.randint(0, 3)) if draw.random() < 0.3 else draw.choice(VALUES)

        documents = [
            Document("x", id=str(number), metadata={name: value() for name in NAMES if draw.random() < 0.6})
            for number in range(60)
        ]
        memory.add(documents, axis(0, len(documents)))
        for _ in range(60):
            where = random_filter(draw)
            fits = predicate(where)
            expected = [document.id for document in documents if fits(document.metadata)]
            same_ids(memory.search(axis(0), k=99, where=where)[0], expected, f"where={where}")

    def test_a_malformed_filter_is_refused(self) -> None:
        """An unknown operator, or an operand of the wrong kind, is a `FilterError`, also in an empty memory."""
        empty, (memory, _, _) = self.new_memory(), self.filled(2)
        for where in MALFORMED:
            for asked in (memory, empty):
                with expect_error(FilterError, f"where={where!r}"):
                    asked.search(unit(0, 1), k=1, where=where)
        with expect_error(FilterError, f"random() with where={MALFORMED[0]!r}"):
            memory.random(1, rng=np.random.default_rng(0), where=MALFORMED[0])

    def test_filters_and_exclusions_apply_before_the_top_k(self) -> None:
        """With the nearest thousand filtered out or excluded, the next ones are found."""
        memory = self.new_memory()
        angles = np.linspace(0, 1, 1005, dtype=np.float32)
        vectors = np.zeros((1005, DIM), np.float32)
        vectors[:, 0], vectors[:, 1] = np.cos(angles), np.sin(angles)
        memory.add(texts(1005), vectors)
        far = [f"d0100{i}" for i in range(5)]
        late = {"i": {"$gte": 1000}}
        expect_equal(ids(memory.search(vectors[:1], k=2, where=late)[0]), far[:2], "the nearest that fit the filter")
        near = {f"d{i:05d}" for i in range(1000)}
        expect_equal(ids(memory.search(vectors[:1], k=2, exclude=[near])[0]), far[:2], "the nearest not excluded")
        both = memory.search(vectors[:1], k=9, where=late, exclude=[{far[0]}])[0]
        expect_equal(ids(both), far[1:], "the nearest that fit and are not excluded")

    def test_exclusions_name_ids_documents_or_parts(self) -> None:
        """Each query has exclusions of its own: ids, content hashes of documents, or of parts; unknown ones do nothing."""
        memory, shared = self.new_memory(), Image(picture(0))
        documents = [
            Document(["one caption", shared], id="a"),
            Document(["another caption", shared], id="b"),
            Document("alone", id="c"),
        ]
        memory.add(documents, axis(0, 3))
        cases: list[tuple[list[str], list[str]]] = [
            ([], ["a", "b", "c"]),
            (["a"], ["b", "c"]),
            ([documents[1].content_hash], ["a", "c"]),
            ([shared.content_hash], ["c"]),
            ([documents[2].parts[0].content_hash, "unknown"], ["a", "b"]),
        ]
        answers = memory.search(axis(0, len(cases)), k=3, exclude=[names for names, _ in cases])
        for hits, (names, expected) in zip(answers, cases, strict=True):
            expect_equal(ids(hits), expected, f"exclude={names}")
        with expect_error(MemoryStoreError, "exclude for 2 queries where there is 1"):
            memory.search(axis(0), k=1, exclude=[[], []])

    def test_queries_are_checked(self) -> None:
        """Query vectors of another width are a `DimensionMismatch`; NaN, or not of unit norm, a `MemoryStoreError`."""
        memory, _, vectors = self.filled(3)
        with expect_error(DimensionMismatch, "a query that is too short"):
            memory.search(unit(0, 1, DIM - 1), k=1)
        for bad, what in ((vectors * 2, "a query of norm 2"), (vectors * np.nan, "a query of NaN")):
            with expect_error(MemoryStoreError, what):
                memory.search(bad.astype(np.float32), k=1)


def random_filter(draw: stdlib_random.Random, depth: int = 0) -> dict[str, Any]:
    """A well-formed filter over NAMES and VALUES, nested at most four deep."""
    joined = draw.choice(["$and", "$or", "$not", "field", "field"] if depth < 3 else ["field"])
    if joined == "field":
        return {draw.choice(NAMES): draw.choice([draw.choice(VALUES), _random_operators(draw)])}
    if joined == "$not":
        return {"$not": random_filter(draw, depth + 1)}
    return {joined: [random_filter(draw, depth + 1) for _ in range(draw.randint(1, 3))]}


def _random_operators(draw: stdlib_random.Random, depth: int = 0) -> dict[str, Any]:
    operator = draw.choice(["$eq", "$ne", "$in", "$nin", "$gt", "$gte", "$lt", "$lte"] + ["$not"] * (depth < 2))
    if operator in ("$in", "$nin"):
        return {operator: draw.sample(VALUES, draw.randint(0, 3))}
    if operator == "$not":
        return {operator: _random_operators(draw, depth + 1)}
    ordered = [value for value in VALUES if value is not None and not isinstance(value, bool)]
    return {operator: draw.choice(VALUES if operator in ("$eq", "$ne") else ordered)}
