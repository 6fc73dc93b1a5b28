"""The paper's sampler (section 3.2): relevant documents that repeat neither the query nor each other.

Walk the candidates from the top, and pass over one that is too close to the query or to a document already chosen. An
identical text or image counts as a duplicate too, although the documents may differ: two captions of one picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..document import Blank, Text
from ..errors import ConfigError
from ..interfaces import Hit, Query, Sampler, Selection, Skip
from .topk import check_k

if TYPE_CHECKING:
    import numpy as np

# What shows nothing: two documents of which each has a blank, or an empty caption, repeat nothing.
NOTHING = frozenset(part.content_hash for part in (Blank("text"), Blank("image"), Text("")))


class DiverseSampler(Sampler):
    """threshold: the highest inner product with the query or a chosen document that is still allowed, in (0, 1]; the
    paper's is 0.9. A hit without a vector (given by hand) is compared by content alone.
    """

    def __init__(self, threshold: float = 0.9) -> None:
        if not 0 < threshold <= 1:
            raise ConfigError(f"threshold is a similarity in (0, 1], not {threshold}.", "The paper uses 0.9.")
        self.threshold = threshold

    def sample(self, query: Query, hits: Sequence[Hit], *, k: int, rng: np.random.Generator) -> Selection:
        """Raises `ConfigError` for a negative k. `rng` is not used. Candidates after the k-th chosen are not looked at."""
        check_k(k)
        asked = {part.content_hash for part in query.document.parts} - NOTHING
        chosen: list[Hit] = []
        skipped: list[Skip] = []
        for hit in hits:
            if len(chosen) == k:
                break
            skip = self._against_query(hit, asked, query.vector) or self._against_chosen(hit, chosen)
            if skip is None:
                chosen.append(hit)
            else:
                skipped.append(skip)
        return Selection(chosen, skipped)

    def _against_query(self, hit: Hit, asked: set[str], vector: np.ndarray | None) -> Skip | None:
        if hit.hashes & asked:
            return Skip(hit, "same content as the query")
        if self._are_too_close(hit.vector, vector):
            return Skip(hit, "too close to the query")
        return None

    def _against_chosen(self, hit: Hit, chosen: list[Hit]) -> Skip | None:
        for other in chosen:
            if hit.hashes & other.hashes - NOTHING:
                return Skip(hit, "same content as a chosen document", because_of=other.id)
            if self._are_too_close(hit.vector, other.vector):
                return Skip(hit, "too close to a chosen document", because_of=other.id)
        return None

    def _are_too_close(self, one: np.ndarray | None, other: np.ndarray | None) -> bool:
        return one is not None and other is not None and self.is_too_close(float(one @ other))

    def is_too_close(self, product: float) -> bool:
        """Whether an inner product of unit vectors is above the threshold."""
        # A sum of products may exceed 1 by rounding, which a threshold of 1 must not see.
        return min(product, 1.0) > self.threshold
