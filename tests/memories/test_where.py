"""What a `where` filter means, against an evaluator that shares nothing with the SQL."""

from __future__ import annotations

import random

import numpy as np
import pytest

from racm3.document import Document
from racm3.errors import FilterError
from racm3.interfaces import Encoder
from racm3.memories.faiss import FaissMemory

MISSING = object()
VALUES = [None, True, False, 0, 1, 1.0, -2, 0.30000000000000004, 2.5, "", "1", "a", "é", "a\0b", "z\ud800"]
NAMES = ["f", "g", "a.b", 'quo"te', "o'clock", "snow ☃", "x'); DROP TABLE documents; --"]


def kind(value):
    return bool if isinstance(value, bool) else float if isinstance(value, (int, float)) else type(value)


def holds(operator, stored, asked):
    """One operator on one field of a document, by the rules that racm3.memories.where states."""
    elements = stored if isinstance(stored, list) else [] if stored is MISSING else [stored]
    same = [element for element in elements if kind(element) is kind(asked)]
    match operator:
        case "$eq":
            return asked in same or (asked is None and stored is MISSING)
        case "$in":
            return any(holds("$eq", stored, one) for one in asked)
        case "$ne":
            return not holds("$eq", stored, asked)
        case "$nin":
            return not holds("$in", stored, asked)
        case "$not":
            return not all(holds(inner, stored, value) for inner, value in asked.items())
        case "$gt":
            return any(element > asked for element in same)
        case "$gte":
            return any(element >= asked for element in same)
        case "$lt":
            return any(element < asked for element in same)
        case "$lte":
            return any(element <= asked for element in same)
    raise AssertionError(operator)


def matches(where, metadata):
    for name, asked in where.items():
        if name == "$and":
            fits = all(matches(one, metadata) for one in asked)
        elif name == "$or":
            fits = any(matches(one, metadata) for one in asked)
        elif name == "$not":
            fits = not matches(asked, metadata)
        else:
            operators = asked if isinstance(asked, dict) else {"$eq": asked}
            fits = all(holds(operator, metadata.get(name, MISSING), value) for operator, value in operators.items())
        if not fits:
            return False
    return True


def random_operators(draw, depth=0):
    operator = draw.choice(["$eq", "$ne", "$in", "$nin", "$gt", "$gte", "$lt", "$lte"] + ["$not"] * (depth < 2))
    if operator in ("$in", "$nin"):
        value = draw.sample(VALUES, draw.randint(0, 3))
    elif operator == "$not":
        value = random_operators(draw, depth + 1)
    else:
        allowed = VALUES if operator in ("$eq", "$ne") else [v for v in VALUES if kind(v) in (float, str)]
        value = draw.choice(allowed)
    return {operator: value}


def random_where(draw, depth=0):
    joined = draw.choice(["$and", "$or", "$not", "field", "field"] if depth < 3 else ["field"])
    if joined == "field":
        return {draw.choice(NAMES): draw.choice([draw.choice(VALUES), random_operators(draw)])}
    if joined == "$not":
        return {"$not": random_where(draw, depth + 1)}
    return {joined: [random_where(draw, depth + 1) for _ in range(draw.randint(1, 3))]}


def memory_of(metadatas):
    memory = FaissMemory()
    memory.bind(Encoder("test", 2))
    documents = [Document("a", id=str(number), metadata=metadata) for number, metadata in enumerate(metadatas)]
    memory.add(documents, np.tile(np.float32([1, 0]), (len(documents), 1)))
    return memory


def found(memory, where):
    return {int(hit.id) for hit in memory.search(np.float32([[1, 0]]), k=10_000, where=where)[0]}


def test_filters_mean_what_the_rules_say():
    draw = random.Random(0)

    def value():
        return draw.sample(VALUES, draw.randint(0, 3)) if draw.random() < 0.3 else draw.choice(VALUES)

    metadatas = [{name: value() for name in NAMES if draw.random() < 0.6} for _ in range(150)]
    with memory_of(metadatas) as memory:
        for _ in range(400):
            where = random_where(draw)
            expected = {number for number, metadata in enumerate(metadatas) if matches(where, metadata)}
            assert found(memory, where) == expected, where


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({}, {0, 1, 2, 3, 4, 5}),
        ({"f": 1}, {0, 3}),  # any element of a list; 1 is not True and not "1"
        ({"f": 1.0}, {0, 3}),
        ({"f": True}, {1}),
        ({"f": {"$ne": 1}}, {1, 2, 4, 5}),  # a missing field is not equal to 1
        ({"f": None}, {5}),  # missing; an empty list is neither missing nor None
        ({"f": {"$gt": 1}}, {3}),
        ({"f": {"$gte": "1"}}, {2}),  # a str is compared with strings alone
        ({"f": {"$in": []}}, set()),
        ({"f": {"$nin": []}}, {0, 1, 2, 3, 4, 5}),
        ({"f": {"$gte": 1, "$lt": 2}}, {0, 3}),
        ({"$not": {"f": {"$exists": 1}}}, FilterError),
    ],
)
def test_the_rules_by_example(where, expected):
    with memory_of([{"f": 1}, {"f": True}, {"f": "1"}, {"f": [1, 3]}, {"f": []}, {"g": 1}]) as memory:
        if expected is FilterError:
            with pytest.raises(FilterError):
                found(memory, where)
        else:
            assert found(memory, where) == expected


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
        assert found(memory, mixed) == {number for number in range(5) if matches(mixed, {"f": number})}
        for _ in range(2000):
            nested = {"$not": nested}
        with pytest.raises(FilterError, match="at most 24 deep"):
            found(memory, nested)
