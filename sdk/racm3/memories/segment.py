"""A run of documents in an index: their numbers and vectors, in memory or mapped from a file that never changes.

The file holds three arrays one after another, little-endian: numbers int64 [n], vectors float16 [n, dim] and float32
[n, dim]. A scan reads the halves, which is twice as quick, and only what may be among the best is looked at in full.
"""

from __future__ import annotations

import hashlib
import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np

from ..errors import MemoryCorrupt

ROWS = 16_384  # written at a time
FEW = 256  # rows that are read one by one


class Segment:
    """seqs: int64 [n], ascending. vectors: float32 [n, dim], unit norm. halves: the same as float16, of what is mapped.

    path: the file that it is mapped from; None: it is in memory alone. sha256: of that file.
    """

    __slots__ = ("__weakref__", "_descriptor", "halves", "path", "seqs", "sha256", "vectors")

    def __init__(
        self,
        seqs: np.ndarray,
        vectors: np.ndarray,
        halves: np.ndarray | None = None,
        *,
        path: Path | None = None,
        sha256: str = "",
    ) -> None:
        self.seqs, self.vectors, self.halves = seqs, vectors, halves
        self.path, self.sha256 = path, sha256
        self._descriptor: int | None = None
        if path is not None and hasattr(os, "preadv"):
            self._descriptor = os.open(path, os.O_RDONLY)
            weakref.finalize(self, os.close, self._descriptor)

    def at(self, rows: np.ndarray) -> np.ndarray:
        """Copies of the vectors of rows (int64 [n]): float32 [n, dim].

        A few are read from the file: of a mapping the system would bring in the pages around each of them as well. Raises
        `MemoryCorrupt` when the file cannot be read any more.
        """
        if self._descriptor is None or len(rows) > FEW:
            return self.vectors[rows]
        dim = self.vectors.shape[1]
        found = np.empty((len(rows), dim), dtype="<f4")
        size, first = 4 * dim, len(self) * (8 + 2 * dim)
        places = [first + size * row for row in rows.tolist()]
        try:
            if hasattr(os, "posix_fadvise"):  # what is not in memory is brought from the disk side by side
                for place in places:
                    os.posix_fadvise(self._descriptor, place, size, os.POSIX_FADV_WILLNEED)
            for row, place in zip(found, places, strict=True):
                if os.preadv(self._descriptor, [row.data], place) != size:
                    raise OSError("it has become shorter")
        except OSError as error:
            raise MemoryCorrupt(
                f"The index file {self.path} cannot be read: {error}.", "Open the memory again: it is built anew."
            ) from error
        return found

    def __len__(self) -> int:
        return len(self.seqs)


Part: TypeAlias = tuple[Segment, np.ndarray | None]  # a segment, and bool [n] which of its rows are meant; None: all


def joined(parts: Sequence[Part]) -> Segment:
    """One segment in memory."""
    whole = [(segment, slice(None) if kept is None else kept) for segment, kept in parts]
    return Segment(
        np.concatenate([segment.seqs[kept] for segment, kept in whole]),
        np.concatenate([segment.vectors[kept] for segment, kept in whole]),
    )


def size_of(rows: int, dim: int) -> int:
    """Bytes of the file of a segment."""
    return rows * (8 + 6 * dim)


def write(parts: Sequence[Part], file: BinaryIO) -> str:
    """Write parts (ascending) as one segment, a few rows at a time, and return the SHA-256 of the file."""
    digest = hashlib.sha256()

    def put(array: np.ndarray, kind: str) -> None:
        data = np.ascontiguousarray(array, kind).tobytes()
        digest.update(data)
        file.write(data)

    def rows(array: str, kind: str) -> None:
        for segment, kept in parts:
            for start in range(0, len(segment), ROWS):
                these = getattr(segment, array)[start : start + ROWS]
                put(these if kept is None else these[kept[start : start + ROWS]], kind)

    rows("seqs", "<i8")
    rows("vectors", "<f2")
    rows("vectors", "<f4")
    return digest.hexdigest()


def mapped(path: Path, rows: int, dim: int, sha256: str) -> Segment:
    """The segment of a file, read as it is needed. Raises `ValueError` for one that cannot be it, `OSError`."""
    if rows < 1 or path.stat().st_size != size_of(rows, dim):
        raise ValueError("it has not the size that it was written with")
    # Copy-on-write only because torch warns of arrays that cannot be written; nothing here writes.
    data = np.memmap(path, dtype=np.uint8, mode="c")
    seqs, halves = data[: 8 * rows].view("<i8"), data[8 * rows : rows * (8 + 2 * dim)].view("<f2")
    vectors = data[rows * (8 + 2 * dim) :].view("<f4")
    seqs = np.array(seqs)
    if seqs[0] < 1 or not (np.diff(seqs) > 0).all():
        raise ValueError("its numbers do not ascend")
    return Segment(
        seqs, vectors.reshape(rows, dim).view(np.ndarray), halves.reshape(rows, dim).view(np.ndarray), path=path,
        sha256=sha256,
    )  # fmt: skip
