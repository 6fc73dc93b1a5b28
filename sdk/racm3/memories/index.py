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

    kind = "exact"

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
        filtered = allowed is not None
        for start in range(0, len(queries), BLOCK):
            left_out = excluded[start : start + BLOCK]
            found += self._nearest(queries[start : start + BLOCK], k, pool, left_out, filtered=filtered)
        return found

    def _nearest(
        self, queries: np.ndarray, k: int, pool: np.ndarray, excluded: Sequence[np.ndarray], *, filtered: bool
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        found: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        pending = list(range(len(queries)))
        if len(pool) > self._scanned:
            fetch = self._fetch(k) + max(map(len, excluded), default=0)
            while pending and fetch < min(len(pool), MAX_FETCH):
                candidates = self._candidates(queries[pending], fetch, pool, filtered=filtered)
                if candidates is None:
                    break
                for query, score, label in zip(pending, *candidates, strict=True):
                    wanted = (label >= 0) & ~np.isin(label, excluded[query])
                    if wanted.sum() >= k and self._settled(score[wanted], k, score[-1]):
                        found[query] = self._best(queries[query], score[wanted], label[wanted], k, self._doubt)
                pending = [query for query in pending if query not in found]
                fetch *= 4
        step = max(1, CELLS // max(1, len(pool)))
        for start in range(0, len(pending), step):
            block = pending[start : start + step]
            for query, score in zip(block, self._scores(queries[block], pool), strict=True):
                wanted = ~np.isin(pool, excluded[query])
                found[query] = self._best(queries[query], score[wanted], pool[wanted], k, self._slack)
        return [found[query] for query in range(len(queries))]

    @property
    def _scanned(self) -> int:
        """Up to so many candidates are all looked at."""
        return SCAN

    def _fetch(self, k: int) -> int:
        """How many candidates to ask for. A few more than k leave room to see where a run of ties ends."""
        return k + 16

    def _settled(self, scores: np.ndarray, k: int, last: float) -> bool:
        """Whether the k best are surely among candidates of which the last, wanted or not, has such a score."""
        return bool(last < scores[k - 1] - self._slack)

    def _candidates(
        self, queries: np.ndarray, fetch: int, pool: np.ndarray, *, filtered: bool
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """The best of a pool by approximate scores, best first: scores and labels [n, fetch], -1 for none; None: it cannot
        tell. filtered: whether the pool is what a filter let through, and not all that is live."""
        import faiss

        selector = self._only(pool)
        parameters = None if selector is None else faiss.SearchParameters(sel=selector)  # type: ignore[call-arg]
        scores, labels = self.index.search(queries, fetch, params=parameters)
        return scores, labels

    @property
    def _slack(self) -> float:
        """How far apart two float32 sums of one inner product of unit vectors can lie, twice over: FAISS, BLAS and numpy
        add in different orders, so that a score is only trusted to this before it is computed again."""
        return self.dim * 2.0**-22

    @property
    def _doubt(self) -> float:
        """How far the scores of candidates can lie from the exact ones, twice over."""
        return self._slack

    def _only(self, pool: np.ndarray) -> Any:
        """FAISS's selector that restricts a search to a pool; None when that is all there is."""
        return None if len(pool) == len(self._rows) else bitmap(pool, self.last_seq + 1)

    def _scores(self, queries: np.ndarray, pool: np.ndarray) -> np.ndarray:
        """Approximate scores [n, len(pool)]."""
        scores = np.empty((len(queries), len(pool)), dtype=np.float32)
        for start in range(0, len(pool), SCAN):
            scores[:, start : start + SCAN] = queries @ self.vectors(pool[start : start + SCAN]).T
        return scores

    def _best(
        self, query: np.ndarray, scores: np.ndarray, seqs: np.ndarray, k: int, doubt: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Of candidates with approximate scores, those that are at least as good as the k-th best, with exact scores."""
        if len(seqs) > k:
            near = scores >= np.partition(scores, -k)[-k] - doubt
            seqs = seqs[near]
        # einsum adds every row in the same order, wherever it stands, so that equal vectors tie; BLAS does not.
        exact = np.einsum("nd,d->n", self.vectors(seqs), query)
        if len(seqs) > k:
            chosen = exact >= np.partition(exact, -k)[-k]
            exact, seqs = exact[chosen], seqs[chosen]
        return exact, seqs


def bitmap(chosen: np.ndarray, size: int) -> Any:
    """FAISS's selector of some of the numbers below `size`."""
    import faiss

    bits = np.zeros(size, dtype=bool)
    bits[chosen] = True
    return faiss.IDSelectorBitmap(np.packbits(bits, bitorder="little"))  # type: ignore[call-arg, arg-type]
