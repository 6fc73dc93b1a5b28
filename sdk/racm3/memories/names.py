"""The ids of documents as an index has them: each in a slot of bytes behind its vector, so that one read brings both.

A slot is the CRC-32 of the id, its length in two bytes, and the id in UTF-8, filled up with zeros. A length of 0 stands for
an id that is not there, being too long; it is asked of the journal, as is one that does not match its CRC.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from .text_bytes import decoded

LONGEST = 122  # bytes of an id that has a slot
ROUND = 8  # of bytes that the width of slots is a multiple of, so that vectors between them lie where numbers may

_HEAD = struct.Struct("<IH")
_NONE = _HEAD.pack(0, 0)


def slots(ids: Sequence[bytes]) -> np.ndarray:
    """A slot for each id: uint8 [n, width], as wide as the longest needs."""
    made = [_HEAD.pack(zlib.crc32(id), len(id)) + id if len(id) <= LONGEST else _NONE for id in ids]
    width = -(-max(map(len, made), default=0) // ROUND) * ROUND
    return np.frombuffer(b"".join(slot.ljust(width, b"\0") for slot in made), dtype=np.uint8).reshape(-1, width)


def widened(slots: np.ndarray, width: int) -> np.ndarray:
    """The same slots (uint8 [n, at most width]) with room for longer ids: uint8 [n, width]."""
    if slots.shape[1] == width:
        return slots
    wide = np.zeros((len(slots), width), dtype=np.uint8)
    wide[:, : slots.shape[1]] = slots
    return wide


def ids_of(slots: np.ndarray) -> list[str | None]:
    """The ids in slots (uint8 [n, width]); None where one is not there."""
    count, width = slots.shape
    if width < _HEAD.size:
        return [None] * count
    found: list[str | None] = []
    for check, length, padded in _slot(width).iter_unpack(slots.tobytes()):
        id = padded[:length]
        found.append(decoded(id) if length and zlib.crc32(id) == check else None)
    return found


@lru_cache
def _slot(width: int) -> struct.Struct:
    return struct.Struct(f"{_HEAD.format}{width - _HEAD.size}s")
