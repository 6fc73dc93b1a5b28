"""What several tests of training begin with."""

from __future__ import annotations

import numpy as np
import pytest

from racm3.training.data import Corpus, TrainingSet
from racm3.training.runs import Run


@pytest.fixture
def corpus():
    """Six documents of 16x16 pixels, the last of them held out."""
    pixels = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    names = [str(number) for number in range(6)]
    return Corpus(TrainingSet(pixels, names, [f"thing {name}" for name in names], names), np.array([5]))


@pytest.fixture
def run(tmp_path):
    """A run whose image tokenizer is said to be trained."""
    model = tmp_path / "image-tokenizer" / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    return Run(tmp_path)
