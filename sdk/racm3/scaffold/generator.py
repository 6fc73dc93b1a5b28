"""A generator of texts: it draws words, one by one, as often as they stand in the documents that it is given.

That is a unigram language model. Put your model in its place.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from racm3 import Blank, Document, Generator, Options, Text
from racm3.document import Modality
from racm3.errors import ConfigError, GenerationError, ModalityError
from racm3.interfaces import Output, Request, Score

UNSEEN = 1e-6  # the probability of a word that stands in none of the documents


class ExampleGenerator(Generator):
    """words: how many words an answer has."""

    accepts: frozenset[Modality] = frozenset({"text"})
    emits: frozenset[Modality] = frozenset({"text"})

    def __init__(self, words: int = 8) -> None:
        if words < 1:
            raise ConfigError(f"words is how many words an answer has, at least 1, not {words}.")
        self.words = words

    @property
    def fingerprint(self) -> str:
        return "example-1"

    def generate(self, requests: Sequence[Request], *, options: Options) -> list[list[Output]]:
        # A random stream for every sample, so that none depends on how many others there are.
        return [
            [
                self._fill(request, np.random.default_rng([options.seed, number, sample]), options)
                for sample in range(options.n)
            ]
            for number, request in enumerate(requests)
        ]

    def score(self, requests: Sequence[Request], targets: Sequence[Document]) -> list[Score]:
        if len(requests) != len(targets):
            raise GenerationError(f"{len(requests)} requests and {len(targets)} targets: give one target per request.")
        scores = []
        for request, target in zip(requests, targets, strict=True):
            asked = request.prompt.parts
            if target.blanks or [part.modality for part in asked] != [part.modality for part in target.parts]:
                raise GenerationError(
                    f"The target {target!r} is not the prompt {request.prompt!r} with its blanks filled."
                )
            known = _probabilities(request)
            filled = [part for part, was in zip(target.parts, asked, strict=True) if isinstance(was, Blank)]
            texts = [part.text if isinstance(part, Text) else "" for part in filled or target.parts]
            values = [sum(math.log(known.get(word, UNSEEN)) for word in _words(text)) for text in texts]
            scores.append(Score(tuple(values), tuple(len(_words(text)) for text in texts)))
        return scores

    def _fill(self, request: Request, rng: np.random.Generator, options: Options) -> Output:
        blanks = request.prompt.blanks
        if not blanks:
            raise GenerationError(f"{request.prompt!r} has no blank to fill.", "Add Blank('text').")
        if {blank.modality for blank in blanks} | request.prompt.modalities != {"text"}:
            raise ModalityError(f"This generator takes and makes texts alone, and was given {request.prompt!r}.")
        known, drawn = _probabilities(request), list[str]()
        parts = []
        for part in request.prompt.parts:
            if isinstance(part, Blank):
                count = min(self.words, options.max_text_tokens)
                words = list(known)
                chosen = [words[index] for index in rng.choice(len(words), size=count, p=list(known.values()))]
                drawn += chosen
                part = Text(" ".join(chosen))
            parts.append(part)
        value = sum(math.log(known[word]) for word in drawn)
        return Output(request.prompt.replace(parts=parts), value, len(drawn))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text.lower())


def _probabilities(request: Request) -> dict[str, float]:
    """How often each word stands in the context, or, without one, in the prompt."""
    given = " ".join(hit.document.text for hit in request.context) or request.prompt.text
    counts = Counter(_words(given) or ["..."])
    return {word: count / counts.total() for word, count in counts.items()}
