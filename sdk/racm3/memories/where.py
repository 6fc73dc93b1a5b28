"""Filters on metadata: a Mongo-style `where`, checked once and compiled to sets of documents that SQLite can find.

    {"style": "noto"}                                   the field equals a value (short for $eq)
    {"year": {"$gte": 2020, "$lt": 2024}}               all operators on a field hold
    {"$or": [{"tag": {"$in": ["a", "b"]}}, {"$not": {"seen": True}}]}

Rules, each decided:
- `$eq`, `$in`, `$gt`, `$gte`, `$lt` and `$lte` match a field that holds a list when any element does.
- `$ne`, `$nin` and `$not` are negations: they match whatever `$eq`, `$in` and the negated filter do not match, a missing
  field among them. `$not` stands before a filter (`{"$not": {...}}`) or before a field's operators (`{"f": {"$not": {...}}}`).
- Different types never match or compare: "1" is not 1, and True is not 1; int and float are one type.
- None equals None and a missing field. An empty list is neither missing nor None.
- `$gt` and its kin compare numbers with numbers, and strings with strings by code point. Integers beyond 64 bits are
  compared as floats.
- Several entries of one mapping all have to hold; an empty filter matches everything; `$in: []` matches nothing.
- Field names are literal: dots, quotes and spaces in them mean nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from ..errors import FilterError, nearest
from .text_bytes import encoded

if TYPE_CHECKING:
    import numpy as np

Value: TypeAlias = tuple[str, Any]  # (kind, value), as a value stands in the table `fields`

NONE: Value = ("none", 0)
EMPTY: Value = ("empty", 0)  # says that the field is there although its list has no element

_RANGES = {"$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}
_FIELD_OPERATORS = ("$eq", "$ne", "$in", "$nin", *_RANGES, "$not")
_FILTER_OPERATORS = ("$and", "$or", "$not")
_MAX_DEPTH = 24
_MAX_VALUES = 30_000  # SQLite takes 32,766 parameters in one statement


@dataclass(frozen=True)
class Having:
    """The documents that have a value of a field. test: SQL on the table `fields`, with its parameters."""

    test: str
    parameters: tuple[Any, ...]


@dataclass(frozen=True)
class Without:
    """All documents but those of a condition."""

    condition: Condition


@dataclass(frozen=True)
class Joined:
    """The documents of every condition, or of any; of none of them, every document and none."""

    every: bool
    conditions: tuple[Condition, ...]


Condition: TypeAlias = "Having | Without | Joined"


def evaluate(condition: Condition, having: Callable[[Having], np.ndarray], documents: int) -> np.ndarray:
    """Which documents a condition holds for: bool [documents]. having: says so for one test."""
    import numpy as np

    if isinstance(condition, Having):
        return having(condition)
    if isinstance(condition, Without):
        return ~evaluate(condition.condition, having, documents)
    found = np.full(documents, condition.every)
    for one in condition.conditions:
        (np.logical_and if condition.every else np.logical_or)(found, evaluate(one, having, documents), out=found)
    return found


def fields_in(where: Mapping[str, Any]) -> set[str]:
    """The names of the fields that a well-formed filter looks at."""
    found: set[str] = set()
    for name, value in where.items():
        if name in _FILTER_OPERATORS:
            for inner in value if isinstance(value, (list, tuple)) else [value]:
                found |= fields_in(inner)
        else:
            found.add(name)
    return found


def stored(value: object) -> Value:
    """A scalar of metadata as (kind, value). Kinds keep SQLite from comparing what differs in type."""
    if value is None:
        return NONE
    if isinstance(value, bool):
        return "bool", int(value)
    if isinstance(value, str):
        return "text", encoded(value)
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        try:
            return "number", float(value)
        except OverflowError:
            return "number", math.inf if value > 0 else -math.inf
    if isinstance(value, (int, float)) and not math.isnan(value):
        return "number", value
    raise FilterError(
        f"A filter compares with str, int, float, bool or None, not {value!r}.", "For any of several values use $in."
    )


def parse(where: Mapping[str, Any]) -> Condition:
    """Check a filter and compile it. `FilterError` says what is not well formed, with the nearest known operator."""
    condition = _filter(where, 0)
    if (compared := _values(condition)) > _MAX_VALUES:
        raise FilterError(
            f"The filter compares with {compared:,} names and values; the limit is {_MAX_VALUES:,}.",
            "Ask in several searches.",
        )
    return condition


def _values(condition: Condition) -> int:
    if isinstance(condition, Joined):
        return sum(map(_values, condition.conditions))
    return _values(condition.condition) if isinstance(condition, Without) else len(condition.parameters)


def _filter(where: object, depth: int) -> Condition:
    if not isinstance(where, Mapping):
        raise FilterError(f"A filter is a mapping such as {{'style': 'noto'}}, not {where!r}.")
    if depth > _MAX_DEPTH:
        raise FilterError(f"A filter is nested at most {_MAX_DEPTH} deep.")
    conditions: list[Condition] = []
    for name, value in where.items():
        if not isinstance(name, str):
            raise FilterError(f"A field name is a str, not {name!r}.")
        if name in ("$and", "$or"):
            if not isinstance(value, (list, tuple)) or not value:
                raise FilterError(f"{name} takes a list of one or more filters, not {value!r}.")
            conditions.append(Joined(name == "$and", tuple(_filter(item, depth + 1) for item in value)))
        elif name == "$not":
            conditions.append(Without(_filter(value, depth + 1)))
        elif name.startswith("$"):
            raise FilterError(f"No operator {name!r} before a filter.", _suggest(name, _FILTER_OPERATORS))
        elif isinstance(value, Mapping):
            conditions.append(_operators(name, value, depth + 1))
        else:
            conditions.append(_equal(name, value))
    return conditions[0] if len(conditions) == 1 else Joined(True, tuple(conditions))


def _operators(name: str, operators: Mapping[str, Any], depth: int) -> Condition:
    if not operators:
        raise FilterError(f"The filter on {name!r} is empty.", "Give a value, or an operator such as $eq.")
    if depth > _MAX_DEPTH:
        raise FilterError(f"A filter is nested at most {_MAX_DEPTH} deep.")
    conditions: list[Condition] = []
    for operator, value in operators.items():
        if operator not in _FIELD_OPERATORS:
            raise FilterError(f"No operator {operator!r} on field {name!r}.", _suggest(operator, _FIELD_OPERATORS))
        if operator == "$not":
            if not isinstance(value, Mapping):
                raise FilterError(f"$not on field {name!r} takes operators, not {value!r}.", "Use $ne for a value.")
            conditions.append(Without(_operators(name, value, depth + 1)))
        elif operator in _RANGES:
            conditions.append(_range(name, operator, value))
        else:
            positive = _equal if operator in ("$eq", "$ne") else _any_of
            condition = positive(name, value)
            conditions.append(Without(condition) if operator in ("$ne", "$nin") else condition)
    return conditions[0] if len(conditions) == 1 else Joined(True, tuple(conditions))


def _equal(name: str, value: object) -> Condition:
    return _any_of(name, [value])


def _any_of(name: str, values: object) -> Condition:
    if not isinstance(values, Collection) or isinstance(values, (str, bytes, Mapping)):
        raise FilterError(f"$in and $nin on field {name!r} take a list of values, not {values!r}.")
    kinds: dict[str, list[Any]] = {}
    for value in values:
        kind, plain = stored(value)
        kinds.setdefault(kind, []).append(plain)
    conditions: list[Condition] = [
        Having(f"name = ? AND kind = ? AND value IN ({','.join('?' * len(plains))})", (encoded(name), kind, *plains))
        for kind, plains in kinds.items()
    ]
    if NONE[0] in kinds:
        conditions.append(Without(Having("name = ?", (encoded(name),))))
    return conditions[0] if len(conditions) == 1 else Joined(False, tuple(conditions))


def _range(name: str, operator: str, value: object) -> Condition:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise FilterError(f"{operator} on field {name!r} compares with a number or a str, not {value!r}.")
    kind, plain = stored(value)
    return Having(f"name = ? AND kind = ? AND value {_RANGES[operator]} ?", (encoded(name), kind, plain))


def _suggest(operator: object, known: Collection[str]) -> str:
    return f"{nearest(str(operator), known)} Known: {', '.join(known)}.".strip()
