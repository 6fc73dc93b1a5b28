"""CIDEr (arXiv 1411.5726) by pycocoevalcap: agreement in words that are rare among the references."""

from __future__ import annotations

import numpy as np

from .caption_tokens import CaptionTokens


def cider(captions: CaptionTokens) -> np.ndarray:
    """The score of each caption, [n], times 100 as papers print it; the corpus score is the mean.

    How rare a word is, is counted over the references of all n pictures: of a single one nothing can be said, and the
    score is 0. A caption shorter than four words scores below 1000 even when it is right: it has no 4-grams.
    """
    from pycocoevalcap.cider.cider import Cider

    candidates = {i: [text] for i, text in enumerate(captions.candidates)}
    _, scores = Cider().compute_score(dict(enumerate(captions.references)), candidates)
    return 100 * np.asarray(scores, np.float64)
