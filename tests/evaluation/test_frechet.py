"""Fréchet distance against its closed form, and against torchmetrics."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from racm3.evaluation.frechet import frechet_distance


def standardised(rows: int, dim: int, seed: int) -> np.ndarray:
    """Vectors whose mean is exactly 0 and whose covariance is exactly the identity."""
    drawn = np.random.default_rng(seed).standard_normal((rows, dim))
    drawn -= drawn.mean(0)
    return np.linalg.qr(drawn)[0] * np.sqrt(rows - 1)


def test_the_closed_form_of_two_normal_distributions_with_commuting_covariances() -> None:
    # |m₁ − m₂|² + Σ (√λ₁ − √λ₂)², the eigenvalues of either side in one basis.
    first_scale, second_scale = np.array([1.0, 2.0, 3.0]), np.array([4.0, 2.0, 0.5])
    shift = np.array([1.0, -2.0, 0.5])
    made = standardised(50, 3, 0) * first_scale
    real = standardised(70, 3, 1) * second_scale + shift
    expected = (shift**2).sum() + ((first_scale - second_scale) ** 2).sum()
    assert frechet_distance(made, real) == pytest.approx(expected, rel=1e-9)


def test_a_set_is_at_no_distance_from_itself_also_with_fewer_vectors_than_dimensions() -> None:
    few = np.random.default_rng(0).standard_normal((5, 32))
    assert frechet_distance(few, few) == pytest.approx(0.0, abs=1e-9)


def test_torchmetrics_gives_the_same() -> None:
    image = pytest.importorskip("torchmetrics.image.fid")
    rng = np.random.default_rng(3)
    mixing = rng.standard_normal((8, 8))
    made, real = rng.standard_normal((200, 8)) @ mixing, rng.standard_normal((150, 8)) + 0.3
    identity = torch.nn.Identity()
    identity.num_features = 8  # type: ignore[assignment]
    metric = image.FrechetInceptionDistance(feature=identity)
    metric.update(torch.from_numpy(real), real=True)
    metric.update(torch.from_numpy(made), real=False)
    assert frechet_distance(made, real) == pytest.approx(float(metric.compute()), rel=1e-6)


def test_a_weight_is_a_repetition() -> None:
    rng = np.random.default_rng(4)
    made, real, counts = rng.standard_normal((6, 3)), rng.standard_normal((6, 3)), np.array([0, 1, 3, 1, 0, 2])
    repeated = frechet_distance(np.repeat(made, counts, 0), np.repeat(real, counts, 0))
    assert frechet_distance(made, real, counts.astype(float)) == pytest.approx(repeated, rel=1e-9)


def test_one_vector_has_no_covariance() -> None:
    with pytest.raises(ValueError, match="two vectors"):
        frechet_distance(np.ones((1, 3)), np.ones((4, 3)))
