"""A sampler that passes over what is too far from the query."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from racm3 import Hit, Sampler
from racm3.errors import ConfigError
from racm3.interfaces import Query, Selection, Skip

if TYPE_CHECKING:
    import numpy as np


class ExampleSampler(Sampler):
    """minimum: the lowest score that a document may have, in [-1, 1]. Documents given by hand, without a score, stay."""

    def __init__(self, minimum: float = 0.0) -> None:
        if not -1 <= minimum <= 1:
            raise ConfigError(f"minimum is a similarity in [-1, 1], not {minimum}.")
        self.minimum = minimum

    def sample(self, query: Query, hits: Sequence[Hit], *, k: int, rng: np.random.Generator) -> Selection:
        if k < 0:
            raise ConfigError(f"k is the number of documents to choose, 0 or more, not {k}.")
        chosen: list[Hit] = []
        skipped: list[Skip] = []
        for hit in hits:
            if len(chosen) == k:
                break
            if hit.score is not None and hit.score < self.minimum:
                skipped.append(Skip(hit, "too far from the query"))
            else:
                chosen.append(hit)
        return Selection(chosen, skipped)
