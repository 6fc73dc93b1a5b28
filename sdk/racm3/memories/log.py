"""SQLite's log (memory.db-wal), looked at for a flipped bit before SQLite reads it.

Where a log does not match its checksums SQLite takes it to have ended, as after a power failure, and says nothing: a bit
that has flipped would take back whatever was stored from there on. But a power failure takes whole sectors: where one bit
makes all the difference, it has flipped. (Unless what stood in a lost sector differed from what came there in that bit alone.)

A log is a header and frames of one page each (https://sqlite.org/fileformat.html#walformat); the checksum of a frame goes
on from that of the frame before it.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeAlias

import numpy as np

from ..errors import MemoryCorrupt
from .claim import is_claimed

HEADER, FRAME = 32, 24  # bytes; of a frame without its page
MAGIC, VERSION = 0x377F0682, 3007000  # the last bit of the first says in which order the checksums take bytes
CHUNK = 2**22  # bytes of frames that are looked at at a time

Sums: TypeAlias = tuple[int, int]  # a checksum: two numbers of 32 bits


class Header(NamedTuple):
    """page: bytes of one. salts: which the frames of this log have, and those that an earlier one left behind do not.
    words: the dtype of what is summed up. sums: the checksum that the first frame goes on from."""

    page: int
    salts: bytes
    words: str
    sums: Sums


def check(log: Path, claim: Path) -> None:
    """Raise `MemoryCorrupt` when a bit has flipped in a log. claim: the file by which a process says that it is writing;
    then SQLite has read the log already, and what is at its end is not finished."""
    try:
        sound = _sound_before_flip(log) if log.stat().st_size else None
        if sound is None or is_claimed(claim) or sound != _sound_before_flip(log):
            return
    except OSError:  # there is none, or SQLite will say what there is to say
        return
    raise MemoryCorrupt(
        f"A bit has flipped in the log {log}: what was stored last cannot be read.",
        # SQLite may have brought later pages into the database already, so that what is left need not fit together.
        f"Restore the memory from a backup. Without one, copy it, cut the copy's log off behind {sound} bytes, and look at "
        "what racm3 memory verify says of the copy.",
    )


def _sound_before_flip(log: Path) -> int | None:
    """How many bytes of a log come before the piece that would be sound but for one bit; None when there is none."""
    with log.open("rb") as file:
        data = file.read(HEADER)
        if (header := read_header(data)) is not None:
            return _frames_before_flip(file, header)
    others = (data[:at] + bytes([byte ^ 1 << bit]) + data[at + 1 :] for at, byte in enumerate(data) for bit in range(8))
    return None if all(read_header(other) is None for other in others) else 0


def _frames_before_flip(file: BinaryIO, header: Header) -> int | None:
    size, sums, start = FRAME + header.page, header.sums, HEADER
    before = _weights(header.page // 4 + 2)[:2].tolist()
    while data := file.read(max(1, CHUNK // size) * size):
        frames = np.frombuffer(data, np.uint8)[: len(data) // size * size].reshape(-1, size)
        words = np.concatenate([frames[:, :8], frames[:, FRAME:]], axis=1).view(header.words)
        for frame, word, added in zip(frames, words, _added(words).tolist(), strict=True):
            salts, stored = frame[8:16].tobytes(), struct.unpack(">II", frame[16:24].tobytes())
            first, second = ((sums[0] * before[0][n] + sums[1] * before[1][n] + added[n]) % 2**32 for n in (0, 1))
            sums = first, second
            if salts != header.salts:  # of an earlier log, unless a bit is all that they differ in
                return start if _by_a_bit(salts, header.salts) and sums == stored else None
            if sums != stored:
                return start if _by_a_bit_of(word, sums, stored) else None
            start += size
    return None


def read_header(data: bytes) -> Header | None:
    """The header of a log, if it is sound."""
    if len(data) < HEADER:
        return None
    magic, version, page = struct.unpack_from(">III", data)
    if magic & ~1 != MAGIC or version != VERSION or page not in (1 << bits for bits in range(9, 17)):
        return None
    words, stored = ">u4" if magic & 1 else "<u4", struct.unpack_from(">II", data, 24)
    (sums,) = _added(np.frombuffer(data, words, 6)[None]).tolist()
    return Header(page, data[16:24], words, stored) if tuple(sums) == stored else None


@lru_cache(maxsize=4)
def _weights(words: int) -> np.ndarray:
    """How much the checksum before, and each word after it, counts in the checksum at the end: uint32 [2 + words, 2].

    A checksum (a, b) takes two words x, y at a time: a += x + b, then b += y + a, modulo 2^32.
    """
    step = np.array([[1, 1], [1, 2]], np.uint32)
    powers = [np.eye(2, dtype=np.uint32)]  # for as many pairs as come after
    for _ in range(words // 2):
        powers.append(step @ powers[-1])
    of_x = [power[:, 0] + power[:, 1] for power in powers[-2::-1]]  # x enters both
    of_y = [power[:, 1] for power in powers[-2::-1]]
    return np.concatenate([powers[-1].T, np.stack([of_x, of_y], axis=1).reshape(words, 2)])


def _added(words: np.ndarray) -> np.ndarray:
    """What words ([n, words]) add to a checksum: uint32 [n, 2]."""
    weights = _weights(words.shape[1])[2:]
    return np.stack([(words * weights[:, which]).sum(axis=1, dtype=np.uint32) for which in (0, 1)], axis=1)


def _by_a_bit_of(words: np.ndarray, sums: Sums, stored: Sums) -> bool:
    """Whether words with these sums would have the stored ones if a bit of words or stored sums were another."""
    lack = np.subtract(stored, sums, dtype=np.int64)
    for bit in range(32):
        change = np.where(words >> bit & 1, -1, 1) << bit  # of a word, by its bit
        if ((change[:, None] * _weights(len(words))[2:] - lack) % 2**32 == 0).all(axis=1).any():
            return True
    return _by_a_bit(struct.pack(">II", *sums), struct.pack(">II", *stored))


def _by_a_bit(one: bytes, other: bytes) -> bool:
    """Whether two strings of bytes differ in a single bit."""
    return (int.from_bytes(one) ^ int.from_bytes(other)).bit_count() == 1
