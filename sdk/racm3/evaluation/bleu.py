"""BLEU-4 (Papineni et al., 2002) by pycocoevalcap: shared runs of one to four words, over a whole corpus."""

from __future__ import annotations

from .bootstrap import Weights
from .caption_tokens import CaptionTokens


class Bleu4:
    """The counts of a corpus, ready to be weighed again and again: the score is not a mean over captions."""

    def __init__(self, captions: CaptionTokens) -> None:
        from pycocoevalcap.bleu.bleu_scorer import BleuScorer

        self._scorer = BleuScorer(n=4)
        for candidate, references in zip(captions.candidates, captions.references, strict=True):
            self._scorer += (candidate, references)

    def __call__(self, weights: Weights | None = None) -> float:
        """The corpus score, 0 to 1. weights: how often each caption counts, [n]."""
        from pycocoevalcap.bleu.bleu_scorer import BleuScorer

        counts = self._scorer.ctest
        drawn = BleuScorer(n=4)
        drawn.ctest = (
            counts if weights is None else [c for c, n in zip(counts, weights, strict=True) for _ in range(int(n))]
        )
        return float(drawn.compute_score(option="closest", verbose=0)[0][3])
