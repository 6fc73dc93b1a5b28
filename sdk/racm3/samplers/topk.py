"""The plain baseline: the k most relevant candidates. The paper finds it slightly worse than no retrieval, since
duplicates crowd the context."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import ConfigError
from ..interfaces import Hit, Query, Sampler, Selection

if TYPE_CHECKING:
    import numpy as np


class TopKSampler(Sampler):
    """The first k candidates, as they come."""

    def sample(self, query: Query, hits: Sequence[Hit], *, k: int, rng: np.random.Generator) -> Selection:
        """Raises `ConfigError` for a negative k. `rng` is not used."""
        check_k(k)
        return Selection(list(hits[:k]))


def check_k(k: int) -> None:
    """Raises `ConfigError` for a number of documents that cannot be asked for."""
    if k < 0:
        raise ConfigError(f"k is the number of documents to choose, 0 or more, not {k}.")
