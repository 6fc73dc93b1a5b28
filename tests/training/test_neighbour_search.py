"""The exact search behind prepared neighbours, against all inner products at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from racm3.document import Document, Image
from racm3.training import neighbour_search
from racm3.training.neighbour_search import NeighbourSearch, best


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(neighbour_search, "_BLOCK", 16)


def unit(rng, n):
    drawn = rng.standard_normal((n, 8)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


@pytest.mark.parametrize("documents", [5, 16, 50, 64])
@pytest.mark.parametrize("count", [1, 12, 40, 100])
def test_the_best_of_all_blocks_are_found(documents, count):
    rng = np.random.default_rng(documents)
    vectors, asked = unit(rng, documents), unit(rng, 7)
    scores, places = best(torch.from_numpy(vectors), asked, count)
    wanted = min(count, documents)
    assert scores.shape == places.shape == (7, wanted)
    every = asked @ vectors.T
    assert np.sort(scores, axis=1) == pytest.approx(np.sort(every, axis=1)[:, documents - wanted :], abs=1e-6)
    assert np.take_along_axis(every, places, 1) == pytest.approx(scores, abs=1e-6)
    assert all(len(set(found)) == wanted for found in places.tolist())


@pytest.mark.parametrize("everything", [False, True])
def test_candidates_are_the_best_that_may_be_shown_best_first(everything):
    """Rows 0-9 are one document, rows 10-19 of one group; every fourth row is held out."""
    rng = np.random.default_rng(1)
    vectors = unit(rng, 60)
    vectors[:10] = vectors[0]
    documents = [Document(["the same" if row < 10 else f"document {row}"]) for row in range(60)]
    groups = ["hand" if 10 <= row < 20 else str(row) for row in range(60)]
    rows = np.arange(60)
    training, held_out = rows[rows % 4 > 0], rows[rows % 4 == 0]
    search = NeighbourSearch(vectors, documents, groups, training, held_out)
    asking = np.array([3, 14, 40])
    found = search.candidates(asking, vectors[asking], 30, everything=everything)
    for row, candidates in zip(asking, found, strict=True):
        shown = rows if everything else training
        hidden = [row, *(range(10) if row < 10 else range(10, 20) if row < 20 else ())]
        allowed = np.setdiff1d(shown, hidden)
        every = vectors[allowed] @ vectors[row]
        found_rows, scores = zip(*candidates, strict=True)
        assert len(set(found_rows)) == 30 and set(found_rows) <= set(allowed.tolist())
        assert list(scores) == sorted(scores, reverse=True)
        assert scores == pytest.approx(np.sort(every)[::-1][:30], abs=1e-6)
        assert scores == pytest.approx(vectors[list(found_rows)] @ vectors[row], abs=1e-6)


def test_the_one_that_is_alone_finds_nothing():
    search = NeighbourSearch(np.eye(1, 8, dtype=np.float32), [Document(["x"])], ["x"], np.array([0]), np.array([], int))
    assert search.candidates(np.array([0]), np.eye(1, 8, dtype=np.float32), 4, everything=True) == [[]]


def test_no_document_is_shown_the_picture_that_it_is_to_predict():
    """A text finds it under another caption, too."""
    pictures = [Image(np.full((4, 4, 3), 50 * number, np.uint8)) for number in range(3)]
    documents = [
        Document(["a kite", pictures[0]]), Document(["the same picture", pictures[0]]),
        Document(["a kite", pictures[1]]), Document(["another", pictures[2]]),
    ]  # fmt: skip
    vectors, rows = unit(np.random.default_rng(0), 4), np.arange(4)
    search = NeighbourSearch(vectors, documents, [str(row) for row in rows], rows, rows[:0])
    found = search.candidates(rows, vectors, 4, everything=False)
    assert [{row for row, _ in candidates} for candidates in found] == [{2, 3}, {2, 3}, {0, 1, 3}, {0, 1, 2}]
