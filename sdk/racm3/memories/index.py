"""The rebuildable part of a memory: vectors and ids of its documents, and an exact search of them by inner product.

Documents go by the journal's sequence numbers. Removed ones stay as tombstones until `compacted()`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from . import scan
from .segment import Part, Records, Segment, joined, records_of
from .where import Condition, Having, evaluate

SCAN = 4096  # up to so many candidates a plain product is quickest
SPARE = 32  # documents more than were asked for, which it takes longer to pass over than to hand out
QUERIES = 1024  # at a time
FILTERS = 16  # of which the documents are remembered, in a byte a document each

Ask: TypeAlias = Callable[[Having, int], np.ndarray]  # the numbers above one of the documents that have a value


class Found(NamedTuple):
    """What was found for a query. scores: float32 [m]. rows: int64 [m]. records: of the m documents."""

    scores: np.ndarray
    rows: np.ndarray
    records: Records


class VectorIndex:
    """Vectors and ids by sequence number, as far as (`last_seq`, `generation`) of the journal.

    segments: these; what is added becomes the last of them. seqs: their numbers, int64 [rows], ascending.
    """

    kind = "exact"
    sparing = True  # of memory, before time

    def __init__(self, dim: int, segments: Sequence[Segment] = (), seqs: np.ndarray | None = None) -> None:
        self.dim, self.segments = dim, list(segments)
        self.seqs: np.ndarray = _numbers_of(segments) if seqs is None else seqs
        self.last_seq = self.generation = 0
        self.named = True  # whether all ids lie beside the vectors, as far as is known
        self._alive: np.ndarray | None = None  # bool [rows], where there are tombstones
        self._filters: dict[Having, np.ndarray] = {}  # bool [rows], as many as there were when it was asked last

    @property
    def dead(self) -> int:
        """How many tombstones there are."""
        return 0 if self._alive is None else len(self._alive) - int(np.count_nonzero(self._alive))

    @property
    def live(self) -> np.ndarray:
        """The numbers that have not been removed: int64 [m], ascending."""
        return self.seqs if self._alive is None else self.seqs[self._alive]

    @property
    def parts(self) -> list[Part]:
        """The segments, with what is alive in each."""
        if self._alive is None:
            return [(segment, None) for segment in self.segments]
        ends = np.cumsum([len(segment) for segment in self.segments])
        return list(zip(self.segments, np.split(self._alive, ends[:-1]), strict=True))

    def holds(self, seq: int) -> bool:
        """Whether a document is in the index, and has not been removed."""
        rows = self._rows_of(np.array([seq]))
        return len(rows) == 1 and (self._alive is None or bool(self._alive[rows[0]]))

    def append(self, seqs: np.ndarray, vectors: np.ndarray, names: np.ndarray | None = None) -> None:
        """Take in new documents: seqs int64 [n], ascending and above all others; vectors float32 [n, dim]; the slots of
        their ids, uint8 [n, width], None where the ids are kept elsewhere."""
        names = np.empty((len(seqs), 0), dtype=np.uint8) if names is None else names
        self.segments.append(Segment(seqs, vectors, names))
        # In memory each is larger than the next: so there are few of them, and few copies are made.
        while len(self.segments) > 1 and self.segments[-2].path is None and _alike(*self.segments[-2:]):
            self.segments[-2:] = [joined([(segment, None) for segment in self.segments[-2:]])]
        self.seqs = np.concatenate([self.seqs, seqs])
        if self._alive is not None:
            self._alive = np.concatenate([self._alive, np.ones(len(seqs), dtype=bool)])
        self.last_seq = int(seqs[-1])

    def keep(self, seqs: np.ndarray) -> None:
        """Forget all documents but these (int64, ascending)."""
        alive = np.isin(self.seqs, seqs, assume_unique=True)
        self._alive = None if alive.all() else alive

    def remove(self, seqs: np.ndarray) -> None:
        """Forget these documents (int64)."""
        rows = self._rows_of(seqs)
        if len(rows):
            self._alive = np.ones(len(self.seqs), dtype=bool) if self._alive is None else self._alive
            self._alive[rows] = False

    def compacted(self) -> VectorIndex:
        """The same index without its tombstones."""
        return self.over([joined(self.parts)]) if self.dead else self

    def frozen(self) -> VectorIndex:
        """An exact index of the same documents without tombstones, which stays as it is whatever becomes of this one."""
        return self.over([joined(self.parts)] if self.dead else self.segments)

    def over(self, segments: Sequence[Segment]) -> VectorIndex:
        """An index as far as this one, over other segments of the same documents, without tombstones."""
        index = VectorIndex(self.dim, segments)
        index.last_seq, index.generation = self.last_seq, self.generation
        return index

    def records(self, seqs: np.ndarray) -> Records:
        """Copies of what is stored of documents, by number (int64 [n])."""
        return self._at(np.searchsorted(self.seqs, seqs))

    def matching(self, condition: Condition, ask: Ask) -> np.ndarray:
        """Which rows a filter lets through: bool [rows], tombstones among them."""
        return evaluate(condition, lambda having: self._having(having, ask), len(self.seqs))

    def _having(self, having: Having, ask: Ask) -> np.ndarray:
        """Metadata never change under a number: what was found is remembered, and only of new documents is asked."""
        known = self._filters.pop(having, np.empty(0, dtype=bool))
        if len(known) < len(self.seqs):
            fresh = np.zeros(len(self.seqs), dtype=bool)
            fresh[: len(known)] = known
            fresh[self._rows_of(ask(having, int(self.seqs[len(known) - 1]) if len(known) else 0))] = True
            known = fresh
        self._filters[having] = known
        while len(self._filters) > FILTERS:
            del self._filters[next(iter(self._filters))]
        return known

    def forget_filters(self) -> None:
        """Ask again which documents have what."""
        self._filters.clear()

    def nearest(
        self, queries: np.ndarray, k: int, *, allowed: np.ndarray | None, excluded: Sequence[np.ndarray]
    ) -> list[Found]:
        """For each query (float32 [n, dim]), every document whose score is at least the k-th best, and maybe a few more, in no
        particular order. The caller takes the k best, and breaks ties.

        allowed: bool [rows], only these; None: all. excluded: for each query, not these numbers (int64).
        """
        k = min(int(k), len(self.seqs))
        wanted = allowed if self._alive is None else self._alive if allowed is None else self._alive & allowed
        left_out = [self._rows_of(seqs) for seqs in excluded]
        pool = len(self.seqs) if wanted is None else int(np.count_nonzero(wanted))
        if not pool:
            return [self._best(query, np.empty(0, np.int64), k) for query in queries]
        find = self._look_at_all if pool <= SCAN else self._scan if allowed is not None else self._find
        blocks = (slice(start, start + QUERIES) for start in range(0, len(queries), QUERIES))
        return [found for block in blocks for found in find(queries[block], k, wanted, left_out[block])]

    def _find(
        self, queries: np.ndarray, k: int, wanted: np.ndarray | None, excluded: Sequence[np.ndarray]
    ) -> Iterator[Found]:
        """What is at least as good as the k-th best, without a filter."""
        return self._scan(queries, k, wanted, excluded)

    def _scan(
        self, queries: np.ndarray, k: int, wanted: np.ndarray | None, excluded: Sequence[np.ndarray]
    ) -> Iterator[Found]:
        """The same, exact, among many."""
        found = scan.candidates(self.segments, queries, k, wanted=wanted, excluded=excluded)
        for query, rows in zip(queries, found, strict=True):
            yield self._best(query, rows, k)

    def _look_at_all(
        self, queries: np.ndarray, k: int, wanted: np.ndarray | None, excluded: Sequence[np.ndarray]
    ) -> Iterator[Found]:
        """The same, exact, among few."""
        pool = np.arange(len(self.seqs)) if wanted is None else np.flatnonzero(wanted)
        whole = wanted is None and len(self.segments) == 1  # and needs no copy
        records = Records(self.segments[0].vectors, self.segments[0].names) if whole else self._at(pool)
        for query, scores, gone in zip(queries, queries @ records.vectors.T, excluded, strict=True):
            near = ~np.isin(pool, gone) if len(gone) else np.ones(len(pool), dtype=bool)
            if np.count_nonzero(near) > k:
                near &= scores >= np.partition(scores[near], -k)[-k] - scan.slack(self.dim)
            yield self._best(query, pool[near], k, records.picked(near))

    def _best(self, query: np.ndarray, rows: np.ndarray, k: int, records: Records | None = None) -> Found:
        """Of candidates those that are at least as good as the k-th best, and maybe a few more, with exact scores."""
        if records is None and len(rows) > SCAN:  # too many to hold the vectors of all of them
            scores = np.concatenate([_scores(self._at(some), query) for some in _blocks(rows)])
        else:
            records = self._at(rows) if records is None else records
            scores = _scores(records, query)
        if len(rows) > k + SPARE:
            chosen = scores >= np.partition(scores, -k)[-k]
            scores, rows = scores[chosen], rows[chosen]
            records = records and records.picked(chosen)
        return Found(scores, rows, self._at(rows) if records is None else records)

    def _at(self, rows: np.ndarray) -> Records:
        """Copies of the records of rows (int64 [n])."""
        if not self.segments:
            return Records(np.empty((0, self.dim), dtype=np.float32), np.empty((0, 0), dtype=np.uint8))
        return records_of(self.segments, rows, sparing=self.sparing)

    def _rows_of(self, seqs: np.ndarray) -> np.ndarray:
        """The rows of those numbers that are in the index: int64 [m]."""
        count = len(self.seqs)
        if not len(seqs) or not count:
            return np.empty(0, dtype=np.int64)
        first, last = self.seqs[0], self.seqs[-1]
        if last - first == count - 1:  # none is missing between them
            return seqs[(seqs >= first) & (seqs <= last)] - first
        rows = np.minimum(np.searchsorted(self.seqs, seqs), count - 1)
        return rows[self.seqs[rows] == seqs]


def _scores(records: Records, query: np.ndarray) -> np.ndarray:
    """Exact inner products: float32 [n]."""
    # einsum adds every row in the same order, wherever it stands, so that equal vectors tie; BLAS does not.
    return np.einsum("nd,d->n", records.vectors, query)


def _blocks(rows: np.ndarray) -> Iterator[np.ndarray]:
    return (rows[start : start + SCAN] for start in range(0, len(rows), SCAN))


def _numbers_of(segments: Sequence[Segment]) -> np.ndarray:
    """All numbers of segments, which are views of it from now on: a copy would be as much as a tenth of compressed vectors."""
    if len(segments) == 1:
        return segments[0].seqs
    numbers = np.concatenate([np.empty(0, np.int64), *(segment.seqs for segment in segments)])
    start = 0
    for segment in segments:
        segment.seqs = numbers[start : start + len(segment)]
        start += len(segment)
    return numbers


def _alike(first: Segment, second: Segment) -> bool:
    return len(first) < 2 * len(second)
