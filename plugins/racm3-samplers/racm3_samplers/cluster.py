"""One document per cluster: van Leuken, Garcia, Olivares and van Zwol, "Visual Diversification of Image Search Results",
WWW 2009 (https://doi.org/10.1145/1526709.1526756): results are clustered, and each cluster shows one of its own.

The clusters are those of spherical k-means (Dhillon and Modha, "Concept Decompositions for Large Sparse Text Data Using
Clustering", Machine Learning 42, 2001), which suits unit vectors; and what a cluster shows is its most relevant document,
where that paper takes its centre, since a context is read by a generator and not leafed through.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from racm3.errors import ConfigError
from racm3.interfaces import Hit, Query, Sampler, Selection

from .candidates import Candidates

ROUNDS = 50
APART = 1e-6  # 1 - cosine, below which two vectors are one


class ClusterSampler(Sampler):
    """Divides the best candidates into k clusters, and chooses the most relevant document of each; fewer than k when
    fewer candidates differ.

    pool: how many of the best candidates are clustered for each document that is asked for (twice as many while they do not
    give k). More of them reach further away from the query.
    """

    def __init__(self, pool: int = 8) -> None:
        if pool < 1:
            raise ConfigError(f"pool is a number of candidates for each document, 1 or more, not {pool}.")
        self.pool = pool

    def sample(self, query: Query, hits: Sequence[Hit], *, k: int, rng: np.random.Generator) -> Selection:
        """Raises `ConfigError` for a negative k. `rng` is not used: the first centres are the best document, and then each
        time the one farthest from all centres."""
        size = self.pool * k
        while True:
            selection = self._among(query, hits[:size], k)
            if len(selection.hits) == k or size >= len(hits):
                return selection
            size *= 2

    def _among(self, query: Query, hits: Sequence[Hit], k: int) -> Selection:
        candidates = Candidates(query, hits, k)
        rows = np.flatnonzero(candidates.open)
        cluster = dict(zip(rows.tolist(), _clusters(candidates.vectors[rows], k).tolist(), strict=True))
        shown: dict[int, int] = {}  # cluster: the row that it shows
        for row in rows.tolist():
            if candidates.open[row] and cluster[row] not in shown:
                candidates.choose(row)
                shown[cluster[row]] = row
        return candidates.selection("in the cluster of a chosen document", lambda row: shown[cluster[row]])


def _clusters(vectors: np.ndarray, k: int) -> np.ndarray:
    """The cluster of each unit vector [n, width]: int [n], below k."""
    if not len(vectors) or not k:
        return np.zeros(len(vectors), dtype=int)
    centres = vectors[:1]  # [clusters, width]
    while len(centres) < k:
        closeness = (vectors @ centres.T).max(axis=1)
        if 1 - closeness.min() < APART:
            break
        centres = np.vstack([centres, vectors[np.argmin(closeness)]])
    labels = np.argmax(vectors @ centres.T, axis=1)
    for _ in range(ROUNDS):
        sums = np.stack([vectors[labels == label].sum(axis=0) for label in range(len(centres))])
        # A cluster that has lost all its members, or whose members cancel out, keeps its centre.
        norms = np.linalg.norm(sums, axis=1, keepdims=True)
        centres = np.where(norms > APART, sums / np.maximum(norms, APART), centres)
        before, labels = labels, np.argmax(vectors @ centres.T, axis=1)
        if np.array_equal(before, labels):
            break
    return labels
