"""Does a query find its own kind? Recall@1 and mean reciprocal rank (MRR)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Retrieval:
    """For each query: whether the best match is right (0 or 1), and one over the rank of the first right match."""

    hits: np.ndarray
    reciprocal_ranks: np.ndarray


def retrieval(
    queries: np.ndarray,
    gallery: np.ndarray,
    query_labels: Sequence[str],
    gallery_labels: Sequence[str],
    *,
    allowed: np.ndarray | None = None,
) -> Retrieval:
    """Does a query find its own label in the gallery? Vectors: unit norm, [q, dim] and [g, dim].

    allowed: bool [q, g], which of the gallery a query may find. Ties count against the query. A query whose label is
    not in its gallery scores 0.
    """
    scores = queries.astype(np.float32) @ gallery.astype(np.float32).T  # [q, g]
    right = np.asarray(query_labels)[:, None] == np.asarray(gallery_labels)[None]
    if allowed is not None:
        scores = np.where(allowed, scores, -np.inf)
        right = right & allowed
    best_right = np.where(right, scores, -np.inf).max(1, keepdims=True)
    ahead = ((scores >= best_right) & ~right & np.isfinite(scores)).sum(1)
    ranks = np.where(right.any(1), 1.0 / (1 + ahead), 0.0)
    return Retrieval((ranks == 1).astype(np.float64), ranks)
