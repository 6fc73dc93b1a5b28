"""The metrics against small cases that were worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from racm3.evaluation.metrics import bootstrap_interval, exact_match, mean_by_group, psnr, retrieval, token_f1

GALLERY = np.eye(3, dtype=np.float32)


def test_a_query_that_finds_its_label_first_scores_one() -> None:
    found = retrieval(np.array([[1.0, 0.0, 0.0]]), GALLERY, ["a"], ["a", "b", "c"])
    assert found.hits.tolist() == [1.0]
    assert found.reciprocal_ranks.tolist() == [1.0]


def test_rank_counts_what_is_better_and_what_ties() -> None:
    query = np.array([[0.0, 0.6, 0.8], [0.0, 0.0, 1.0]])
    found = retrieval(query, GALLERY, ["b", "a"], ["a", "b", "c"])
    assert found.hits.tolist() == [0.0, 0.0]
    # The second query is equally far from a and b, and nearer to c: the tie counts against it.
    assert found.reciprocal_ranks.tolist() == [0.5, pytest.approx(1 / 3)]


def test_only_what_is_allowed_is_found() -> None:
    query = np.array([[1.0, 0.1, 0.0]])
    labels = ["a", "a", "c"]
    everything = retrieval(query, GALLERY, ["a"], labels)
    without_first = retrieval(query, GALLERY, ["a"], labels, allowed=np.array([[False, True, True]]))
    nothing_right = retrieval(query, GALLERY, ["a"], labels, allowed=np.array([[False, False, True]]))
    assert (everything.hits[0], without_first.hits[0], nothing_right.hits[0]) == (1.0, 1.0, 0.0)
    assert nothing_right.reciprocal_ranks[0] == 0.0


def test_every_group_counts_the_same() -> None:
    assert mean_by_group(np.array([1.0, 1.0, 1.0, 0.0]), ["a", "a", "a", "b"]) == 0.5


def test_the_bootstrap_interval_holds_the_mean_and_shrinks_with_more_groups() -> None:
    rng = np.random.default_rng(1)
    few, many = rng.random(20), rng.random(2000)
    low, high = bootstrap_interval(few, [str(i) for i in range(20)])
    narrow_low, narrow_high = bootstrap_interval(many, [str(i) for i in range(2000)])
    assert low < few.mean() < high
    assert narrow_high - narrow_low < (high - low) / 4


def test_psnr_of_a_known_error() -> None:
    black, grey = np.zeros((1, 2, 2, 3), np.uint8), np.full((1, 2, 2, 3), 51, np.uint8)
    assert psnr(grey, black)[0] == pytest.approx(20 * np.log10(5))


def test_captions() -> None:
    assert exact_match("Flag: Bhutan", "flag bhutan") == 1.0
    assert exact_match("bhutan flag", "flag bhutan") == 0.0
    assert token_f1("red kite", "a red kite") == pytest.approx(0.8)
    assert token_f1("whale", "kite") == 0.0
