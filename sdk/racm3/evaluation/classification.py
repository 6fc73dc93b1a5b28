"""k-shot classification, as the paper does it: which of several labels makes the picture's caption the likelier one?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..classification import mean_probabilities
from ..document import Blank, Document
from ..errors import ConfigError
from ..interfaces import Generator, Hit, MemoryStore, Request, Retriever, Where
from .grounding import answers
from .pairs import Pair


@dataclass(frozen=True)
class Episode:
    """A picture, the labels to choose from (the first is right), for each label its examples from the memory, and as many
    documents of the memory at random."""

    pair: Pair
    labels: tuple[str, ...]
    examples: tuple[tuple[Document, ...], ...]
    random: tuple[tuple[Document, ...], ...]


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
            drawn = [_drawn(memory, None, shots, answers(pair), rng) for _ in found]
            made.append(Episode(pair, (own, *others), tuple(found), tuple(map(tuple, drawn))))
    return made


def accuracy(
    generator: Generator, asked: Sequence[Episode], shown: Literal["examples", "random", "none"], *, seed: int = 0
) -> np.ndarray:
    """1 or 0 for each episode: is the right label the likeliest? Of labels that tie, the share of one.

    Each pass shows one example of each label, in random order; more examples are more passes, whose probabilities are
    averaged, since a context holds few documents, as the paper does it. shown: these; or as many random documents; or none.
    """
    rng = np.random.default_rng(seed)
    requests, targets, passes = [], [], list[int]()
    for episode in asked:
        documents = episode.examples if shown == "examples" else episode.random
        groups: list[tuple[Document, ...]] = [()] if shown == "none" else list(zip(*documents, strict=False))
        groups = groups or [()]  # of a memory that holds nothing else
        passes.append(len(groups))
        for group in groups:
            context = tuple(Hit(group[i]) for i in rng.permutation(len(group)))
            for label in episode.labels:
                requests.append(Request(Document([Blank("text"), episode.pair.image]), context))
                targets.append(Document([label, episode.pair.image]))
    scores = iter(generator.score(requests, targets))
    right = []
    for episode, count in zip(asked, passes, strict=True):
        passes_of = np.array([[next(scores).log_probability for _ in episode.labels] for _ in range(count)])
        likely = mean_probabilities(passes_of)
        best = likely == likely.max()
        right.append(best[0] / best.sum())  # whoever finds all labels equally likely has guessed
    return np.array(right, np.float64)


def nearest_label(retriever: Retriever, asked: Sequence[Episode]) -> np.ndarray:
    """1 or 0 for each episode: has the example whose picture is nearest the right label? What retrieval alone can do."""
    pictures = retriever.encode_query([Document(episode.pair.image) for episode in asked])
    right = []
    for episode, picture in zip(asked, pictures, strict=True):
        shown = [Document(one.images[0]) for examples in episode.examples for one in examples]
        best = int((retriever.encode_document(shown) @ picture).argmax())
        right.append(best < len(episode.examples[0]))
    return np.array(right, np.float64)


def _examples(
    memory: MemoryStore, where: Where, name: str, shots: int, off_limits: frozenset[str], rng: np.random.Generator
) -> tuple[Document, ...]:
    allowed = _drawn(memory, where, shots, off_limits, rng)
    return tuple(Document([name, document.images[0]], id=document.id) for document in allowed)


def _drawn(
    memory: MemoryStore, where: Where | None, count: int, off_limits: frozenset[str], rng: np.random.Generator
) -> list[Document]:
    """Documents with a picture, drawn at random: `count` of them at most."""
    drawn = memory.random(count + len(off_limits), rng=rng, where=where)
    allowed = [hit.document for hit in drawn if hit.id not in off_limits and not hit.hashes & off_limits]
    return [document for document in allowed if document.images][:count]
