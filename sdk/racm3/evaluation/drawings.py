"""Figures of drawings: does each show its entity and its caption, and how far are all of them from the true pictures?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..document import Document, Image
from ..interfaces import Retriever
from .bootstrap import Figure, Weights, mean_figure, set_figure
from .clip_score import clip_score
from .cmmd import Cmmd
from .fid import fid, inception_vectors
from .frechet import frechet_distance
from .pairs import Pair
from .recall import retrieval

# Draws of the interval of an Inception distance: each takes the covariances of 2048 dimensions anew.
_INCEPTION_DRAWS = 20


class DrawingMetrics:
    """The true pictures and captions in an encoder's space, and in Inception's where its weights are given."""

    def __init__(self, pairs: Sequence[Pair], encoder: Retriever, inception: Path | None = None) -> None:
        self._encoder, self._inception = encoder, inception
        self._entities = [pair.entity for pair in pairs]
        self._truth = self._encoded([pair.image for pair in pairs])
        self._captions = encoder.encode_query([Document(pair.caption) for pair in pairs])
        self._seen = None if inception is None else inception_vectors([pair.image for pair in pairs], inception)

    def figures(self, drawn: Sequence[Sequence[Image]]) -> dict[str, Figure]:
        """Of drawings by seed, one for each pair: figures are means over the seeds.

        recall_at_1 and mrr: among the true pictures of all pairs, each entity weighing the same. fid: by torchmetrics, in
        Inception's space or else in the encoder's, where it is the Fréchet distance again.
        """
        spaces = [self._encoded(pictures) for pictures in drawn]
        found = [retrieval(vectors, self._truth, self._entities, self._entities) for vectors in spaces]
        scores = [clip_score(vectors, self._captions) for vectors in spaces]
        kernels = [Cmmd(vectors, self._truth) for vectors in spaces]
        distance = self._distance(spaces, self._truth)
        return {
            "recall_at_1": mean_figure(np.mean([one.hits for one in found], axis=0), self._entities),
            "mrr": mean_figure(np.mean([one.reciprocal_ranks for one in found], axis=0), self._entities),
            "clip_score": mean_figure(np.mean(scores, axis=0), self._entities),
            "frechet_distance": distance,
            "cmmd": set_figure(lambda weights: float(np.mean([one(weights) for one in kernels])), self._entities),
            "fid": self._fid(drawn, spaces, distance),
        }

    def _fid(self, drawn: Sequence[Sequence[Image]], spaces: Sequence[np.ndarray], distance: Figure) -> Figure:
        if self._inception is None or self._seen is None:
            return Figure(
                float(np.mean([fid(vectors, self._truth) for vectors in spaces])), distance.low, distance.high
            )
        seen = [inception_vectors(pictures, self._inception) for pictures in drawn]
        interval = self._distance(seen, self._seen, draws=_INCEPTION_DRAWS)
        return Figure(float(np.mean([fid(vectors, self._seen) for vectors in seen])), interval.low, interval.high)

    def _distance(self, made: Sequence[np.ndarray], real: np.ndarray, draws: int = 100) -> Figure:
        def mean(weights: Weights) -> float:
            return float(np.mean([frechet_distance(vectors, real, weights) for vectors in made]))

        return set_figure(mean, self._entities, draws=draws)

    def _encoded(self, pictures: Sequence[Image]) -> np.ndarray:
        return self._encoder.encode_query([Document(picture) for picture in pictures])
