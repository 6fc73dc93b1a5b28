"""CMMD against another implementation, written out as the paper's equation 4 has it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from racm3.evaluation.cmmd import Cmmd, cmmd


def unit(rows: int, dim: int, seed: int, shift: float = 0.0) -> np.ndarray:
    drawn = np.random.default_rng(seed).standard_normal((rows, dim)) + shift
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def as_written(made: np.ndarray, real: np.ndarray) -> float:
    """Term by term, with a loop over pairs: k(x, y) = exp(−|x − y|² / (2·10²)), unbiased, times 1000."""

    def k(x: np.ndarray, y: np.ndarray) -> float:
        return math.exp(-sum((a - b) ** 2 for a, b in zip(x, y, strict=True)) / (2 * 10**2))

    m, n = len(made), len(real)
    first = sum(k(made[i], made[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    second = sum(k(real[i], real[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    between = sum(k(x, y) for x in made for y in real) / (m * n)
    return 1000 * (first + second - 2 * between)


def test_it_is_what_the_paper_writes() -> None:
    made, real = unit(9, 5, 0, shift=0.5), unit(13, 5, 1)
    assert cmmd(made, real) == pytest.approx(as_written(made, real), abs=1e-9)


def test_two_draws_of_one_distribution_are_nearer_than_two_distributions() -> None:
    same = cmmd(unit(400, 16, 0), unit(400, 16, 1))
    other = cmmd(unit(400, 16, 0), unit(400, 16, 1, shift=0.5))
    assert abs(same) < 0.1 < 1.0 < other


def test_a_row_is_not_compared_with_its_own_repeats() -> None:
    made, real = unit(6, 4, 0, shift=0.5), unit(6, 4, 1)
    kept = [0, 2, 5]
    weights = np.zeros(6)
    weights[kept] = 2.0
    assert Cmmd(made, real)(weights) == pytest.approx(cmmd(made[kept], real[kept]), abs=1e-9)


def test_one_vector_is_too_few() -> None:
    with pytest.raises(ValueError, match="two vectors"):
        cmmd(unit(1, 4, 0), unit(4, 4, 1))
