"""The random baseline: any of the candidates. Without relevance retrieval hardly helps (an ablation of the paper)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..interfaces import Hit, Query, Sampler, Selection
from .topk import check_k

if TYPE_CHECKING:
    import numpy as np


class RandomSampler(Sampler):
    """k candidates, each as likely as any other, without replacement, in the order in which they are drawn."""

    def sample(self, query: Query, hits: Sequence[Hit], *, k: int, rng: np.random.Generator) -> Selection:
        """Raises `ConfigError` for a negative k."""
        check_k(k)
        drawn = rng.permutation(len(hits))[:k]
        return Selection([hits[position] for position in drawn])
