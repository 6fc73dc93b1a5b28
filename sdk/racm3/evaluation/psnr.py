"""How much of a picture an image tokenizer keeps."""

from __future__ import annotations

import numpy as np


def psnr(pictures: np.ndarray, originals: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio in dB, [n], of uint8 pictures [n, h, w, 3]."""
    error = (pictures.astype(np.float64) - originals) ** 2
    return 10 * np.log10(255.0**2 / np.maximum(error.reshape(len(error), -1).mean(1), 1e-6))
