"""Drawing tokens: the distribution, temperature, truncation, and the ends of the random stream."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from racm3.generators.cm3.decoding import Row, _Allowed, draw_tokens, truncate
from racm3.generators.cm3.document_format import DocumentFormat
from racm3.generators.cm3.prompt import Prompt
from racm3.generators.cm3.vocabulary import Vocabulary
from racm3.interfaces import Options


def drawn_from(logits, modality="image", count=3000, **options):
    """Tokens that many rows draw from the same logits [vocabulary]."""
    vocabulary = Vocabulary(5, 4)
    prompt = Prompt(DocumentFormat(vocabulary), [modality], [None], 4)
    rows = [Row(prompt, np.random.default_rng([0, i]), Options(**options)) for i in range(count)]
    draw_tokens(rows, torch.tensor(logits).expand(count, -1), _Allowed(prompt, torch.device("cpu")))
    # A drawn token waits to be fed; a text's stop is not fed.
    return np.array([row.feed[0][0] - vocabulary.first_image if row.feed else -1 for row in rows])


def image_logits(*probabilities):
    """Logits [5 text, 26 control, 4 image tokens]: all but images are likelier still, and forbidden."""
    return [9.0] * 31 + [float(np.log(p)) for p in probabilities]


def shares(tokens):
    return [float(np.mean(tokens == token)) for token in range(4)]


def test_tokens_are_drawn_by_their_probability():
    assert shares(drawn_from(image_logits(0.5, 0.3, 0.15, 0.05))) == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.03)


def test_temperature_flattens_and_sharpens():
    roots = np.sqrt([0.5, 0.3, 0.15, 0.05])
    drawn = drawn_from(image_logits(0.5, 0.3, 0.15, 0.05), temperature=2.0)
    assert shares(drawn) == pytest.approx((roots / roots.sum()).tolist(), abs=0.03)
    assert shares(drawn_from(image_logits(0.3, 0.5, 0.15, 0.05), count=100, temperature=0.02)) == [0, 1, 0, 0]


@pytest.mark.parametrize("temperature", [0.0, 1e-40])
def test_no_temperature_takes_the_likeliest(temperature):
    assert set(drawn_from(image_logits(0.3, 0.4, 0.2, 0.1), count=10, temperature=temperature)) == {1}


def test_truncated_tokens_are_never_drawn():
    drawn = drawn_from(image_logits(0.5, 0.3, 0.15, 0.05), top_k=2)
    assert shares(drawn) == pytest.approx([5 / 8, 3 / 8, 0, 0], abs=0.03)
    drawn = drawn_from(image_logits(0.15, 0.5, 0.05, 0.3), top_p=0.9)
    assert shares(drawn) == pytest.approx([0.15 / 0.95, 0.5 / 0.95, 0, 0.3 / 0.95], abs=0.03)


@pytest.mark.parametrize(
    ("top_p", "top_k", "kept"),
    [
        (1.0, None, [0, 1, 2, 3]), (0.95, None, [0, 1, 2]), (0.7, None, [0, 2]), (0.5, None, [2]), (0.01, None, [2]),
        (1.0, 1, [2]), (1.0, 3, [0, 1, 2]), (1.0, 9, [0, 1, 2, 3]), (0.7, 2, [0, 2]), (0.6, 2, [2]),
    ],
)  # fmt: skip
def test_truncation_keeps_the_smallest_set_that_holds_top_p_of_the_top_k(top_p, top_k, kept):
    probabilities = torch.tensor([[0.3, 0.15, 0.5, 0.05]])
    found = truncate(probabilities, top_p, top_k)
    assert found[0].nonzero().squeeze(1).tolist() == kept
    assert torch.equal(found[0, kept], probabilities[0, kept])


def test_rows_are_truncated_each_by_its_own_probabilities():
    found = truncate(torch.tensor([[0.9, 0.1, 0.0], [0.1, 0.2, 0.7]]), 0.6, 2)
    assert (found > 0).tolist() == [[True, False, False], [False, False, True]]


def test_the_ends_of_the_random_stream_draw_possible_tokens():
    """A draw of 0, or of just under 1, must not fall on a forbidden token at either end of the vocabulary."""

    class Stuck:
        def __init__(self, value):
            self.value = value

        def random(self):
            return self.value

    vocabulary = Vocabulary(5, 4)
    prompt = Prompt(DocumentFormat(vocabulary), ["text"], [None], 4)
    allowed = _Allowed(prompt, torch.device("cpu"))
    logits = torch.tensor([-float("inf"), 0.3, 0.1, 0.2, -50.0, *[0.0] * 30])
    logits[vocabulary.control("</p>")] = -float("inf")
    for value, possible in ((0.0, {1}), (float(np.nextafter(1, 0)), {3, 4})):
        row = Row(prompt, Stuck(value), Options())
        draw_tokens([row], logits[None], allowed)
        assert set(row.filled[0]) <= possible and row.filled[0]
