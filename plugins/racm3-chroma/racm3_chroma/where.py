"""Filters in Chroma's own language: the rules of `racm3.memories.where`, over fields that are made for them.

Chroma compares scalars of one type; it knows neither None nor missing fields, takes an int and a float for different
things, has no negation, and does not order strings. So every document carries, beside its metadata,

- one list of tokens, a token for each field, each kind of value in it, and each value: equality is `$contains`;
- for each field with numbers its smallest and largest, as integers: "any element is above x" asks for the largest.

What cannot be said so (order of strings, hundreds of values) is `Unsayable`, and the memory reads the metadata itself.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from racm3.interfaces import Where
from racm3.memories.where import EMPTY, NONE, Value, stored

Filter: TypeAlias = dict[str, Any]  # as Chroma takes it

PREFIX = "racm3:"
STAMP = f"{PREFIX}stamp"  # int >= 0, in every record
TOKENS = f"{PREFIX}tokens"  # list of str, in every record
ALL: Filter = {STAMP: {"$gte": 0}}
NOTHING: Filter = {STAMP: {"$lt": 0}}

_RANGES = ("$gt", "$gte", "$lt", "$lte")
_OPPOSITE = {"$gt": "$lte", "$gte": "$lt", "$lt": "$gte", "$lte": "$gt", "$and": "$or", "$or": "$and"}
_MAX_TERMS = 300  # Chroma's time grows with the square of their number, and SQLite refuses 1,000
_MAX_TOKEN = 200  # characters; a longer value goes by its hash
_INT64 = range(-(2**63), 2**63)


class Unsayable(Exception):
    """The filter has no form in Chroma's language."""


# What a document carries


def fields_of(metadata: Mapping[str, Any]) -> dict[str, int]:
    """The smallest and largest number of each field: 64-bit integers under names of their own."""
    found: dict[str, int] = {}
    for name, values in _elements(metadata):
        for kind, numbers in _numbers(values).items():
            found[_extreme("max", kind, name)] = max(numbers)
            found[_extreme("min", kind, name)] = min(numbers)
    return found


def tokens_of(metadata: Mapping[str, Any], hashes: Iterable[str]) -> list[str]:
    """Tokens of a document: what its fields hold, and its content hashes."""
    found = dict.fromkeys(hash_token(name) for name in hashes)
    for name, values in _elements(metadata):
        found[_token(name)] = None
        found |= dict.fromkeys(_token(name, kind) for kind in _numbers(values))
        found |= dict.fromkeys(_token(name, *value) for value in values if value != EMPTY)
    return list(found)


def hash_token(name: str) -> str:
    """The token of a document that has a content hash, of its own or of a part."""
    return f"#{name}"


# What a filter asks for


def translated(where: Where) -> Filter:
    """A well-formed filter (see `racm3.memories.where.parse`) as Chroma takes it, exactly. Raises `Unsayable`."""
    made = _filter(where, negated=False)
    if _terms(made) > _MAX_TERMS:
        raise Unsayable(f"It has more than {_MAX_TERMS} terms.")
    return made


def any_of(tokens: Sequence[str]) -> list[Filter]:
    """Filters for the documents that have one of the tokens, each short enough for Chroma."""
    terms = [_has(token) for token in tokens]
    return [_joined("$or", terms[start : start + _MAX_TERMS]) for start in range(0, len(terms), _MAX_TERMS)]


def _filter(where: Where, *, negated: bool) -> Filter:
    parts = []
    for name, value in where.items():
        if name in ("$and", "$or"):
            word = _OPPOSITE[name] if negated else name
            parts.append(_joined(word, [_filter(one, negated=negated) for one in value]))
        elif name == "$not":
            parts.append(_filter(value, negated=not negated))
        else:
            operators = value if isinstance(value, Mapping) else {"$eq": value}
            parts.append(_operators(name, operators, negated=negated))
    return _joined("$or" if negated else "$and", parts)


def _operators(name: str, operators: Mapping[str, Any], *, negated: bool) -> Filter:
    parts = []
    for operator, value in operators.items():
        if operator == "$not":
            parts.append(_operators(name, value, negated=not negated))
        elif operator in _RANGES:
            parts.append(_range(name, operator, stored(value), negated=negated))
        else:
            values = [value] if operator in ("$eq", "$ne") else value
            parts.append(_any_value(name, map(stored, values), negated=negated ^ (operator in ("$ne", "$nin"))))
    return _joined("$or" if negated else "$and", parts)


def _any_value(name: str, values: Iterable[Value], *, negated: bool) -> Filter:
    parts = []
    for value in dict.fromkeys(values):
        parts.append(_has(_token(name, *value), negated=negated))
        if value == NONE:  # equals a missing field too
            parts.append(_has(_token(name), negated=not negated))
    return _joined("$and" if negated else "$or", parts)


def _range(name: str, operator: str, value: Value, *, negated: bool) -> Filter:
    kind, bound = value
    if kind != "number":
        raise Unsayable("Chroma does not order strings.")
    parts = []
    for kind, (comparison, limit) in _limits(operator, bound).items():
        field = _extreme("max" if operator in ("$gt", "$gte") else "min", kind, name)
        if limit not in _INT64:  # beyond all that can be stored: every such number is in, or none
            holds = (limit < 0) == (operator in ("$gt", "$gte"))
            parts.append(_has(_token(name, kind), negated=negated) if holds else ALL if negated else NOTHING)
        elif negated:
            parts.append({"$or": [{field: {_OPPOSITE[comparison]: limit}}, _has(_token(name, kind), negated=True)]})
        else:
            parts.append({field: {comparison: limit}})
    return _joined("$and" if negated else "$or", parts)


def _limits(operator: str, bound: int | float) -> dict[str, tuple[str, int]]:
    """For each kind of number that is stored, the comparison of integers that means `operator bound`."""
    above = operator in ("$gt", "$gte")
    if math.isinf(bound):
        whole = 2**64 if bound > 0 else -(2**64)
    else:
        # x > 2.5 is x > 2 for whole x, and x >= 2.5 is x >= 3.
        whole = math.floor(bound) if operator in ("$gt", "$lte") else math.ceil(bound)
    near, comparison = float(bound), operator
    if near != bound:  # an integer between two floats: those above it are those from the upper of the two on
        comparison = ("$gte" if near > bound else "$gt") if above else ("$lte" if near < bound else "$lt")
    return {"int": (operator, whole), "float": (comparison, _ordered(near))}


def _ordered(number: float) -> int:
    """A float as a 64-bit integer, in the same order: Chroma reads floats out of JSON, which may be off by a bit."""
    bits: int = struct.unpack("<q", struct.pack("<d", number))[0]
    return bits if bits >= 0 else bits ^ (2**63 - 1)


def _elements(metadata: Mapping[str, Any]) -> Iterable[tuple[str, list[Value]]]:
    """Each field, and the values in it, as `racm3.memories.where` compares them."""
    for name, value in metadata.items():
        if isinstance(value, (list, tuple)):
            yield name, [stored(one) for one in value] or [EMPTY]
        else:
            yield name, [stored(value)]


def _numbers(values: Iterable[Value]) -> dict[str, list[int]]:
    """The numbers among some values, as integers that keep their order: whole ones, and others."""
    found: dict[str, list[int]] = {}
    for kind, plain in values:
        if kind == "number" and (whole := _whole(plain)) is not None:
            found.setdefault("int", []).append(whole)
        elif kind == "number":
            found.setdefault("float", []).append(_ordered(plain))
    return found


def _whole(number: int | float) -> int | None:
    """A number as an integer, if it is one of 64 bits: 1 and 1.0 are equal."""
    if math.isinf(number) or number != int(number) or int(number) not in _INT64:
        return None
    return int(number)


def _token(name: str, kind: str | None = None, plain: Any = None) -> str:
    """What stands for "has this field" (kind None), "has such a value in it" (plain None), or "has this value"."""
    if isinstance(plain, bytes):
        plain = plain.decode("utf-8", "surrogatepass")
    elif kind == "number":
        whole = _whole(plain)
        plain = plain if whole is None else whole
    text = json.dumps([name, kind, plain])
    return text if len(text) <= _MAX_TOKEN else hashlib.sha256(text.encode()).hexdigest()


def _extreme(which: str, kind: str, name: str) -> str:
    # Escaped as in JSON, since Chroma takes no lone surrogates.
    return f"{PREFIX}{which} {kind} {json.dumps(name)}"


def _has(token: str, *, negated: bool = False) -> Filter:
    return {TOKENS: {"$not_contains" if negated else "$contains": token}}


def _joined(word: str, parts: list[Filter]) -> Filter:
    """Chroma joins two filters or more."""
    if not parts:
        return ALL if word == "$and" else NOTHING
    return parts[0] if len(parts) == 1 else {word: parts}


def _terms(made: Filter) -> int:
    return sum(sum(map(_terms, value)) if name in ("$and", "$or") else 1 for name, value in made.items())
