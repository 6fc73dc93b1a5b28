"""A `where` filter as a function of metadata: for memories whose backend cannot filter, or not by all of the rules.

The rules are those of `racm3.memories.where`, which compiles the same filters to SQL.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from ..interfaces import Where
from .where import Value, parse, stored

Predicate: TypeAlias = Callable[[Mapping[str, Any]], bool]
Test: TypeAlias = Callable[[list[Value]], bool]  # of the elements of one field

_RANGES = {"$gt": operator.gt, "$gte": operator.ge, "$lt": operator.lt, "$lte": operator.le}


def predicate(where: Where | None) -> Predicate:
    """A function that says whether a document's metadata fit; None fits all. Raises `FilterError`, as every memory does.

    >>> new = predicate({"year": {"$gte": 2020}, "style": {"$ne": "flat"}})
    >>> new({"year": 2024, "style": "noto"}), new({"year": 2024, "style": "flat"}), new({})
    (True, False, False)
    """
    if where is None:
        return lambda metadata: True
    parse(where)  # says what is not well formed
    return _all_of(where)


def _all_of(where: Where) -> Predicate:
    entries = [_entry(name, asked) for name, asked in where.items()]
    return lambda metadata: all(fits(metadata) for fits in entries)


def _entry(name: str, asked: Any) -> Predicate:
    if name in ("$and", "$or"):
        filters, join = [_all_of(one) for one in asked], all if name == "$and" else any
        return lambda metadata: join(fits(metadata) for fits in filters)
    if name == "$not":
        negated = _all_of(asked)
        return lambda metadata: not negated(metadata)
    test = _field(asked if isinstance(asked, Mapping) else {"$eq": asked})
    return lambda metadata: test(_elements(metadata.get(name)))  # a missing field equals None


def _elements(value: Any) -> list[Value]:
    return [stored(element) for element in (value if isinstance(value, (list, tuple)) else [value])]


def _field(operators: Mapping[str, Any]) -> Test:
    tests = [_operator(name, operand) for name, operand in operators.items()]
    return lambda elements: all(test(elements) for test in tests)


def _operator(name: str, operand: Any) -> Test:
    if name == "$not":
        negated = _field(operand)
        return lambda elements: not negated(elements)
    if name in _RANGES:
        compare, (asked, bound) = _RANGES[name], stored(operand)
        return lambda elements: any(kind == asked and compare(value, bound) for kind, value in elements)
    wanted = {stored(value) for value in (operand if name in ("$in", "$nin") else [operand])}
    if name in ("$eq", "$in"):
        return lambda elements: not wanted.isdisjoint(elements)
    return wanted.isdisjoint
