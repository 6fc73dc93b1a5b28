"""What a `where` filter means: as SQL and as a function of metadata, two evaluators that have to agree."""

from __future__ import annotations

import random

import numpy as np
import pytest

from racm3.document import Document
from racm3.errors import FilterError
from racm3.interfaces import Encoder
from racm3.memories.faiss import FaissMemory
from racm3.memories.predicate import predicate
from racm3.testing.memory_search import NAMES, VALUES, random_filter

STORED = (*VALUES, "a\0b", "z\ud800")


def memory_of(metadatas):
    memory = FaissMemory()
    memory.bind(Encoder("test", 2))
    documents = [Document("a", id=str(number), metadata=metadata) for number, metadata in enumerate(metadatas)]
    memory.add(documents, np.tile(np.float32([1, 0]), (len(documents), 1)))
    return memory


def found(memory, where):
    return {int(hit.id) for hit in memory.search(np.float32([[1, 0]]), k=10_000, where=where)[0]}


def test_the_sql_and_the_function_of_metadata_agree():
    draw = random.Random(0)

    def value():
        return draw.sample(STORED, draw.randint(0, 3)) if draw.random() < 0.3 else draw.choice(STORED)

    metadatas = [{name: value() for name in NAMES if draw.random() < 0.6} for _ in range(150)]
    with memory_of(metadatas) as memory:
        for _ in range(400):
            where = random_filter(draw)
            fits = predicate(where)
            expected = {number for number, metadata in enumerate(metadatas) if fits(metadata)}
            assert found(memory, where) == expected, where


def test_integers_of_any_size_can_be_stored_and_asked_for():
    with memory_of([{"n": 2**63 - 1}, {"n": 2**70}, {"n": -(10**400)}]) as memory:
        assert found(memory, {"n": 2**63 - 1}) == {0}
        assert found(memory, {"n": {"$gt": 2**69}}) == {1}
        assert found(memory, {"n": {"$lt": 0}}) == {2}
        assert memory.get(["2"])[0].metadata["n"] == -(10**400)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"f": {"$gte ": 1}}, "Did you mean '\\$gte'"),
        ({"f": {"$equal": 1}}, "Known: \\$eq"),
        ({"$adn": [{"f": 1}]}, "Did you mean '\\$and'"),
        ({"$eq": 1}, "No operator '\\$eq' before a filter"),
        ({"f": {}}, "is empty"),
        ({"f": {"g": 1}}, "No operator 'g'"),
        ({"f": [1, 2]}, "use \\$in"),
        ({"f": {"$in": "abc"}}, "a list of values"),
        ({"f": {"$gt": None}}, "a number or a str"),
        ({"f": {"$gt": True}}, "a number or a str"),
        ({"f": float("nan")}, "not nan"),
        ({"f": {"$not": 1}}, "Use \\$ne"),
        ({"$and": []}, "one or more filters"),
        ({"$or": {"f": 1}}, "one or more filters"),
        ({1: 2}, "A field name is a str"),
        ("f = 1", "A filter is a mapping"),
        ({"f": {"$in": list(range(40_000))}}, "the limit is 30,000"),
    ],
)
def test_a_malformed_filter_is_an_error_that_says_how_to_mend_it(where, message):
    with memory_of([{}]) as memory, pytest.raises(FilterError, match=message):
        found(memory, where)


def test_large_and_deep_filters_work_or_are_refused():
    with memory_of([{"f": number} for number in range(5)]) as memory:
        assert found(memory, {"$or": [{"f": number} for number in range(3000)]}) == {0, 1, 2, 3, 4}
        assert found(memory, {"f": {"$in": list(range(3, 20_000))}}) == {3, 4}
        nested = {"f": 1}
        for _ in range(24):
            nested = {"$not": nested}
        assert found(memory, nested) == {1}
        mixed = {"f": 1}
        for _ in range(8):
            mixed = {"$not": {"$and": [mixed, {"f": {"$lt": 3}}]}}
        fits = predicate(mixed)
        assert found(memory, mixed) == {number for number in range(5) if fits({"f": number})}
        for _ in range(2000):
            nested = {"$not": nested}
        with pytest.raises(FilterError, match="at most 24 deep"):
            found(memory, nested)
