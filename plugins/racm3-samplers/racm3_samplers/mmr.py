"""Maximal marginal relevance: Carbonell and Goldstein, "The Use of MMR, Diversity-Based Reranking for Reordering
Documents and Producing Summaries", SIGIR 1998 (https://doi.org/10.1145/290941.291025)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from racm3.interfaces import Hit, Query, Sampler, Selection

from .candidates import Candidates, check_share


class MmrSampler(Sampler):
    """Chooses one document after another: each time the one with the largest

        relevance x score  -  (1 - relevance) x similarity to the most similar chosen document

    relevance: the paper's lambda, from 0 (variety alone) to 1 (the k most relevant).
    """

    def __init__(self, relevance: float = 0.5) -> None:
        check_share("relevance", relevance)
        self.relevance = relevance

    def sample(self, query: Query, hits: Sequence[Hit], *, k: int, rng: np.random.Generator) -> Selection:
        """Raises `ConfigError` for a negative k. `rng` is not used: of equals the more relevant one is chosen."""
        candidates = Candidates(query, hits, k)
        similarity, redundancy = candidates.similarity, np.zeros(len(hits))  # [n, n], [n]
        while not candidates.done:
            value = self.relevance * candidates.relevance - (1 - self.relevance) * redundancy
            candidates.choose(int(np.argmax(np.where(candidates.open, value, -np.inf))))
            redundancy = similarity[candidates.chosen].max(axis=0)
        return candidates.selection("too much like a chosen document for its relevance", candidates.most_similar)
