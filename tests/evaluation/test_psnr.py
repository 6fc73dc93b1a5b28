"""Peak signal-to-noise ratio."""

from __future__ import annotations

import numpy as np
import pytest

from racm3.evaluation.psnr import psnr


def test_psnr_of_a_known_error() -> None:
    black, grey = np.zeros((1, 2, 2, 3), np.uint8), np.full((1, 2, 2, 3), 51, np.uint8)
    assert psnr(grey, black)[0] == pytest.approx(20 * np.log10(5))
