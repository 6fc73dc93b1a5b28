"""Indexes that answer without looking at every vector, by name: for memories too large to scan.

name        finds                                             takes, of a vector of width 512
exact       the nearest, always                               2,048 bytes
hnsw        nearly all of them; slow to build                 2,300 bytes
ivf         nearly all of them, one sixteenth being scanned   2,060 bytes
ivf-pq      the same, over compressed vectors                 70 bytes

Whatever an index finds is scored again by the vectors in the database, so that scores are exact and ties come in order.
A filter is applied before the top-k: then hnsw and ivf look at everything that it lets through, and are exact; ivf-pq does
the same over compressed vectors. Any other name is a FAISS factory string, such as "IVF1024,SQ8". Of it only searches
without a filter are quick; with one, the vectors are read from the database.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ..errors import MemoryStoreError, nearest
from .index import SCAN, VectorIndex, bitmap

if TYPE_CHECKING:
    import faiss

NAMES = ("exact", "hnsw", "ivf", "ivf-pq", "auto")
SMALL = 10_000  # up to so many documents every named index is exact: a scan takes no longer
AUTO = 200_000  # up to so many "auto" is exact, beyond it is ivf
SAMPLE = 64  # vectors for each cell that training looks at
NEIGHBOURS = 32  # of a node in the graph of hnsw
WIDTH = 128  # candidates that a search of the graph keeps
PROBED = 16  # one of so many cells is scanned, and at least as many
READ = 512  # up to so many vectors are all read from the database
OVERFETCH = 10  # how many times more than wanted is scored again

Read: TypeAlias = Callable[[np.ndarray], np.ndarray]  # seqs int64 [n] -> the database's vectors float32 [n, dim]


def check_name(name: str, dim: int) -> None:
    """Raise `MemoryStoreError` unless an index of a width can be made by that name."""
    import faiss

    if name not in NAMES:
        try:
            faiss.index_factory(dim, name, faiss.METRIC_INNER_PRODUCT)
        except Exception as error:
            hint = f"{nearest(name, NAMES)} Use {', '.join(NAMES)}, or a factory string of FAISS."
            raise MemoryStoreError(f"No index {name!r} of width {dim}.", hint.strip()) from error


def chosen(name: str, documents: int) -> str:
    """What an index of that name is for so many documents."""
    if name in NAMES and documents <= SMALL:
        return "exact"
    return ("exact" if documents <= AUTO else "ivf") if name == "auto" else name


def new_index(name: str, dim: int, seqs: np.ndarray, read: Read) -> VectorIndex:
    """An empty index by name, trained where it has to be, for the documents of a memory (int64, ascending)."""
    check_name(name, dim)
    kind = chosen(name, len(seqs))
    if kind == "exact":
        return VectorIndex(dim)
    import faiss

    made, sampled = _made(kind, dim, len(seqs))
    if not made.is_trained:
        rng = np.random.default_rng(0)
        made.train(read(np.sort(rng.choice(seqs, size=min(len(seqs), sampled), replace=False))))
    return ApproximateIndex(kind, dim, read, faiss.IndexIDMap(made))


def _made(kind: str, dim: int, documents: int) -> tuple[faiss.Index, int]:
    """A FAISS index that is not trained yet, and how many vectors to train it with."""
    import faiss

    if kind == "hnsw":
        return faiss.IndexHNSWFlat(dim, NEIGHBOURS, faiss.METRIC_INNER_PRODUCT), 0
    if kind not in NAMES:
        return faiss.index_factory(dim, kind, faiss.METRIC_INNER_PRODUCT), 2**17
    cells = max(1, min(int(4 * math.sqrt(documents)), documents // 39))  # k-means wants 39 of each
    if kind == "ivf":
        return faiss.index_factory(dim, f"IVF{cells},Flat", faiss.METRIC_INNER_PRODUCT), SAMPLE * cells
    pieces = next(pieces for pieces in range(max(1, dim // 8), 0, -1) if dim % pieces == 0)
    return faiss.index_factory(dim, f"IVF{cells},PQ{pieces}", faiss.METRIC_INNER_PRODUCT), max(SAMPLE * cells, 2**14)


class ApproximateIndex(VectorIndex):
    """An index that finds candidates; `vectors` are the database's, so that what it finds is scored exactly."""

    def __init__(self, kind: str, dim: int, read: Read, index: faiss.IndexIDMap) -> None:
        super().__init__(dim, index)
        self.kind, self._read = kind, read

    def compacted(self) -> VectorIndex:
        """The same index without its tombstones, where these are many; a few do no harm, and building takes long."""
        if self.dead * 4 <= len(self.live):
            return self
        index = new_index(self.kind, self.dim, self.live, self._read)
        for start in range(0, len(self.live), SCAN):
            seqs = self.live[start : start + SCAN]
            index.append(seqs, self.vectors(seqs))
        index.last_seq, index.generation = self.last_seq, self.generation
        return index

    def vectors(self, seqs: np.ndarray) -> np.ndarray:
        return self._read(seqs) if len(seqs) else np.empty((0, self.dim), dtype=np.float32)

    @property
    def _scanned(self) -> int:
        return READ

    def _fetch(self, k: int) -> int:
        return max(OVERFETCH * k, WIDTH)

    def _settled(self, scores: np.ndarray, k: int, last: float) -> bool:
        return True

    @property
    def _doubt(self) -> float:
        return self._slack if self.kind in ("hnsw", "ivf") else math.inf

    def _candidates(
        self, queries: np.ndarray, fetch: int, pool: np.ndarray, *, filtered: bool
    ) -> tuple[np.ndarray, np.ndarray] | None:
        import faiss

        inner: Any = faiss.downcast_index(self.index.index)
        parameters: Any = None
        if self.kind == "hnsw" and filtered:
            # A graph loses what cannot be reached through what the filter lets through; beneath it all vectors lie flat.
            only = faiss.SearchParameters(sel=bitmap(np.searchsorted(self._rows, pool), len(self._rows)))  # type: ignore[call-arg]
            scores, rows = faiss.downcast_index(inner.storage).search(queries, fetch, params=only)
            return scores, np.where(rows >= 0, self._rows[rows], -1)
        if self.kind == "hnsw":
            width = max(WIDTH, fetch)
            parameters = faiss.SearchParametersHNSW(sel=self._only(pool), efSearch=width)  # type: ignore[attr-defined]
        elif self.kind in ("ivf", "ivf-pq"):
            probed = inner.nlist if filtered else max(PROBED, inner.nlist // PROBED)
            parameters = faiss.SearchParametersIVF(sel=self._only(pool), nprobe=probed)  # type: ignore[call-arg]
        elif filtered:
            return None
        scores, labels = self.index.search(queries, fetch, params=parameters)
        if parameters is None and self.dead:  # not every kind takes a selector
            labels = np.where(self._are_live(labels), labels, -1)
        return scores, labels

    def _are_live(self, labels: np.ndarray) -> np.ndarray:
        rows = np.minimum(np.searchsorted(self.live, labels), len(self.live) - 1)
        return self.live[rows] == labels
