"""A run of documents in an index: their numbers, vectors and ids, in memory or mapped from a file that never changes.

The file holds three arrays one after another, little-endian: numbers int64 [n], vectors float16 [n, dim], and records
[n] of a vector float32 [dim] with the slot of an id (`names`). A scan reads the halves, which is twice as quick, and only
what may be among the best is looked at in full.
"""

from __future__ import annotations

import hashlib
import os
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeAlias

import numpy as np

from ..errors import MemoryCorrupt
from .names import widened

ROWS = 16_384  # written at a time
FEW = 256  # rows that are read one by one
NOWAIT = getattr(os, "RWF_NOWAIT", 0)  # read what is in memory, and no more than that


class Records(NamedTuple):
    """vectors: float32 [n, dim]. names: the slots of their ids, uint8 [n, width]."""

    vectors: np.ndarray
    names: np.ndarray

    def picked(self, rows: np.ndarray) -> Records:
        """Copies of some of them, by place (int64 [m]) or by choice (bool [n])."""
        return Records(self.vectors[rows], self.names[rows])


class Segment:
    """seqs: int64 [n], ascending. vectors: float32 [n, dim], unit norm. names: the slots of their ids, uint8 [n, width].
    halves: the vectors as float16, of what is mapped.

    path: the file that it is mapped from; None: it is in memory alone. sha256: of that file.
    """

    __slots__ = ("__weakref__", "_descriptor", "halves", "names", "path", "seqs", "sha256", "vectors")

    def __init__(
        self,
        seqs: np.ndarray,
        vectors: np.ndarray,
        names: np.ndarray,
        halves: np.ndarray | None = None,
        *,
        path: Path | None = None,
        sha256: str = "",
    ) -> None:
        self.seqs, self.vectors, self.names, self.halves = seqs, vectors, names, halves
        self.path, self.sha256 = path, sha256
        self._descriptor: int | None = None
        if path is not None and hasattr(os, "preadv"):
            self._descriptor = os.open(path, os.O_RDONLY)
            weakref.finalize(self, os.close, self._descriptor)

    def at(self, rows: np.ndarray) -> Records:
        """Copies of the records of rows (int64 [n]).

        A few are read from the file: of a mapping the system would bring in the pages around each of them as well. Raises
        `MemoryCorrupt` when the file cannot be read any more.
        """
        if self._descriptor is None or len(rows) > FEW:
            return Records(self.vectors[rows], self.names[rows])
        dim, width = self.vectors.shape[1], self.names.shape[1]
        size, first = 4 * dim + width, len(self) * (8 + 2 * dim)
        data = bytearray(size * len(rows))
        try:
            _read(self._descriptor, memoryview(data), size, [first + size * row for row in rows.tolist()])
        except OSError as error:
            raise MemoryCorrupt(
                f"The index file {self.path} cannot be read: {error}.", "Open the memory again: it is built anew."
            ) from error
        return _records(np.frombuffer(data, dtype=np.uint8), dim, width)

    def __len__(self) -> int:
        return len(self.seqs)


def _read(descriptor: int, data: memoryview, size: int, places: Sequence[int]) -> None:
    """Fill a buffer with pieces of a file. Those that are not in memory are brought from the disk side by side."""
    waiting = []
    for number, place in enumerate(places):
        piece = data[size * number : size * (number + 1)]
        try:
            if os.preadv(descriptor, (piece,), place, NOWAIT) == size:
                continue
        except OSError:  # it is not in memory; or the file system cannot tell, or the file is damaged
            pass
        waiting.append((piece, place))
    if hasattr(os, "posix_fadvise"):
        for _, place in waiting:
            os.posix_fadvise(descriptor, place, size, os.POSIX_FADV_WILLNEED)
    for piece, place in waiting:
        if os.preadv(descriptor, (piece,), place) != size:
            raise OSError("it has become shorter")


def _records(data: np.ndarray, dim: int, width: int) -> Records:
    """Views of the records in bytes (uint8)."""
    records = data.reshape(-1, 4 * dim + width)
    return Records(records[:, : 4 * dim].view("<f4"), records[:, 4 * dim :])


Part: TypeAlias = tuple[Segment, np.ndarray | None]  # a segment, and bool [n] which of its rows are meant; None: all


def joined(parts: Sequence[Part]) -> Segment:
    """One segment in memory."""
    whole = [(segment, slice(None) if kept is None else kept) for segment, kept in parts]
    width = width_of(parts)
    return Segment(
        np.concatenate([segment.seqs[kept] for segment, kept in whole]),
        np.concatenate([segment.vectors[kept] for segment, kept in whole]),
        np.concatenate([widened(segment.names[kept], width) for segment, kept in whole]),
    )


def width_of(parts: Sequence[Part]) -> int:
    """Bytes of a slot that holds the id of any of them."""
    return max(segment.names.shape[1] for segment, _ in parts)


def write(parts: Sequence[Part], file: BinaryIO) -> str:
    """Write parts (ascending) as one segment, a few rows at a time, and return the SHA-256 of the file."""
    digest, width = hashlib.sha256(), width_of(parts)

    def put(of: Callable[[Segment, slice], np.ndarray]) -> None:
        for segment, kept in parts:
            for start in range(0, len(segment), ROWS):
                some = slice(start, start + ROWS)
                data = (of(segment, some) if kept is None else of(segment, some)[kept[some]]).tobytes()
                digest.update(data)
                file.write(data)

    put(lambda segment, some: segment.seqs[some].astype("<i8", copy=False))
    put(lambda segment, some: segment.vectors[some].astype("<f2"))
    put(lambda segment, some: np.hstack([_bytes_of(segment.vectors[some]), widened(segment.names[some], width)]))
    return digest.hexdigest()


def _bytes_of(vectors: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(vectors, "<f4").view(np.uint8)


def mapped(path: Path, rows: int, dim: int, width: int, sha256: str) -> Segment:
    """The segment of a file, read as it is needed; width: of its slots. Raises `ValueError` for a file that cannot be it,
    `OSError`."""
    if rows < 1 or not width >= 0 or path.stat().st_size != rows * (8 + 6 * dim + width):
        raise ValueError("it has not the size that it was written with")
    # Copy-on-write only because torch warns of arrays that cannot be written; nothing here writes.
    data = np.memmap(path, dtype=np.uint8, mode="c")
    halves = data[8 * rows : rows * (8 + 2 * dim)].view("<f2")
    vectors, names = _records(data[rows * (8 + 2 * dim) :], dim, width)
    # Read, and not mapped: all of them are looked at now, and would be in memory twice.
    seqs = np.fromfile(path, dtype="<i8", count=rows)
    if len(seqs) != rows or seqs[0] < 1 or not (seqs[1:] > seqs[:-1]).all():
        raise ValueError("its numbers do not ascend")
    return Segment(
        seqs, vectors.view(np.ndarray), names.view(np.ndarray), halves.reshape(rows, dim).view(np.ndarray),
        path=path, sha256=sha256,
    )  # fmt: skip
