"""Causal masking: which spans of a document are moved to its end (CM3, arXiv 2201.07520; method section 4).

Draw n ~ Poisson(1) spans, each inside one segment by two uniform draws for its ends; keep those that are disjoint. Sometimes
a whole segment is masked instead, since captioning and text-to-image are exactly that.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from .document_format import Span, TokenPart
from .vocabulary import SENTINELS


class MaskingSettings(BaseModel):
    """The `[masking]` table of a recipe, with the method's defaults."""

    model_config = ConfigDict(extra="forbid")

    rate: float = Field(1.0, ge=0, description="mean number of spans, Poisson")
    minimum: int = Field(0, ge=0, le=SENTINELS, description="0: about 37 % of documents stay left to right; CM3: 1")
    whole_segment: float = Field(0.2, ge=0, le=1, description="share of documents of which one whole part is masked")
    retrieved: bool = Field(False, description="whether the retrieved documents are masked, too, each by itself")


def draw_spans(parts: Sequence[TokenPart], settings: MaskingSettings, rng: np.random.Generator) -> list[Span]:
    """Disjoint spans to mask, each inside one part, at most one for each sentinel."""
    lengths = np.array([len(part.tokens) for part in parts])
    if not lengths.sum():
        return []
    if rng.random() < settings.whole_segment:
        part = int(rng.choice(np.flatnonzero(lengths)))
        return [Span(part, 0, int(lengths[part]))]
    wanted = int(np.clip(rng.poisson(settings.rate), settings.minimum, SENTINELS))
    spans: list[Span] = []
    for _ in range(wanted):
        # A part by its length, then both ends inside it: two draws over the document that had to hit one part would leave
        # captions, which are short beside a picture, whole nearly always.
        part = int(rng.choice(len(parts), p=lengths / lengths.sum()))
        start, stop = sorted(rng.integers(0, lengths[part] + 1, size=2).tolist())
        if start < stop and all(s.part != part or stop < s.start or s.stop < start for s in spans):
            spans.append(Span(part, start, stop))
    return spans
