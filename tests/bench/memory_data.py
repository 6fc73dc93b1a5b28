"""The documents of memory_speed.py, its queries, and what is truly nearest to these. All of it follows from a seed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

DIM = 512
CLUSTER = 100  # documents in a cluster, on average
TEXT = 2048  # bytes
BLOCK = 10_000  # documents that are made at a time
EXTRA = 1000  # documents beside, that are added one by one
TOPICS = 100
K = 10
# 4.6 bits a letter, in words of about six: text that a store cannot make much smaller, and can split into words.
LETTERS = np.frombuffer(b"     abcdefghijklmnopqrstuvwxyzeta", dtype=np.uint8)

Filter = tuple[str, Any]  # a field, and what it has to be
FILTERS = ("none", "topic", "recent")  # by how much they let through: all, 1 %, 50 %


class Documents(NamedTuple):
    """Some of the documents, in the order in which they are added. `vectors` float32 [n, DIM], of unit norm."""

    rows: range
    texts: list[str]
    topics: list[int]
    recent: list[bool]
    vectors: np.ndarray

    def batches(self, size: int) -> Iterator[Documents]:
        for start in range(0, len(self.rows), size):
            part = slice(start, start + size)
            yield Documents(*(column[part] for column in self))


class Data:
    """`count` documents and EXTRA more, around `count / CLUSTER` centres. Vectors are in a file, which processes share."""

    def __init__(self, folder: Path, count: int) -> None:
        self.count = count
        self._path = folder / "vectors.npy"
        if not self._path.exists():
            self._write()
        self.vectors = np.load(self._path, mmap_mode="r")  # [count + EXTRA, DIM]

    def documents(self, start: int, stop: int) -> Documents:
        texts, topics, recent = list[str](), list[int](), list[bool]()
        for first in range(start - start % BLOCK, stop, BLOCK):
            chosen = range(max(start - first, 0), min(stop - first, BLOCK))
            rng = np.random.default_rng([1, first])
            drawn = rng.integers(0, TOPICS, BLOCK), rng.random(BLOCK) < 0.5
            topics += drawn[0].tolist()[chosen.start : chosen.stop]
            recent += drawn[1].tolist()[chosen.start : chosen.stop]
            letters = LETTERS[rng.integers(0, len(LETTERS), (chosen.stop, TEXT), dtype=np.uint8)]
            texts += [letters[row].tobytes().decode("ascii") for row in chosen]
        return Documents(range(start, stop), texts, topics, recent, np.array(self.vectors[start:stop]))

    def fields(self) -> tuple[np.ndarray, np.ndarray]:
        """Topic and recency of every document, [count] each."""
        topics, recent = np.empty(self.count, dtype=np.int64), np.empty(self.count, dtype=bool)
        for first in range(0, self.count, BLOCK):
            rng = np.random.default_rng([1, first])
            n = min(BLOCK, self.count - first)
            topics[first : first + n] = rng.integers(0, TOPICS, BLOCK)[:n]
            recent[first : first + n] = (rng.random(BLOCK) < 0.5)[:n]
        return topics, recent

    def queries(self, n: int, seed: int) -> np.ndarray:
        """Members of clusters, moved by half of their length: float32 [n, DIM], of unit norm; none of them is stored."""
        rng = np.random.default_rng([2, seed])
        rows = np.sort(rng.choice(self.count, n, replace=self.count < n))
        noise = rng.standard_normal((n, DIM), dtype=np.float32)
        return _unit(self.vectors[rows] + 0.5 * _unit(noise))[rng.permutation(n)]

    def _write(self) -> None:
        centres = _unit(
            np.random.default_rng(0).standard_normal((max(1, self.count // CLUSTER), DIM), dtype=np.float32)
        )
        part = self._path.with_suffix(".part")
        shape = (self.count + EXTRA, DIM)
        written = np.lib.format.open_memmap(part, mode="w+", dtype=np.float32, shape=shape)
        for first in range(0, len(written), BLOCK):
            # Not [0, first]: of the first block these are the numbers of the centres, and its documents between two of them.
            rng, n = np.random.default_rng([3, first]), min(BLOCK, len(written) - first)
            noise = _unit(rng.standard_normal((n, DIM), dtype=np.float32))
            written[first : first + n] = _unit(centres[rng.integers(0, len(centres), n)] + noise)
        written.flush()
        part.rename(self._path)


def filter_of(kind: str, query: int) -> Filter | None:
    """What the query of that number asks for: one of ten topics; of recency both sides."""
    return {"none": None, "topic": ("topic", query % 10), "recent": ("recent", query % 2 == 0)}[kind]


def nearest(data: Data, queries: np.ndarray, held: list[int]) -> dict[str, np.ndarray]:
    """By filter: the rows nearest to each query among the first so many documents, [len(held), queries, K], best first;
    -1 where there are no more.

    Computed by numpy in float64. held: ascending; what stores may hold that were stopped before the end.
    """
    topics, recent = data.fields()
    wanted = {
        field: np.array([filter_of(field, query)[1] for query in range(len(queries))])[:, None] for field in FILTERS[1:]
    }
    asked = queries.astype(np.float64)
    best = {kind: (np.full((len(queries), K), -np.inf), np.full((len(queries), K), -1)) for kind in FILTERS}
    answer = {kind: np.empty((len(held), len(queries), K), dtype=np.int64) for kind in FILTERS}
    for place, stop in enumerate(held):
        start = held[place - 1] if place else 0
        for first in range(start, stop, BLOCK):
            rows = np.arange(first, min(first + BLOCK, stop))
            scores = asked @ data.vectors[rows].astype(np.float64).T  # [queries, rows]
            allowed = {
                "none": None,
                "topic": topics[rows] == wanted["topic"],
                "recent": recent[rows] == wanted["recent"],
            }
            for kind, (top, found) in best.items():
                mask = allowed[kind]
                filtered = scores if mask is None else np.where(mask, scores, -np.inf)
                everything = np.concatenate([top, filtered], axis=1)
                of = np.concatenate([found, np.broadcast_to(rows, filtered.shape)], axis=1)
                order = np.argpartition(-everything, K, axis=1)[:, :K]
                best[kind] = np.take_along_axis(everything, order, 1), np.take_along_axis(of, order, 1)
        for kind, (top, found) in best.items():
            answer[kind][place] = np.take_along_axis(found, np.argsort(-top, axis=1), 1)
    return answer


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
