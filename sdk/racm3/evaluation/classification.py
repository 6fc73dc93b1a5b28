"""k-shot classification, as the paper does it: which of several labels makes the picture's caption the likelier one?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..classification import mean_probabilities
from ..document import Blank, Document
from ..errors import ConfigError
from ..interfaces import Generator, Hit, MemoryStore, Request, Where
from .grounding import answers
from .pairs import Pair


@dataclass(frozen=True)
class Episode:
    """A picture, the labels to choose from (the first is right), and for each label its examples from the memory."""

    pair: Pair
    labels: tuple[str, ...]
    examples: tuple[tuple[Document, ...], ...]


def episodes(
    pairs: Sequence[Pair], memory: MemoryStore, *, label: str, shots: int, ways: int = 2, seed: int = 0
) -> list[Episode]:
    """An episode for each pair of whose label the memory has enough examples, against labels of other pairs.

    label: the key of the metadata, of pairs and of the memory's documents alike. An example is a document of the memory
    with the label in place of its text; it is never the pair itself. Raises `ConfigError` where there are too few labels.
    """
    rng = np.random.default_rng(seed)
    values = [pair.document.metadata.get(label) for pair in pairs]
    named = ["" if value is None else str(value) for value in values]
    # A filter asks for the value itself: the class 3 is not the text "3".
    value_of = dict(zip(named, values, strict=True))
    known = sorted(set(named) - {""})
    if len(known) < ways:
        raise ConfigError(
            f"The pairs have {len(known)} labels under {label!r}; {ways} are needed.", "Choose another --label."
        )
    made = []
    for pair, own in zip(pairs, named, strict=True):
        if not own:
            continue
        others = [name for name in rng.permutation(known).tolist() if name != own][: ways - 1]
        found = [_examples(memory, {label: value_of[name]}, name, shots, answers(pair), rng) for name in (own, *others)]
        if all(len(examples) == shots for examples in found):
            made.append(Episode(pair, (own, *others), tuple(found)))
    return made


def accuracy(generator: Generator, asked: Sequence[Episode], *, seed: int = 0) -> np.ndarray:
    """1 or 0 for each episode: is the right label the likeliest?

    Each pass shows one example of each label, in random order; more examples are more passes, whose probabilities are
    averaged, since a context holds few documents, as the paper does it.
    """
    rng = np.random.default_rng(seed)
    requests, targets = [], []
    for episode in asked:
        for examples in zip(*episode.examples, strict=True):
            context = tuple(Hit(examples[i]) for i in rng.permutation(len(examples)))
            for label in episode.labels:
                requests.append(Request(Document([Blank("text"), episode.pair.image]), context))
                targets.append(Document([label, episode.pair.image]))
    scores = iter(generator.score(requests, targets))
    right = []
    for episode in asked:
        passes = np.array([[next(scores).log_probability for _ in episode.labels] for _ in episode.examples[0]])
        right.append(mean_probabilities(passes).argmax() == 0)
    return np.array(right, np.float64)


def _examples(
    memory: MemoryStore, where: Where, name: str, shots: int, off_limits: frozenset[str], rng: np.random.Generator
) -> tuple[Document, ...]:
    drawn = memory.random(shots + len(off_limits), rng=rng, where=where)
    allowed = [hit.document for hit in drawn if hit.id not in off_limits and not hit.hashes & off_limits]
    return tuple(Document([name, document.images[0]], id=document.id) for document in allowed if document.images)[
        :shots
    ]
