"""Drawing tokens: the distribution, temperature, truncation, and the ends of the random stream."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from racm3.generators.cm3.drawing import contrast, draw, guide, repeated, streams_of, truncate
from racm3.options import Options


def drawn_from(logits, count=3000, **options):
    """Tokens that many rows draw from the same logits [vocabulary]."""
    uniform = torch.tensor([np.random.default_rng([0, i]).random() for i in range(count)], dtype=torch.float64)
    return draw(torch.tensor(logits).expand(count, -1), Options(**options), uniform).numpy()


def logits_of(*probabilities):
    return [float(np.log(p)) for p in probabilities]


def shares(tokens):
    return [float(np.mean(tokens == token)) for token in range(4)]


def test_tokens_are_drawn_by_their_probability():
    assert shares(drawn_from(logits_of(0.5, 0.3, 0.15, 0.05))) == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.03)


def test_temperature_flattens_and_sharpens():
    roots = np.sqrt([0.5, 0.3, 0.15, 0.05])
    drawn = drawn_from(logits_of(0.5, 0.3, 0.15, 0.05), temperature=2.0)
    assert shares(drawn) == pytest.approx((roots / roots.sum()).tolist(), abs=0.03)
    assert shares(drawn_from(logits_of(0.3, 0.5, 0.15, 0.05), count=100, temperature=0.02)) == [0, 1, 0, 0]


@pytest.mark.parametrize("temperature", [0.0, 1e-40])
def test_no_temperature_takes_the_likeliest(temperature):
    assert set(drawn_from(logits_of(0.3, 0.4, 0.2, 0.1), count=10, temperature=temperature)) == {1}


def test_truncated_tokens_are_never_drawn():
    drawn = drawn_from(logits_of(0.5, 0.3, 0.15, 0.05), top_k=2)
    assert shares(drawn) == pytest.approx([5 / 8, 3 / 8, 0, 0], abs=0.03)
    drawn = drawn_from(logits_of(0.15, 0.5, 0.05, 0.3), top_p=0.9)
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
    """A draw of 0, or of just under 1, must not fall on an impossible token at either end of the vocabulary."""
    scores = torch.tensor([[-float("inf"), 0.3, 0.1, 0.2, -50.0, -float("inf")]])
    for value, possible in ((0.0, {1}), (float(np.nextafter(1, 0)), {3, 4})):
        token = int(draw(scores, Options(), torch.tensor([value], dtype=torch.float64)))
        assert token in possible


# --- several predictions in one ----------------------------------------------------------------------------------


def test_groups_are_averaged_as_probabilities():
    groups = [[0.9, 0.1], [0.5, 0.5], [0.2, 0.8], [0.4, 0.6]]
    logits = torch.tensor([groups]).log() + 3.0  # any constant
    prompted, unprompted, alone = streams_of(logits, guided=True, context_guided=False)
    assert prompted.exp()[0].tolist() == pytest.approx([0.7, 0.3])
    assert unprompted.exp()[0].tolist() == pytest.approx([0.3, 0.7]) and alone is None
    prompted, unprompted, alone = streams_of(logits, guided=False, context_guided=False)
    assert prompted.exp()[0].tolist() == pytest.approx([0.5, 0.5]) and unprompted is None and alone is None
    logits = torch.tensor([[*groups, [0.6, 0.4]]]).log() - 1.0
    for guided, shares in ((True, [0.7, 0.3]), (False, [0.5, 0.5])):
        prompted, unprompted, alone = streams_of(logits, guided=guided, context_guided=True)
        assert prompted.exp()[0].tolist() == pytest.approx(shares) and (unprompted is not None) == guided
        assert alone.exp()[0].tolist() == pytest.approx([0.6, 0.4])


def test_guidance_goes_from_the_unprompted_through_the_prompted_and_beyond():
    prompted, unprompted = torch.tensor([[0.5, 0.3, 0.2]]).log(), torch.tensor([[0.2, 0.3, 0.5]]).log()
    assert torch.equal(guide(prompted, unprompted, 0.0), unprompted)
    assert torch.allclose(guide(prompted, unprompted, 1.0), prompted)
    ratio = guide(prompted, unprompted, 3.0).softmax(-1)[0]
    assert float(ratio[0] / ratio[1]) == pytest.approx((0.5 / 0.3) * (2.5 / 1) ** 2)


def test_contrast_keeps_what_is_likely_and_ranks_it_by_the_ratio():
    prompted = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    unprompted = torch.tensor([[0.7, 0.1, 0.1, 0.1]]).log()
    scores = contrast(prompted, unprompted, k=2, share=0.6)  # at least 0.6 * 0.3
    assert scores.exp()[0].tolist() == pytest.approx([0.4 / 0.7, 3, 2, 0])
    assert contrast(prompted, unprompted, k=9, share=1.0).isfinite().all()
    assert contrast(prompted, unprompted, k=1, share=1.0).isfinite()[0].tolist() == [True, False, False, False]


@pytest.mark.parametrize(
    ("drawn", "size", "again"),
    [([1, 2, 3, 1, 2], 3, [3]), ([1, 2, 1, 2], 2, [1]), ([4, 5], 1, [4, 5]), ([1, 2], 3, []), ([1, 1, 1], 2, [1, 1]), ([7], 0, [])],
)  # fmt: skip
def test_what_would_repeat(drawn, size, again):
    assert repeated(drawn, size) == again
