"""A run of documents in an index: their numbers, vectors and ids, in memory or mapped from a file that never changes.

The file holds three arrays one after another, little-endian: numbers int64 [n], vectors float16 [n, dim], and records
[n] of a vector float32 [dim] with the slot of an id (`names`). A scan reads the halves, which is twice as quick, and only
what may be among the best is looked at in full.
"""

from __future__ import annotations

import hashlib
import os
import weakref
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeAlias

import numpy as np

from ..errors import MemoryCorrupt
from . import page_cache
from .names import widened

ROWS = 16_384  # written at a time
SINGLY = 256  # up to so many rows are read one by one
RUN = 5  # bits of a row's number: so many rows, some 64 KB, come into memory with any of them


class Records(NamedTuple):
    """vectors: float32 [n, dim]. names: the slots of their ids, uint8 [n, width]."""

    vectors: np.ndarray
    names: np.ndarray

    def picked(self, rows: np.ndarray) -> Records:
        """Copies of some of them, by place (int64 [m]) or by choice (bool [n])."""
        return Records(self.vectors[rows], self.names[rows])


class Segment:
    """seqs: int64 [n], ascending. vectors: float32 [n, dim], unit norm. names: the slots of their ids, uint8 [n, width].
    halves and records: the vectors as float16, and the bytes of the records, of what is mapped. size: of a record, in bytes.

    path: the file that it is mapped from; None: it is in memory alone. sha256: of that file.
    """

    def __init__(
        self,
        seqs: np.ndarray,
        vectors: np.ndarray,
        names: np.ndarray,
        halves: np.ndarray | None = None,
        records: memoryview | None = None,
        *,
        path: Path | None = None,
        sha256: str = "",
    ) -> None:
        self.seqs, self.vectors, self.names, self.halves, self.records = seqs, vectors, names, halves, records
        self.path, self.sha256, self.size = path, sha256, 4 * vectors.shape[1] + names.shape[1]
        self.descriptor, cached = -1, True
        if path is not None and hasattr(os, "preadv"):
            self.descriptor = os.open(path, os.O_RDONLY)
            weakref.finalize(self, os.close, self.descriptor)
            cached = page_cache.is_cached(self.descriptor, self.first, self.first + self.size * len(seqs))
        # Of each run of rows, whether it was in the page cache once, where it is taken to be from then on.
        self.seen = bytearray([cached]) * ((len(seqs) >> RUN) + 1)

    def __len__(self) -> int:
        return len(self.seqs)

    @property
    def first(self) -> int:
        """Where in the file the records begin."""
        return len(self.seqs) * (8 + 2 * self.vectors.shape[1])

    def has_seen(self, rows: np.ndarray) -> bool:
        """Whether rows (int64 [n]) are in memory, or in the page cache."""
        return all(map(self.seen.__getitem__, (rows >> RUN).tolist()))


_Unread: TypeAlias = tuple[Segment, int, memoryview]  # a row, and where its record is to be


def records_of(segments: Sequence[Segment], rows: np.ndarray, *, sparing: bool) -> Records:
    """Copies of the records of rows (int64 [n], counted through the segments).

    A few that lie in files are read from these, side by side, where a mapping would wait for one after the other; after the
    first time, from the mapping. sparing: not so, since it brings in the pages around each of them as well. Raises
    `MemoryCorrupt` when a file cannot be read any more; one that is cut short while it is mapped ends the process, as it
    does in scans. Nothing here cuts one: files are removed, and stay readable.
    """
    many = len(rows) > SINGLY
    if len(segments) == 1 and (many or (not sparing and segments[0].has_seen(rows))):
        return Records(segments[0].vectors[rows], segments[0].names[rows])
    if many:
        return _mapped(segments, rows)
    dim, width = segments[0].vectors.shape[1], _width(segments)
    starts = list(accumulate(map(len, segments), initial=0))
    data, unread = bytearray((4 * dim + width) * len(rows)), []
    room = memoryview(data)
    for start, row in zip(range(0, len(data), 4 * dim + width), rows.tolist(), strict=True):
        place = bisect_right(starts, row) - 1
        segment, row = segments[place], row - starts[place]
        size = segment.size
        piece = room[start : start + size]
        if segment.records is None:
            piece[:] = segment.vectors[row].tobytes() + segment.names[row].tobytes()
        elif segment.descriptor < 0 or (segment.seen[row >> RUN] and not sparing):
            piece[:] = segment.records[size * row : size * (row + 1)]
        else:
            unread.append((segment, row, piece))
    _read(unread)
    return _records(np.frombuffer(data, dtype=np.uint8), dim, width)


def _mapped(segments: Sequence[Segment], rows: np.ndarray) -> Records:
    dim, width, start = segments[0].vectors.shape[1], _width(segments), 0
    found = Records(np.empty((len(rows), dim), dtype=np.float32), np.empty((len(rows), width), dtype=np.uint8))
    for segment in segments:
        here = (rows >= start) & (rows < start + len(segment))
        if here.any():
            within = rows[here] - start
            found.vectors[here], found.names[here] = segment.vectors[within], widened(segment.names[within], width)
        start += len(segment)
    return found


def _read(unread: Sequence[_Unread]) -> None:
    """Fill buffers with records, by their rows."""
    waiting = []
    for segment, row, piece in unread:
        place = segment.first + len(piece) * row
        try:
            if os.preadv(segment.descriptor, (piece,), place, page_cache.NOWAIT) == len(piece):
                segment.seen[row >> RUN] = True
                continue
        except OSError:  # it is not in memory; or the file system cannot tell, or the file is damaged
            pass
        waiting.append((segment, row, piece, place))
    for segment, _, piece, place in waiting:
        page_cache.want(segment.descriptor, place, len(piece))
    for segment, row, piece, place in waiting:
        try:
            if os.preadv(segment.descriptor, (piece,), place) != len(piece):
                raise OSError("it has become shorter")
        except OSError as error:
            raise MemoryCorrupt(
                f"The index file {segment.path} cannot be read: {error}.", "Open the memory again: it is built anew."
            ) from error
        segment.seen[row >> RUN] = True


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
    return _width(segment for segment, _ in parts)


def _width(segments: Iterable[Segment]) -> int:
    return max(segment.names.shape[1] for segment in segments)


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
    records = data[rows * (8 + 2 * dim) :]
    vectors, names = _records(records, dim, width)
    # Read, and not mapped: all of them are looked at now, and would be in memory twice.
    seqs = np.fromfile(path, dtype="<i8", count=rows)
    if len(seqs) != rows or seqs[0] < 1 or not (seqs[1:] > seqs[:-1]).all():
        raise ValueError("its numbers do not ascend")
    return Segment(
        seqs, vectors.view(np.ndarray), names.view(np.ndarray), halves.reshape(rows, dim).view(np.ndarray),
        records.data, path=path, sha256=sha256,
    )  # fmt: skip
