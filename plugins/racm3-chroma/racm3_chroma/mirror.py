"""The vectors of a collection in this process, where search is exact: Chroma's own index is approximate."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from racm3.memories.index import VectorIndex

from .record import Record


class Found(NamedTuple):
    """What a hit is made of. score: None for a document that was not asked for by its vector."""

    id: str
    stamp: int
    hashes: frozenset[str]
    vector: np.ndarray
    score: float | None = None


class Mirror:
    """Records by key, with their vectors, numbered as they come. A vector is read once: another one has another stamp."""

    def __init__(self, dim: int) -> None:
        self._index = VectorIndex(dim)
        self._numbers: dict[str, int] = {}
        self._records: dict[int, tuple[str, int, frozenset[str]]] = {}  # id, stamp, hashes of parts
        self._named: dict[str, set[int]] = {}  # by id and content hash
        self._next = 0

    def keep(self, records: Iterable[Record]) -> list[str]:
        """Forget all but these versions of records, and give the keys of those that are missing."""
        stamps = {record.key: record.stamp for record in records}
        current = {key: number for key, number in self._numbers.items() if self._records[number][1] == stamps.get(key)}
        if len(current) < len(self._numbers):
            live = sorted(current.values())
            self._numbers, self._records = current, {number: self._records[number] for number in live}
            self._named = {name: kept for name, numbers in self._named.items() if (kept := numbers.intersection(live))}
            self._index.keep(np.array(live, dtype=np.int64))
            if self._index.dead > len(live):
                self._index = self._index.compacted()
        return [key for key in stamps if key not in current]

    def take_in(self, records: Sequence[Record]) -> None:
        """Add records with their vectors."""
        if not records:
            return
        numbers = range(self._next, self._next + len(records))
        for number, record in zip(numbers, records, strict=True):
            self._numbers[record.key] = number
            self._records[number] = record.id, record.stamp, frozenset(record.hashes)
            for name in record.names:
                self._named.setdefault(name, set()).add(number)
        vectors = np.stack([record.vector for record in records if record.vector is not None])
        self._index.append(np.array(numbers, dtype=np.int64), vectors)
        self._next += len(records)

    def nearest(
        self, queries: np.ndarray, k: int, *, allowed: Collection[str] | None, excluded: Sequence[Collection[str]]
    ) -> list[list[Found]]:
        """The k nearest of each query, best first, ties by id. allowed: only these keys. excluded: ids and hashes."""
        pool = None
        if allowed is not None:
            pool = np.isin(self._index.seqs, [self._numbers[key] for key in allowed if key in self._numbers])
        without = [
            np.array(sorted(set().union(*(self._named.get(name, ()) for name in names))), dtype=np.int64)
            for names in excluded
        ]
        answer = []
        for scores, rows, (vectors, _) in self._index.nearest(queries, k, allowed=pool, excluded=without):
            records = [self._records[number] for number in self._index.seqs[rows].tolist()]
            order = sorted(range(len(records)), key=lambda place: (-scores[place], records[place][0]))[:k]
            answer.append([Found(*records[place], vectors[place], float(scores[place])) for place in order])
        return answer
