"""Packed batches: nothing is lost, little is wasted, and no sample sees another."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from racm3.generators.cm3.model import Size, build_model
from racm3.generators.cm3.vocabulary import Vocabulary
from racm3.training.objective import WeightedSequence, weighted_loss
from racm3.training.packing import attention_mask, collate_packed, pack

VOCABULARY = Vocabulary(30, 8)
PAD = VOCABULARY.control("<pad>")


def lengths_like_training(rng, n=48, tokens=(70, 92)):
    """K of 0, 1 and 2 in equal shares, documents of varying length."""
    return [int(rng.integers(*tokens, size=k + 1).sum()) for k in rng.permutation(np.resize([0, 1, 2], n))]


@pytest.mark.parametrize("longest", [512, 1024, 4096])
def test_every_sample_is_packed_once_into_rows_that_are_not_too_long(longest):
    lengths = lengths_like_training(np.random.default_rng(0))
    rows = pack(lengths, longest)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert max(sum(lengths[i] for i in row) for row in rows) <= longest


@pytest.mark.parametrize(("longest", "samples"), [(1024, 48), (768, 32), (512, 96)])
def test_at_most_two_percent_is_padding(longest, samples):
    wasted = []
    for seed in range(20):
        lengths = lengths_like_training(np.random.default_rng(seed), samples)
        rows = pack(lengths, longest, 8)
        width = -(-max(sum(lengths[i] for i in row) for row in rows) // 8) * 8
        wasted.append(1 - sum(lengths) / (width * len(rows)))
    assert np.mean(wasted) <= 0.02 and max(wasted) <= 0.025


def test_a_sample_longer_than_a_row_has_one_of_its_own_length():
    rows = pack([50, 10, 10], 20)
    assert sorted(len(row) for row in rows)[-1] <= 2 and [0] in rows


def sequence(rng, n):
    weights = rng.random(n).astype(np.float32)
    weights[0] = 0.0  # nothing predicts the first token
    gaps = np.cumsum(rng.integers(1, 4, size=n))  # positions have gaps, as between documents
    return WeightedSequence(rng.integers(0, 30, size=n), gaps, weights, np.arange(n) >= n // 2)


@pytest.fixture(params=["sdpa", "eager"])
def model(request):
    torch.manual_seed(0)
    made = build_model(Size(2, 32, 2), VOCABULARY, max_positions=256).eval()
    made.set_attn_implementation(request.param)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 2:
                parameter.mul_(8)
    return made


def logits(model, batch):
    mask = attention_mask(batch["samples"], model.config._attn_implementation)
    with torch.no_grad():
        return model(
            input_ids=batch["ids"], position_ids=batch["positions"], attention_mask=mask, use_cache=False
        ).logits


def test_another_packed_sample_does_not_change_the_logits(model):
    rng = np.random.default_rng(1)
    one, two, other = sequence(rng, 20), sequence(rng, 12), sequence(rng, 12)
    first, second = (collate_packed([one, sample], PAD, 64, 8) for sample in (two, other))
    assert first["ids"].shape == (1, 32) and not torch.equal(first["ids"], second["ids"])
    before, after = logits(model, first), logits(model, second)
    assert torch.equal(before[0, :20], after[0, :20])
    assert not torch.allclose(before[0, 20:], after[0, 20:])
    # Nor does a sample before it: the second answers as it does alone.
    alone = logits(model, collate_packed([two], PAD, 64, 4))
    assert torch.allclose(before[0, 20:], alone[0], atol=1e-4)


def test_a_packed_batch_has_the_loss_of_its_samples(model):
    rng = np.random.default_rng(2)
    samples = [sequence(rng, n) for n in (20, 12, 17, 9)]
    packed = collate_packed(samples, PAD, 40, 8)
    assert packed["ids"].shape[0] == 2 and (packed["samples"] == -1).any()
    loss, figures = weighted_loss(logits(model, packed), packed["ids"], packed["weights"], packed["main"])
    total = counted = 0.0
    for sample in samples:
        batch = collate_packed([sample], PAD, 40, 1)
        alone, _ = weighted_loss(logits(model, batch), batch["ids"], batch["weights"], batch["main"])
        n = float(((batch["weights"] > 0) & batch["main"]).sum())
        total, counted = total + float(alone) * n, counted + n
    assert float(loss) == pytest.approx(total / counted, rel=1e-4)
    assert figures["main"] > 0 and figures["retrieved"] > 0
