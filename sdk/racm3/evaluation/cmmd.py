"""CMMD: squared maximum mean discrepancy between two sets of embeddings (arXiv 2401.09603, equation 4)."""

from __future__ import annotations

import numpy as np

from .bootstrap import Weights

# The paper's bandwidth, for unit vectors, and its scale, for figures that one can read.
SIGMA = 10.0
SCALE = 1000.0


class Cmmd:
    """The kernels of two sets of unit vectors [n, dim] and [m, dim], ready to be weighed again and again."""

    def __init__(self, made: np.ndarray, real: np.ndarray) -> None:
        if len(made) < 2 or len(real) < 2:
            raise ValueError(f"CMMD needs two vectors at least on either side, not {len(made)} and {len(real)}.")
        self._made, self._real, self._between = _kernel(made, made), _kernel(real, real), _kernel(made, real)

    def __call__(self, weights: Weights | None = None) -> float:
        """The unbiased estimate times 1000: about 0, and sometimes below it, for sets of one distribution.

        weights: how often row i of both sides counts, [n]; then n is m. A row is not compared with its own repeats.
        """
        first = np.ones(len(self._made)) if weights is None else weights
        second = np.ones(len(self._real)) if weights is None else weights
        between = first @ self._between @ second / (first.sum() * second.sum())
        return SCALE * float(_within(self._made, first) + _within(self._real, second) - 2 * between)


def cmmd(made: np.ndarray, real: np.ndarray) -> float:
    """CMMD of unit vectors [n, dim] and [m, dim]; see `Cmmd`."""
    return Cmmd(made, real)()


def _kernel(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """exp(−|x − y|² / 2σ²), [rows, columns]."""
    rows, columns = np.asarray(rows, np.float64), np.asarray(columns, np.float64)
    squared = (rows**2).sum(1)[:, None] + (columns**2).sum(1)[None] - 2 * rows @ columns.T
    return np.exp(-squared / (2 * SIGMA**2))


def _within(kernel: np.ndarray, weights: np.ndarray) -> float:
    """The mean over pairs of different rows."""
    own = weights**2
    return float((weights @ kernel @ weights - own @ kernel.diagonal()) / (weights.sum() ** 2 - own.sum()))
