"""What each prompt of an evaluation is grounded on: retrieved documents, random ones, or none; never the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from ..document import Blank, Document, Modality
from ..interfaces import Hit, Query, Request
from ..pipeline import Pipeline
from ..retrieval import MIN_POOL, MOST_POOL, POOL_PER_DOCUMENT, encode_queries, without_blanks
from .pairs import Pair

Context: TypeAlias = Literal["retrieved", "random", "none"]


@dataclass(frozen=True)
class Grounding:
    """Makes the requests of an evaluation. k: documents per prompt."""

    pipeline: Pipeline
    pairs: Sequence[Pair]
    k: int
    seed: int = 0

    def requests(self, blank: Modality, context: Context) -> list[Request]:
        """A request for each pair: its caption with a blank for the picture, or the other way round."""
        prompts = [prompt(pair, blank) for pair in self.pairs]
        if context == "none" or self.k == 0:
            return [Request(asked) for asked in prompts]
        hits = self._random() if context == "random" else self._retrieved(prompts)
        return [Request(asked, tuple(chosen)) for asked, chosen in zip(prompts, hits, strict=True)]

    def _retrieved(self, prompts: Sequence[Document]) -> list[list[Hit]]:
        pipeline, off_limits = self.pipeline, [answers(pair) for pair in self.pairs]
        shown = [without_blanks(asked) or asked for asked in prompts]
        vectors = encode_queries(pipeline.retriever, shown)
        chosen: list[list[Hit]] = [[] for _ in prompts]
        pending, pool = list(range(len(prompts))), max(MIN_POOL, POOL_PER_DOCUMENT * self.k)
        while pending:  # as when a prompt is answered
            found = pipeline.memory.search(vectors[pending], k=pool, exclude=[off_limits[i] for i in pending])
            short = []
            for i, hits in zip(pending, found, strict=True):
                rng = np.random.default_rng([self.seed, i])
                chosen[i] = pipeline.sampler.sample(Query(shown[i], vectors[i]), hits, k=self.k, rng=rng).hits
                if len(chosen[i]) < self.k and len(hits) == pool < MOST_POOL:
                    short.append(i)
            pending, pool = short, 2 * pool
        return chosen

    def _random(self) -> list[list[Hit]]:
        rng = np.random.default_rng(self.seed)
        chosen = []
        for pair in self.pairs:
            off_limits = answers(pair)
            drawn = self.pipeline.memory.random(self.k + len(off_limits), rng=rng)
            chosen.append([hit for hit in drawn if hit.id not in off_limits and not hit.hashes & off_limits][: self.k])
        return chosen


def prompt(pair: Pair, blank: Modality) -> Document:
    """A pair with its picture, or its caption, left blank."""
    if blank == "image":
        return Document([pair.caption, Blank("image")], id=pair.document.id)
    return Document([Blank("text"), pair.image], id=pair.document.id)


def answers(pair: Pair) -> frozenset[str]:
    """Ids and content hashes that no prompt of the pair may be grounded on: itself, and its picture in any document.

    Its caption may stand beside other pictures: those are what retrieval is there to find.
    """
    return frozenset({pair.document.id, pair.document.content_hash, pair.image.content_hash})
