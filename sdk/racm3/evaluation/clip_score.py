"""CLIPScore (arXiv 2104.08718): does a picture show what its caption says, in an encoder's eyes?"""

from __future__ import annotations

import numpy as np


def clip_score(images: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """100 · max(cos, 0) of unit vectors [n, dim] and [n, dim], as torchmetrics scales it: [n]."""
    cosines = (images.astype(np.float64) * texts.astype(np.float64)).sum(1)
    return 100 * np.maximum(cosines, 0.0)
