"""Fréchet distance between two sets of vectors, each taken for a normal distribution (arXiv 1706.08500)."""

from __future__ import annotations

import numpy as np

from .bootstrap import Weights


def frechet_distance(made: np.ndarray, real: np.ndarray, weights: Weights | None = None) -> float:
    """|m₁ − m₂|² + tr(C₁ + C₂ − 2 (C₁ C₂)^½) of vectors [n, dim] and [m, dim]; 0 at best.

    weights: how often row i of both counts, [n]; then n is m. With few rows per dimension the distance comes out too
    large: compare only sets of the same size. Raises ValueError for fewer than two rows.
    """
    first, second = _moments(made, weights), _moments(real, weights)
    # With C = RᵀR on both sides, the trace of (C₁ C₂)^½ is the sum of the singular values of R₁ R₂ᵀ: no matrix root,
    # which is where other implementations lose digits when a covariance is singular.
    shared = np.linalg.svd(first[1] @ second[1].T, compute_uv=False).sum()
    spread = (first[1] ** 2).sum() + (second[1] ** 2).sum()
    return float(max(0.0, ((first[0] - second[0]) ** 2).sum() + spread - 2 * shared))


def _moments(vectors: np.ndarray, weights: Weights | None) -> tuple[np.ndarray, np.ndarray]:
    """The mean [dim], and a root R of the covariance, C = RᵀR, [min(n, dim), dim]."""
    vectors = np.asarray(vectors, np.float64)
    counts = np.ones(len(vectors)) if weights is None else weights
    total = counts.sum()
    if total < 2:
        raise ValueError(f"A covariance needs two vectors at least, not {int(total)}.")
    mean = counts @ vectors / total
    centred = (vectors - mean) * np.sqrt(counts / (total - 1))[:, None]
    return mean, np.asarray(np.linalg.qr(centred, mode="r"))
