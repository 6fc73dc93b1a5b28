"""The rebuildable part of a memory: a FAISS index over the vectors, exact by inner product.

Labels are the journal's sequence numbers. Removed documents stay as tombstones until `compacted()`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import faiss

SCAN = 4096  # up to so many candidates a plain product is quicker than a selector
MAX_FETCH = 2048  # beyond so many results per query a plain scan is quicker than FAISS's heap
BLOCK = 1024  # queries at a time
CELLS = 2**24  # scores held at a time in a scan


class VectorIndex:
    """Vectors by sequence number, as far as (`last_seq`, `generation`) of the journal."""

    def __init__(self, dim: int, index: faiss.IndexIDMap | None = None) -> None:
        import faiss

        self.dim = dim
        self.index = index if index is not None else faiss.IndexIDMap(faiss.IndexFlatIP(dim))
        self.last_seq = self.generation = 0
        self._rows: np.ndarray = faiss.vector_to_array(self.index.id_map).astype(np.int64)  # [rows], ascending
        self.live = self._rows  # [m], ascending: what has not been removed

    @property
    def dead(self) -> int:
        """How many tombstones there are."""
        return len(self._rows) - len(self.live)

    def append(self, seqs: np.ndarray, vectors: np.ndarray) -> None:
        """Take in new documents: seqs int64 [n], ascending and above all others; vectors float32 [n, dim]."""
        self.index.add_with_ids(vectors, seqs)
        self._rows = np.concatenate([self._rows, seqs])
        self.live = np.concatenate([self.live, seqs])
        self.last_seq = int(seqs[-1])

    def keep(self, seqs: np.ndarray) -> None:
        """Forget all documents but these (int64, ascending)."""
        self.live = np.intersect1d(self.live, seqs, assume_unique=True)

    def compacted(self) -> VectorIndex:
        """The same index without its tombstones."""
        if not self.dead:
            return self
        index = VectorIndex(self.dim)
        for start in range(0, len(self.live), SCAN):
            seqs = self.live[start : start + SCAN]
            index.append(seqs, self.vectors(seqs))
        index.last_seq, index.generation = self.last_seq, self.generation
        return index

    def vectors(self, seqs: np.ndarray) -> np.ndarray:
        """Copies of stored vectors: float32 [n, dim]."""
        import faiss

        if not len(seqs):
            return np.empty((0, self.dim), dtype=np.float32)
        return faiss.downcast_index(self.index.index).reconstruct_batch(np.searchsorted(self._rows, seqs))

    def nearest(
        self, queries: np.ndarray, k: int, *, allowed: np.ndarray | None, excluded: Sequence[np.ndarray]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each query (float32 [n, dim]), every document whose score is at least the k-th best: (scores float32 [m],
        seqs int64 [m]), m >= k where there are so many, in no particular order. The caller breaks ties.

        allowed: only these (int64, ascending); None: all. excluded: for each query, these not.
        """
        pool = self.live if allowed is None else np.intersect1d(allowed, self.live, assume_unique=True)
        found: list[tuple[np.ndarray, np.ndarray]] = []
        for start in range(0, len(queries), BLOCK):
            found += self._nearest(queries[start : start + BLOCK], k, pool, excluded[start : start + BLOCK])
        return found

    def _nearest(
        self, queries: np.ndarray, k: int, pool: np.ndarray, excluded: Sequence[np.ndarray]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        found: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        pending = list(range(len(queries)))
        if len(pool) > SCAN:
            # Asking for a few more than k leaves room for what is excluded, and shows where a run of ties ends.
            fetch = k + max(map(len, excluded), default=0) + 16
            parameters = self._only(pool)
            while pending and fetch < min(len(pool), MAX_FETCH):
                scores, labels = self.index.search(queries[pending], fetch, params=parameters)
                for query, score, label in zip(pending, scores, labels, strict=True):
                    wanted = ~np.isin(label, excluded[query])
                    if wanted.sum() >= k and score[-1] < score[wanted][k - 1] - self._slack:
                        found[query] = self._best(queries[query], score[wanted], label[wanted], k)
                pending = [query for query in pending if query not in found]
                fetch *= 4
        step = max(1, CELLS // max(1, len(pool)))
        for start in range(0, len(pending), step):
            block = pending[start : start + step]
            for query, score in zip(block, self._scores(queries[block], pool), strict=True):
                wanted = ~np.isin(pool, excluded[query])
                found[query] = self._best(queries[query], score[wanted], pool[wanted], k)
        return [found[query] for query in range(len(queries))]

    @property
    def _slack(self) -> float:
        """How far apart two float32 sums of one inner product of unit vectors can lie, twice over: FAISS, BLAS and numpy
        add in different orders, so that a score is only trusted to this before it is computed again."""
        return self.dim * 2.0**-22

    def _only(self, pool: np.ndarray) -> Any:
        """FAISS's search parameters that restrict a search to a pool; None when that is all there is."""
        import faiss

        if len(pool) == len(self._rows):
            return None
        chosen = np.zeros(self.last_seq + 1, dtype=bool)
        chosen[pool] = True
        selector = faiss.IDSelectorBitmap(np.packbits(chosen, bitorder="little"))  # type: ignore[call-arg, arg-type]
        return faiss.SearchParameters(sel=selector)  # type: ignore[call-arg]

    def _scores(self, queries: np.ndarray, pool: np.ndarray) -> np.ndarray:
        """Approximate scores [n, len(pool)]."""
        scores = np.empty((len(queries), len(pool)), dtype=np.float32)
        for start in range(0, len(pool), SCAN):
            scores[:, start : start + SCAN] = queries @ self.vectors(pool[start : start + SCAN]).T
        return scores

    def _best(self, query: np.ndarray, scores: np.ndarray, seqs: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Of candidates with approximate scores, those that are at least as good as the k-th best, with exact scores."""
        if len(seqs) > k:
            near = scores >= np.partition(scores, -k)[-k] - self._slack
            seqs = seqs[near]
        # einsum adds every row in the same order, wherever it stands, so that equal vectors tie; BLAS does not.
        exact = np.einsum("nd,d->n", self.vectors(seqs), query)
        if len(seqs) > k:
            chosen = exact >= np.partition(exact, -k)[-k]
            exact, seqs = exact[chosen], seqs[chosen]
        return exact, seqs
