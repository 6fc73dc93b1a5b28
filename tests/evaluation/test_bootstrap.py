"""Intervals by drawing whole groups again."""

from __future__ import annotations

import numpy as np

from racm3.evaluation.bootstrap import bootstrap_interval, mean_by_group, mean_figure, set_figure
from racm3.evaluation.cmmd import Cmmd


def test_every_group_counts_the_same() -> None:
    assert mean_by_group(np.array([1.0, 1.0, 1.0, 0.0]), ["a", "a", "a", "b"]) == 0.5


def test_the_bootstrap_interval_holds_the_mean_and_shrinks_with_more_groups() -> None:
    rng = np.random.default_rng(1)
    few, many = rng.random(20), rng.random(2000)
    low, high = bootstrap_interval(few, [str(i) for i in range(20)])
    narrow_low, narrow_high = bootstrap_interval(many, [str(i) for i in range(2000)])
    assert low < few.mean() < high
    assert narrow_high - narrow_low < (high - low) / 4


def test_a_set_figure_of_a_mean_agrees_with_the_interval_of_the_mean() -> None:
    values = np.random.default_rng(2).normal(5.0, 1.0, 400)
    groups = [str(i) for i in range(400)]
    of_mean = mean_figure(values, groups)
    of_set = set_figure(lambda weights: float(values @ weights / weights.sum()), groups, draws=1000)
    assert of_set.value == of_mean.value
    np.testing.assert_allclose(of_set.interval, of_mean.interval, atol=0.02)


def test_whole_groups_are_drawn_so_one_group_leaves_no_spread() -> None:
    figure = set_figure(lambda weights: float(weights[0]), ["a", "a", "a"])
    assert (figure.low, figure.value, figure.high) == (1.0, 1.0, 1.0)


def test_an_interval_holds_its_value_even_where_repeats_shift_the_draws() -> None:
    # Of ten things drawn with replacement only about six and a half differ: every draw lies below the value.
    figure = set_figure(lambda weights: float((weights > 0).sum()), [str(i) for i in range(10)])
    assert figure.low < figure.value == 10.0 < figure.high


def test_the_interval_of_what_is_never_negative_is_not_either() -> None:
    values = np.random.default_rng(0).exponential(size=6)
    spread = set_figure(lambda weights: float(values @ weights / weights.sum()) - 0.95 * values.mean(), list("abcdef"))
    assert spread.low == 0 < spread.value < spread.high
    below = set_figure(lambda weights: float(values @ weights / weights.sum()) - 2.0, list("abcdef"))
    assert below.low < below.value < 0


def test_two_things_have_an_interval_although_a_draw_may_hold_one_of_them_twice() -> None:
    made, real = np.eye(4)[:2], np.eye(4)[2:]
    figure = set_figure(Cmmd(made, real), ["a", "b"])
    assert np.isfinite([figure.low, figure.value, figure.high]).all()
