"""How sure a figure is: intervals by drawing whole groups (entities) again, with replacement."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

# How often each item was drawn, float64 [n].
Weights: TypeAlias = np.ndarray
SHARE = 0.95


@dataclass(frozen=True)
class Figure:
    """A measured value, and the interval that holds 95 % of what other draws of the entities would give."""

    value: float
    low: float
    high: float

    @property
    def interval(self) -> list[float]:
        return [self.low, self.high]


def mean_by_group(values: np.ndarray, groups: Sequence[str]) -> float:
    """The mean of group means: every group (entity) counts the same, however many values it has."""
    return float(_group_means(values, groups).mean())


def bootstrap_interval(
    values: np.ndarray, groups: Sequence[str], *, draws: int = 1000, seed: int = 0, share: float = SHARE
) -> tuple[float, float]:
    """The interval that holds `share` of `mean_by_group` when whole groups are drawn with replacement."""
    means = _group_means(values, groups)
    drawn = np.random.default_rng(seed).integers(len(means), size=(draws, len(means)))
    low, high = np.quantile(means[drawn].mean(1), [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)


def mean_figure(values: np.ndarray, groups: Sequence[str], *, draws: int = 1000, seed: int = 0) -> Figure:
    """`mean_by_group` with its interval."""
    return Figure(mean_by_group(values, groups), *bootstrap_interval(values, groups, draws=draws, seed=seed))


def set_figure(
    statistic: Callable[[Weights], float], groups: Sequence[str], *, draws: int = 100, seed: int = 0
) -> Figure:
    """A figure of a whole set (a distance, a corpus score) that is not a mean over its items.

    statistic: the figure when item i counts weights[i] times. Items drawn twice make a set look less varied than it
    is, which shifts distances; so the interval is the spread of the draws about their own mean, put around the value.
    Draws of one and the same group are passed over: among its repeats there is no distance.
    """
    _, index = np.unique(np.asarray(groups), return_inverse=True)
    value = statistic(np.ones(len(index)))
    rng, count = np.random.default_rng(seed), int(index.max()) + 1
    if count == 1:
        return Figure(float(value), float(value), float(value))
    drawn: list[float] = []
    while len(drawn) < draws:
        times = np.bincount(rng.integers(count, size=count), minlength=count)
        if (times > 0).sum() > 1:
            drawn.append(statistic(times[index].astype(np.float64)))
    low, high = np.quantile(drawn, [(1 - SHARE) / 2, (1 + SHARE) / 2]) - np.mean(drawn)
    low, high = value + min(low, 0.0), value + max(high, 0.0)
    if value >= 0:  # a distance is never below zero
        low = max(low, 0.0)
    return Figure(float(value), float(low), float(high))


def _group_means(values: np.ndarray, groups: Sequence[str]) -> np.ndarray:
    _, index = np.unique(np.asarray(groups), return_inverse=True)
    return np.bincount(index, weights=values) / np.bincount(index)
