"""A `where` filter as a function of metadata: for memories whose backend cannot filter, or not by all of the rules.

The rules are those of `racm3.memories.where`, which compiles the same filters to SQL.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..interfaces import Where
from .where import parse, stored

_COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {
    "$eq": lambda one, other: one == other,
    "$gt": lambda one, other: one > other,
    "$gte": lambda one, other: one >= other,
    "$lt": lambda one, other: one < other,
    "$lte": lambda one, other: one <= other,
}


def predicate(where: Where | None) -> Callable[[Mapping[str, Any]], bool]:
    """A function that says whether a document's metadata fit; None fits all. Raises `FilterError`, as every memory does.

    >>> new = predicate({"year": {"$gte": 2020}, "style": {"$ne": "flat"}})
    >>> new({"year": 2024, "style": "noto"}), new({"year": 2024, "style": "flat"}), new({})
    (True, False, False)
    """
    if where is None:
        return lambda metadata: True
    parse(where)  # says what is not well formed
    return lambda metadata: _fits(where, metadata)


def _fits(where: Where, metadata: Mapping[str, Any]) -> bool:
    return all(_entry_fits(name, asked, metadata) for name, asked in where.items())


def _entry_fits(name: str, asked: Any, metadata: Mapping[str, Any]) -> bool:
    if name == "$and":
        return all(_fits(one, metadata) for one in asked)
    if name == "$or":
        return any(_fits(one, metadata) for one in asked)
    if name == "$not":
        return not _fits(asked, metadata)
    value = metadata.get(name)  # a missing field equals None
    elements = [stored(element) for element in (value if isinstance(value, (list, tuple)) else [value])]
    if not isinstance(asked, Mapping):
        asked = {"$eq": asked}
    return all(_holds(operator, operand, elements) for operator, operand in asked.items())


def _holds(operator: str, operand: Any, elements: list[tuple[str, Any]]) -> bool:
    """One operator on one field: whether any element, as (kind, value), compares so; kinds never mix."""
    if operator == "$ne":
        return not _holds("$eq", operand, elements)
    if operator == "$in":
        return any(_holds("$eq", one, elements) for one in operand)
    if operator == "$nin":
        return not _holds("$in", operand, elements)
    if operator == "$not":
        return not all(_holds(inner, value, elements) for inner, value in operand.items())
    kind, plain = stored(operand)
    return any(kind == other and _COMPARE[operator](value, plain) for other, value in elements)
