"""The candidates that a sampler chooses from, and the selection that it makes of them, one after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from racm3.errors import ConfigError
from racm3.interfaces import Hit, Query, Selection, Skip
from racm3.samplers.diverse import NOTHING
from racm3.samplers.topk import check_k


class Candidates:
    """Hits as numbers. What shows the same text or picture as the query, or as a chosen document, is never chosen: as in
    the paper of the method (section 3.2), since an answer should not be copied, nor a context hold one thing twice.

    relevance: float [n], the scores. vectors: float [n, width], unit norm; a hit without a vector is unlike any other.
    open: bool [n], what can still be chosen. chosen: rows, in the order of choosing.
    """

    def __init__(self, query: Query, hits: Sequence[Hit], k: int) -> None:
        """Raises `ConfigError` for a negative k."""
        check_k(k)
        self.hits, self.k = hits, k
        self.vectors = _vectors(hits)
        self.relevance = np.array([_relevance(query, hit) for hit in hits])
        asked = {part.content_hash for part in query.document.parts} - NOTHING
        self.open = np.array([not hit.hashes & asked for hit in hits], dtype=bool)
        self.chosen: list[int] = []
        self._skips = {row: Skip(hits[row], "same content as the query") for row in np.flatnonzero(~self.open).tolist()}

    @property
    def similarity(self) -> np.ndarray:
        """Inner products of all pairs: float [n, n]."""
        return self.vectors @ self.vectors.T

    @property
    def done(self) -> bool:
        """Whether k are chosen, or nothing is left to choose."""
        return len(self.chosen) >= self.k or not self.open.any()

    def choose(self, row: int) -> None:
        """Choose a candidate, and close those that show the same."""
        self.chosen.append(row)
        self.open[row] = False
        taken = self.hits[row].hashes - NOTHING
        for other in np.flatnonzero(self.open).tolist():
            if self.hits[other].hashes & taken:
                self.open[other] = False
                self._skips[other] = Skip(self.hits[other], "same content as a chosen document", self.hits[row].id)

    def selection(self, reason: str, because_of: Callable[[int], int]) -> Selection:
        """The chosen ones, most relevant first, and what was passed over: all down to the last of them, or all there are
        when fewer than k were chosen.

        because_of: for a row that was passed over, the chosen row that is the cause.
        """
        rows = sorted(self.chosen)
        end = len(self.hits) if len(rows) < self.k else max(rows, default=0)
        for row in set(range(end)).difference(rows, self._skips):
            cause = self.hits[because_of(row)].id if rows else None
            self._skips[row] = Skip(self.hits[row], reason, cause)
        return Selection(
            [self.hits[row] for row in rows], [self._skips[row] for row in sorted(self._skips) if row < end]
        )

    def most_similar(self, row: int) -> int:
        """The chosen row that is most like another row."""
        return self.chosen[int(np.argmax(self.vectors[self.chosen] @ self.vectors[row]))]


def check_share(name: str, value: float) -> None:
    """Raises `ConfigError` for a share that is not between 0 and 1."""
    if not 0 <= value <= 1:
        raise ConfigError(f"{name} is a share from 0 (variety alone) to 1 (relevance alone), not {value}.")


def _relevance(query: Query, hit: Hit) -> float:
    if hit.score is not None:
        return float(hit.score)
    return float(hit.vector @ query.vector) if hit.vector is not None and query.vector is not None else 0.0


def _vectors(hits: Sequence[Hit]) -> np.ndarray:
    width = next((len(hit.vector) for hit in hits if hit.vector is not None), 0)
    without = [row for row, hit in enumerate(hits) if hit.vector is None]
    # A hit without a vector gets an axis of its own, at right angles to all others.
    vectors = np.zeros((len(hits), width + len(without)))
    for row, hit in enumerate(hits):
        if hit.vector is not None:
            vectors[row, :width] = hit.vector
    vectors[without, range(width, width + len(without))] = 1
    return vectors
