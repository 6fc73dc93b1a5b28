"""Perplexity: how surprised a model is by the truth, per token."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..interfaces import Score
from .bootstrap import Figure, mean_figure


def perplexity_figure(scores: Sequence[Score], groups: Sequence[str]) -> Figure:
    """exp of the mean of nats per token; every group weighs the same."""
    nats = mean_figure(np.array([-score.log_probability / max(1, sum(score.tokens)) for score in scores]), groups)
    return Figure(math.exp(nats.value), math.exp(nats.low), math.exp(nats.high))
