"""The shipped model: in every task, another context document moves the answer towards itself.

Things come in pairs, none of which was trained on, and each answer is weighed behind a document of its own thing (by
another vendor) and behind one of the other thing. What is asserted is not how good an answer is, but that documents
decide: the mean gain is positive by two standard errors, over all pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from racm3 import Blank, Document, MaskedImage, MaskedText, Pipeline
from racm3.interfaces import Hit, Request
from racm3_emoji.bundle import held_out_documents

pytestmark = pytest.mark.slow

THINGS = 12
LEFT = (0, 0, 32, 64)


@dataclass(frozen=True)
class Thing:
    """A drawing that no model has seen, and what the memory holds of the same thing, by another vendor."""

    truth: Document
    document: Document

    @property
    def name(self) -> str:
        return str(self.truth.metadata["name"])


@pytest.fixture(scope="module")
def pipeline() -> Iterator[Pipeline]:
    with Pipeline.from_preset("emoji") as opened:
        yield opened


@pytest.fixture(scope="module")
def pairs(pipeline: Pipeline) -> list[tuple[Thing, Thing]]:
    """Each thing with the next, taken evenly from all."""
    first = {str(document.metadata["entity"]): document for document in reversed(list(held_out_documents()))}
    things = [
        Thing(truth, pipeline.search(truth.texts[0], k=1, where={"entity": entity})[0].document)
        for entity, truth in sorted(first.items())[:: len(first) // THINGS][:THINGS]
    ]
    return list(zip(things, things[1:] + things[:1], strict=True))


def picture_of(caption: str) -> Document:
    return Document([caption, Blank("image")])


Task = Callable[[Thing, Thing], tuple[Document, Document]]

# From the thing that is asked about, and the thing whose answer is weighed: the prompt, and that answer.
TASKS: dict[str, Task] = {
    "text to image": lambda asked, answer: (
        picture_of(asked.truth.texts[0]), Document([asked.truth.texts[0], answer.truth.images[0]])
    ),
    "text to image, the document's own picture": lambda asked, answer: (
        picture_of(asked.truth.texts[0]), Document([asked.truth.texts[0], answer.document.images[0]])
    ),
    "editing": lambda asked, answer: (
        Document([answer.truth.texts[0], MaskedImage(answer.truth.images[0], LEFT)]), answer.truth
    ),
    "image infilling": lambda asked, answer: (
        Document(MaskedImage(answer.truth.images[0], LEFT)), Document(answer.truth.images[0])
    ),
    "captioning": lambda asked, answer: (
        Document([Blank("text"), asked.truth.images[0]]), Document([answer.truth.texts[0], asked.truth.images[0]])
    ),
    "text infilling": lambda asked, answer: (
        Document(MaskedText("", f", in {answer.truth.metadata['style']} style")), Document(answer.truth.texts[0])
    ),
    "language model": lambda asked, answer: (Document(Blank("text")), Document(answer.truth.texts[0])),
    "mixed output": lambda asked, answer: (Document([Blank("text"), Blank("image")]), answer.truth),
}  # fmt: skip


def surely_positive(gains: np.ndarray) -> bool:
    return bool(gains.mean() > 2 * gains.std(ddof=1) / len(gains) ** 0.5)


@pytest.mark.parametrize("task", TASKS)
def test_another_document_moves_the_answer_towards_itself(
    pipeline: Pipeline, pairs: list[tuple[Thing, Thing]], task: str
) -> None:
    """Of two answers to one prompt, each is likelier behind the document of its own thing, against the other."""
    asked = [
        (Request(prompt, (Hit(shown.document),)), target)
        for pair in pairs
        for answer in pair
        for prompt, target in [TASKS[task](pair[0], answer)]
        for shown in pair
    ]
    assert pipeline.generator is not None
    scores = pipeline.generator.score([request for request, _ in asked], [target for _, target in asked])
    each = np.array([score.log_probability / sum(score.tokens) for score in scores]).reshape(-1, 2, 2)
    assert surely_positive((each[:, 0, 0] - each[:, 0, 1] + each[:, 1, 1] - each[:, 1, 0]) / 2)


def test_another_example_moves_the_label(pipeline: Pipeline, pairs: list[tuple[Thing, Thing]]) -> None:
    """By log-odds: a model may be so sure of one label that its probability hardly moves."""
    gains = []
    for pair in pairs:
        picture, labels = pair[0].truth.images[0], [thing.name for thing in pair]
        odds = []
        for thing in pair:
            answer = pipeline.classify(picture, labels, examples=[(thing.document.images[0], thing.name)])
            odds.append(np.log(answer.probabilities[labels[0]]) - np.log(answer.probabilities[labels[1]]))
        gains.append(odds[0] - odds[1])
    assert surely_positive(np.array(gains))


def test_what_is_retrieved_counts_as_what_is_given_by_hand(
    pipeline: Pipeline, pairs: list[tuple[Thing, Thing]]
) -> None:
    """The same documents, found or given: the same drawing."""
    thing = pairs[0][0]
    found = pipeline.imagine(thing.truth.texts[0], k=2, seed=3)
    given = pipeline.imagine(thing.truth.texts[0], context=[hit.document for hit in found.hits], seed=3)
    assert found.image == given.image
    assert [hit.score for hit in given.hits] == [None, None]
