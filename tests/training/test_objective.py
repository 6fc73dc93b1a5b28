"""The objective, against a computation by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from racm3.generators.cm3.document_format import DocumentFormat, Span, TokenPart
from racm3.generators.cm3.vocabulary import Vocabulary
from racm3.training.objective import weighted_loss, weighted_sequence

VOCABULARY = Vocabulary(text_tokens=10, image_tokens=8)
FORMAT = DocumentFormat(VOCABULARY, document_stride=16, image_offset=4)
PARTS = [TokenPart("text", [1, 2]), TokenPart("image", [3, 4])]


def weighted(alpha=0.1, spans=()):
    context = FORMAT.write(PARTS)
    own = FORMAT.write(PARTS, slot=FORMAT.slot_after(context), spans=spans)
    return context, own, weighted_sequence([context], own, VOCABULARY, alpha)


def batch(sequence):
    rows = (sequence.ids, sequence.weights, sequence.main)
    return [torch.from_numpy(row)[None] for row in rows]


def test_documents_stand_before_x_and_keep_their_positions():
    context, own, sequence = weighted()
    assert sequence.ids.tolist() == [*context.ids, *own.ids]
    assert sequence.positions.tolist() == [*context.positions, *own.positions]
    assert sequence.main.tolist() == [False] * len(context) + [True] * len(own)


def test_x_weighs_one_documents_alpha_sentinels_and_the_start_nothing():
    context, own, sequence = weighted(alpha=0.25, spans=[Span(0, 0, 2), Span(1, 1, 2)])
    names = VOCABULARY.names(sequence.ids.tolist())
    expected = [0.25] * len(context) + [1.0] * len(own)
    expected[0] = 0.0
    expected = [0.0 if name.startswith("<mask:") else weight for name, weight in zip(names, expected, strict=True)]
    assert sequence.weights.tolist() == expected
    # Both places of both sentinels.
    assert [name for name in names if name.startswith("<mask:")] == ["<mask:0>", "<mask:1>", "<mask:0>", "<mask:1>"]
    # The end of a span is to be learned: it says how long a text is.
    assert sequence.weights[names.index("<eoss>")] == 1.0


def test_without_documents_only_the_start_weighs_nothing():
    own = FORMAT.write(PARTS)
    sequence = weighted_sequence([], own, VOCABULARY, 0.1)
    assert sequence.weights.tolist() == [0.0] + [1.0] * (len(own) - 1)
    assert sequence.main.all()


def test_the_loss_is_the_weighted_sum_over_the_tokens_of_x():
    _, own, sequence = weighted(alpha=0.3, spans=[Span(0, 0, 2)])
    ids, weights, main = batch(sequence)
    logits = np.random.default_rng(0).standard_normal((1, ids.shape[1], VOCABULARY.size)).astype(np.float32)
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    total, of_main, of_documents, counted, documents = 0.0, 0.0, 0.0, 0, 0
    for t in range(1, ids.shape[1]):
        token_loss = -logs[0, t - 1, ids[0, t]]
        total += float(weights[0, t]) * token_loss
        if main[0, t] and weights[0, t] > 0:
            of_main, counted = of_main + token_loss, counted + 1
        elif weights[0, t] > 0:
            of_documents, documents = of_documents + token_loss, documents + 1
    assert counted == len(own) - 2  # both places of the sentinel
    loss, figures = weighted_loss(torch.from_numpy(logits), ids, weights, main)
    assert float(loss) == pytest.approx(total / counted, rel=1e-5)
    assert float(figures["main"]) == pytest.approx(of_main / counted, rel=1e-5)
    assert float(figures["retrieved"]) == pytest.approx(of_documents / documents, rel=1e-5)
    # L = -log p(x | m) - alpha * log p(m), per token of x
    assert float(loss) == pytest.approx((of_main + 0.3 * of_documents) / counted, rel=1e-5)


def test_the_normaliser_is_the_number_of_tokens_of_x_in_the_whole_batch():
    """Long and short documents count by their tokens; padding and documents do not count."""
    _, own, sequence = weighted(alpha=0.0)
    short = weighted_sequence([], FORMAT.write(PARTS[:1]), VOCABULARY, 0.0)
    ids, weights, main = (torch.cat([row, torch.zeros_like(row)]) for row in batch(sequence))
    for row, padded in zip(batch(short), (ids, weights, main), strict=True):
        padded[1, : row.shape[1]] = row[0]
    logits = torch.zeros(2, ids.shape[1], VOCABULARY.size)  # each token costs log(vocabulary)
    loss, _ = weighted_loss(logits, ids, weights, main)
    assert float(loss) == pytest.approx(np.log(VOCABULARY.size), rel=1e-5)
    logits[1, :5, 0] = 100.0  # the short row now costs 100 for each of its tokens but for one, which is no 0 either
    loss, _ = weighted_loss(logits, ids, weights, main)
    tokens = len(own), len(short.ids) - 1
    assert float(loss) == pytest.approx((tokens[0] * np.log(VOCABULARY.size) + tokens[1] * 100) / sum(tokens), rel=1e-4)


@pytest.mark.parametrize(("alpha", "learned"), [(0.0, False), (0.1, True)])
def test_documents_are_learned_by_alpha(alpha, learned):
    context, _, sequence = weighted(alpha)
    ids, weights, main = batch(sequence)
    logits = torch.zeros(1, ids.shape[1], VOCABULARY.size, requires_grad=True)
    loss, figures = weighted_loss(logits, ids, weights, main)
    loss.backward()
    gradient = logits.grad[0].abs().sum(-1)  # of the logits that predict token t + 1
    assert bool((gradient[: len(context) - 1] > 0).any()) is learned
    assert (gradient[len(context) - 1 : -1] > 0).all()
    assert bool(figures["retrieved"].isfinite()) is learned  # NaN: nothing to measure it on


def test_alpha_scales_the_gradient_of_documents_and_of_nothing_else():
    gradients = []
    for alpha in (0.1, 0.2):
        context, _, sequence = weighted(alpha)
        logits = torch.zeros(1, len(sequence.ids), VOCABULARY.size, requires_grad=True)
        weighted_loss(logits, *batch(sequence))[0].backward()
        gradients.append(logits.grad[0])
    border = len(context) - 1
    assert torch.allclose(gradients[1][:border], 2 * gradients[0][:border])
    assert torch.equal(gradients[1][border:], gradients[0][border:])
