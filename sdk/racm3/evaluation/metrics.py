"""The figures themselves: plain functions of arrays and strings."""

from __future__ import annotations

import re
from collections import Counter
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


def mean_by_group(values: np.ndarray, groups: Sequence[str]) -> float:
    """The mean of group means: every group (entity) counts the same, however many values it has."""
    _, index = np.unique(np.asarray(groups), return_inverse=True)
    sums, counts = np.bincount(index, weights=values), np.bincount(index)
    return float((sums / counts).mean())


def bootstrap_interval(
    values: np.ndarray, groups: Sequence[str], *, draws: int = 1000, seed: int = 0, share: float = 0.95
) -> tuple[float, float]:
    """The interval that holds `share` of `mean_by_group` when whole groups are drawn with replacement."""
    _, index = np.unique(np.asarray(groups), return_inverse=True)
    means = np.bincount(index, weights=values) / np.bincount(index)
    drawn = np.random.default_rng(seed).integers(len(means), size=(draws, len(means)))
    low, high = np.quantile(means[drawn].mean(1), [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)


def psnr(pictures: np.ndarray, originals: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio in dB, [n], of uint8 pictures [n, h, w, 3]."""
    error = (pictures.astype(np.float64) - originals) ** 2
    return 10 * np.log10(255.0**2 / np.maximum(error.reshape(len(error), -1).mean(1), 1e-6))


def normal_words(text: str) -> list[str]:
    """Lower-case words without punctuation."""
    return re.findall(r"\w+", text.lower())


def exact_match(answer: str, truth: str) -> float:
    """1 if both have the same words in the same order, else 0."""
    return float(normal_words(answer) == normal_words(truth))


def token_f1(answer: str, truth: str) -> float:
    """Harmonic mean of word precision and recall (SQuAD, arXiv 1606.05250)."""
    said, wanted = Counter(normal_words(answer)), Counter(normal_words(truth))
    common = sum((said & wanted).values())
    if not common:
        return float(said == wanted)
    return 2 * common / (sum(said.values()) + sum(wanted.values()))
