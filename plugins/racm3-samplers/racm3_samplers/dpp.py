"""A determinantal point process: Chen, Zhang and Zhou, "Fast Greedy MAP Inference for Determinantal Point Process to
Improve Recommendation Diversity", NeurIPS 2018 (https://arxiv.org/abs/1709.05135)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from racm3.interfaces import Hit, Query, Sampler, Selection

from .candidates import Candidates, check_share

SMALLEST = 1e-6  # of a squared volume; below it a document lies in the span of the chosen ones, but for rounding


class DppSampler(Sampler):
    """The documents, chosen greedily, that make the following large (the paper's equation 11)

        relevance x sum of scores  +  (1 - relevance) x log of the squared volume that their vectors span

    Unlike `mmr`, which looks at the most similar chosen document, this looks at all of them together. It chooses fewer than
    k when nothing is left that the chosen ones do not span.

    relevance: the paper's theta, from 0 (variety alone) to 1 (the k most relevant).
    """

    def __init__(self, relevance: float = 0.7) -> None:
        check_share("relevance", relevance)
        self.relevance = relevance

    def sample(self, query: Query, hits: Sequence[Hit], *, k: int, rng: np.random.Generator) -> Selection:
        """Raises `ConfigError` for a negative k. `rng` is not used: of equals the more relevant one is chosen."""
        candidates = Candidates(query, hits, k)
        similarity = candidates.similarity  # [n, n]
        # The paper's algorithm 1: rows of the Cholesky factor of the chosen, and what each candidate would add to it.
        factor = np.zeros((0, len(hits)))  # [chosen, n]
        gain = np.diag(similarity).copy()  # [n]: squared distance from the span of the chosen
        while not candidates.done and (left := candidates.open & (gain > SMALLEST)).any():
            value = self.relevance * candidates.relevance + (1 - self.relevance) * np.log(np.maximum(gain, SMALLEST))
            row = int(np.argmax(np.where(left, value, -np.inf)))
            candidates.choose(row)
            added = (similarity[row] - factor[:, row] @ factor) / np.sqrt(gain[row])  # [n]
            factor = np.vstack([factor, added])
            gain = gain - added**2
        return candidates.selection("adds too little to the chosen documents", candidates.most_similar)
