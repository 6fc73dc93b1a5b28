"""Scores of many targets at once: what they have in common is read once, and none of them sees another."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from racm3.document import Blank, Document, Image
from racm3.errors import GenerationError
from racm3.generators.cm3 import scoring
from racm3.generators.cm3.generator import Cm3Generator
from racm3.interfaces import Hit, Request

LABELS = ["a red kite", "a grey whale under the sea", "kite", "the red beach", "a red kite over the beach"]


def asked(pictures: list[Image], labels: list[str]) -> tuple[list[Request], list[Document]]:
    """Each label as the caption of one picture, behind one document."""
    context = (Hit(Document(["a grey whale", pictures[1]])),)
    prompt = Document([Blank("text"), pictures[0]])
    return [Request(prompt, context) for _ in labels], [Document([label, pictures[0]]) for label in labels]


def fed(generator: Cm3Generator, monkeypatch) -> list[int]:
    """How many tokens the model is fed, call by call."""
    transformer, counts = generator._ready().decoder.transformer, []
    forward = type(transformer).__call__
    monkeypatch.setattr(
        type(transformer), "__call__", lambda self, ids, *rest: counts.append(len(ids)) or forward(self, ids, *rest)
    )
    return counts


def test_documents_and_picture_are_read_once_for_all_labels(checkpoint, pictures, monkeypatch):
    generator = Cm3Generator.from_checkpoint(checkpoint)
    counts = fed(generator, monkeypatch)
    generator.score(*asked(pictures, LABELS))
    context, start, labels = counts
    own = [len(checkpoint.text_tokenizer.encode(label).ids) + 1 for label in LABELS]
    assert labels == sum(own) and start > 16 and context > 16
    generator.score(*asked(pictures, LABELS[:1]))
    assert counts[3:] == [start, own[0]], "documents are kept for the next call"


@pytest.mark.parametrize("together", [1, 12, 512])
def test_no_target_sees_another(checkpoint, pictures, monkeypatch, together):
    monkeypatch.setattr(scoring, "_SIDE_BY_SIDE", together)
    generator = Cm3Generator.from_checkpoint(checkpoint)
    many = generator.score(*asked(pictures, LABELS))
    for label, score in zip(LABELS, many, strict=True):
        alone = generator.score(*asked(pictures, [label]))[0]
        assert score.log_probability == pytest.approx(alone.log_probability, abs=1e-4)
        assert score.tokens == alone.tokens


def test_scores_come_in_order_whatever_they_have_in_common(checkpoint, pictures):
    """Targets with the same start lie apart, and others between them."""
    generator = Cm3Generator.from_checkpoint(checkpoint)
    requests, targets = asked(pictures, LABELS)
    drawn = [Document([label, picture]) for label, picture in zip(LABELS, pictures, strict=False)]
    mixed = [Request(Document([label, Blank("image")])) for label in LABELS]
    both = [
        *zip(requests, targets, strict=True),
        *zip(mixed, drawn, strict=True),
        *((Request(document), document) for document in drawn),
    ]
    order = np.random.default_rng(0).permutation(len(both))
    scores = generator.score(*zip(*(both[i] for i in order), strict=True))
    for i, score in zip(order, scores, strict=True):
        alone = generator.score([both[i][0]], [both[i][1]])[0]
        assert score.log_probabilities == pytest.approx(alone.log_probabilities, abs=1e-4)
        assert score.tokens == alone.tokens


def test_predictions_that_are_no_numbers_are_an_error(checkpoint, pictures):
    generator = Cm3Generator.from_checkpoint(checkpoint)
    head = checkpoint.model.lm_head
    head.bias = torch.nn.Parameter(torch.full((head.out_features,), float("nan")))
    try:
        with pytest.raises(GenerationError, match="predictions are not numbers"):
            generator.score(*asked(pictures, LABELS))
    finally:
        head.bias = None
