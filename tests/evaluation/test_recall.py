"""Recall@1 and reciprocal ranks against small cases that were worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from racm3.evaluation.recall import retrieval

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
