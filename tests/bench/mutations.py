"""What can become of a file: bits, bytes and pages of it changed, lost, doubled, or those of another file.

Every mutation is drawn from a `random.Random`, so that a seed tells it whole.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

PAGES = (512, 4096, 16384)
SIZES = (1, 2, 4, 8)
# What programs compare with: zero, the ends of every width of integer, powers of two and their neighbours.
INTEGERS = sorted({n for bits in range(65) for n in (2**bits - 1, 2**bits, 2**bits + 1) if n < 2**64})
# What may stand where something else is expected.
ODD: tuple[Any, ...] = (
    None, b"", b"\0", b"\xff" * 8, "", "x" * 70_000, "hnsw", "IVF4,Flat", "ivf-pq", "exact\0", "8", 0.5, -0.0,
    float("inf"), -1, *[number for number in INTEGERS if number < 2**63],
)  # fmt: skip


class Wrong(Exception):
    """An answer that is neither right nor an error of ours."""


def mutated(data: bytes, other: bytes, draw: random.Random) -> bytes:
    """Another content of a file. other: that of a related one, of which pieces can come in."""
    changed = bytearray(data)
    while changed == data:
        for _ in range(draw.choice((1, 1, 1, 2, 3, 8))):
            draw.choice(MUTATIONS)(changed, other, draw)
        if not data and not other:
            changed += b"\0"
    return bytes(changed)


def place(data: bytes | bytearray, draw: random.Random) -> int:
    """Somewhere in a file; often near its start or the start of a page, where the structure of most formats stands."""
    if not data:
        return 0
    if draw.random() < 0.5:
        return draw.randrange(len(data))
    page = draw.choice((len(data), *PAGES))
    start = draw.randrange(0, len(data), page)
    return min(start + int(2 ** draw.uniform(0, 8)) - 1, len(data) - 1)


def flip(data: bytearray, other: bytes, draw: random.Random) -> None:
    for _ in range(draw.choice((1, 1, 2, 8))):
        if data:
            data[place(data, draw)] ^= 1 << draw.randrange(8)


def run(data: bytearray, other: bytes, draw: random.Random) -> None:
    start, length = place(data, draw), int(2 ** draw.uniform(0, 9))
    value = draw.choice((b"\0", b"\xff", draw.randbytes(1), draw.randbytes(length)))
    data[start : start + length] = (value * length)[: len(data[start : start + length])]


def integer(data: bytearray, other: bytes, draw: random.Random) -> None:
    size = draw.choice(SIZES)
    start = place(data, draw)
    if draw.random() < 0.7:
        start -= start % size
    value = draw.choice([number for number in INTEGERS if number < 256**size])
    data[start : start + size] = value.to_bytes(size, draw.choice(("little", "big")))


def cut(data: bytearray, other: bytes, draw: random.Random) -> None:
    del data[place(data, draw) :]


def lose(data: bytearray, other: bytes, draw: random.Random) -> None:
    start = place(data, draw)
    del data[start : start + int(2 ** draw.uniform(0, 12))]


def double(data: bytearray, other: bytes, draw: random.Random) -> None:
    start, to = place(data, draw), place(data, draw)
    data[to:to] = data[start : start + int(2 ** draw.uniform(0, 12))]


def splice(data: bytearray, other: bytes, draw: random.Random) -> None:
    """The head of one file and the tail of the other, at one offset, at the bound of a page, or anywhere."""
    at = place(data, draw)
    if draw.random() < 0.5:
        at -= at % draw.choice(PAGES)
    data[at:] = other[at if draw.random() < 0.8 else place(other, draw) :]


def page(data: bytearray, other: bytes, draw: random.Random) -> None:
    """A page becomes zero, another page of the file, or that of the other file; or two of them change places."""
    size = draw.choice(PAGES)
    if len(data) < 2 * size:
        return
    one, two = (draw.randrange(len(data) // size) * size for _ in range(2))
    kind = draw.choice(("zero", "copy", "swap", "other"))
    first, second = bytes(data[one : one + size]), bytes(data[two : two + size])
    if kind == "other":
        second = other[one : one + size]
    data[one : one + size] = bytes(size) if kind == "zero" else second.ljust(size, b"\0")
    if kind == "swap":
        data[two : two + size] = first


MUTATIONS: tuple[Callable[[bytearray, bytes, random.Random], None], ...] = (
    flip, flip, run, integer, integer, cut, lose, double, splice, page, page,
)  # fmt: skip


def reworded(data: bytes, draw: random.Random) -> bytes:
    """JSON with other values in it."""
    found = json.loads(data)
    for _ in range(draw.choice((1, 1, 2))):
        inner: Any = found
        while True:
            key = draw.choice(list(inner)) if isinstance(inner, dict) else draw.randrange(len(inner))
            if not isinstance(inner[key], (dict, list)) or not inner[key] or draw.random() < 0.1:
                break
            inner = inner[key]
        odd = [*(value for value in ODD if not isinstance(value, bytes)), 2**70, -(2**70), [], {}, True, ["a"], "../x"]
        if draw.random() < 0.15 and isinstance(inner, dict):
            del inner[key]
        else:
            inner[key] = draw.choice(odd)
        if not found:
            break
    return json.dumps(found, indent=1).encode()
