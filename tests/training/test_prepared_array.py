"""Arrays prepared on disk: a killed preparation goes on, and one of another making is refused."""

from __future__ import annotations

import numpy as np
import pytest

from racm3.errors import CheckpointError
from racm3.training.prepared_array import prepared_array


def prepare(path, made_from=None, *, kill_at=None, shape=(10, 2), progress=None):
    asked = []

    def compute(start, stop):
        if start == kill_at:
            raise KeyboardInterrupt
        asked.append(start)
        return np.arange(start, stop)[:, None] * np.array([1, -1])

    array = prepared_array(
        path, shape, np.int32, made_from or {"model": "a"}, compute, block=3, what="numbers", progress=progress
    )
    return array, asked


def test_an_array_is_computed_once_and_stays_on_disk(tmp_path):
    array, asked = prepare(tmp_path / "numbers.npy")
    assert isinstance(array, np.memmap) and asked == [0, 3, 6, 9]
    assert (array == np.arange(10)[:, None] * np.array([1, -1])).all()
    again, asked = prepare(tmp_path / "numbers.npy")
    assert (again == array).all() and asked == []
    assert {path.name for path in tmp_path.iterdir()} == {"numbers.npy", "numbers.json"}


def test_a_killed_preparation_goes_on_where_it_was(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path / "numbers.npy", kill_at=6)
    assert not (tmp_path / "numbers.npy").exists()
    seen = []
    array, asked = prepare(tmp_path / "numbers.npy", progress=lambda *a: seen.append(a))
    assert asked == [6, 9] and (array[:, 0] == np.arange(10)).all()
    assert [(done, total) for done, total, _ in seen] == [(9, 10), (10, 10)] and "documents/s" in seen[0][2]


def test_another_making_is_refused_finished_or_not(tmp_path):
    prepare(tmp_path / "numbers.npy", {"model": "a", "documents": "x"})
    with pytest.raises(CheckpointError, match="the documents changed") as raised:
        prepare(tmp_path / "numbers.npy", {"model": "a", "documents": "y"})
    assert "Delete" in raised.value.hint
    with pytest.raises(CheckpointError, match="shape"):
        prepare(tmp_path / "numbers.npy", {"model": "a"}, shape=(11, 2))
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path / "part.npy", kill_at=6)
    with pytest.raises(CheckpointError, match="the model changed"):
        prepare(tmp_path / "part.npy", {"model": "b"})


def test_what_an_earlier_version_left_is_opened(tmp_path):
    """It wrote no record beside the array."""
    np.save(tmp_path / "numbers.npy", np.zeros((10, 2), np.int32), allow_pickle=False)
    array, asked = prepare(tmp_path / "numbers.npy")
    assert not array.any() and asked == []
