"""What training will take: the sizes' names, the operations of a step, and the dry run."""

from __future__ import annotations

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from racm3.generators.cm3.model import SIZES, Size, build_model
from racm3.generators.cm3.vocabulary import CONTROL, Vocabulary
from racm3.training import hardware
from racm3.training.estimate import HOPPER_PEAK, SHARE, estimate
from racm3.training.hardware import matrix_peak, training_operations
from racm3.training.runs import Run

NAMED = {"125m": 125e6, "350m": 350e6, "760m": 760e6, "2.7b": 2.7e9, "7b": 7e9}


@pytest.mark.parametrize("name", NAMED)
def test_a_size_has_the_parameters_that_its_name_says(name):
    """With the paper's vocabularies: 50,272 text tokens, 8,192 image tokens."""
    assert SIZES[name].parameters(50_272 + len(CONTROL) + 8192) == pytest.approx(NAMED[name], rel=0.05)


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("name", ["tiny", "125m", "7b"])
def test_parameters_are_counted_as_they_are_built(name, tie):
    vocabulary = Vocabulary(1000, 64)
    with torch.device("meta"):
        model = build_model(SIZES[name], vocabulary, tie_embeddings=tie)
    assert sum(p.numel() for p in model.parameters()) == SIZES[name].parameters(vocabulary.size, tie_embeddings=tie)


def test_operations_are_six_for_each_weight_and_token_and_grow_with_the_square_of_the_length():
    size = SIZES["125m"]
    short = training_operations(size, 1000, [1] * 10)
    matrices = size.parameters(1000) - size.layers * 2 * size.width - size.width
    assert short == pytest.approx(6 * 10 * matrices, rel=1e-2)
    one, two = training_operations(size, 1000, [1000, 1000]), training_operations(size, 1000, [2000])
    assert two - one == pytest.approx(6 * size.layers * size.width * 2 * 1000**2)


def test_operations_are_those_that_torch_counts():
    """Without a mask in its kernels, torch multiplies the whole square of an attention; half of it is not to be counted."""
    size, vocabulary, rows, length = Size(2, 32, 2), Vocabulary(50, 14), 3, 24
    model = build_model(size, vocabulary, tie_embeddings=True)
    model.set_attn_implementation("eager")
    ids = torch.arange(rows * length).view(rows, length) % vocabulary.size
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits.sum().backward()
    hidden = 6 * size.layers * size.width * rows * length**2
    assert counter.get_total_flops() == training_operations(size, vocabulary.size, [length] * rows) + hidden


def test_the_matrix_peak_is_that_of_a_multiplication():
    torch.manual_seed(0)
    drawn = torch.rand(1)
    torch.manual_seed(0)
    assert 1e8 < matrix_peak("cpu", "fp32", 0.01) < 1e15
    assert torch.equal(torch.rand(1), drawn)


def recipe(**trainer):
    return {
        "tokenizer": {"vocabulary": 2000}, "model": {"size": "350m", "image_offset": 40},
        "objective": {"batch_size": 8, "k": [0, 2]},
        "trainer": {"steps": 100, "accumulation": 4, "precision": "bf16", "device": "cpu", **trainer},
    }  # fmt: skip


def test_a_dry_run_says_what_it_rests_on(tmp_path):
    found = estimate(recipe(accumulation=8), Run(tmp_path), gpus=8)
    assert found.parameters == SIZES["350m"].parameters(2000 + len(CONTROL) + 8192)
    assert found.tokens == 8 * 8 * 2 * (81 + 40 + 7)
    assert (found.devices, found.peak) == (8, HOPPER_PEAK["bf16"]) and found.fits
    assert found.seconds_per_step == pytest.approx(found.operations / (8 * HOPPER_PEAK["bf16"] * SHARE))
    assert found.memory["weights"] == found.memory["gradients"] == found.memory["optimiser"] / 2 == 4 * found.parameters
    assert found.memory["average"] == 0 < estimate(recipe(ema=0.9), Run(tmp_path), gpus=1).memory["average"]
    said = dict(found.lines())["assumed"]
    assert "81 tokens" in said and "texts of 40 tokens" in said and "H200" in said
    assert json.loads(json.dumps(found.as_json()))["seconds"] == pytest.approx(100 * found.seconds_per_step)


def test_a_dry_run_says_what_does_not_fit_and_counts_on_the_precision_that_is_asked_for(tmp_path):
    large = recipe(precision="fp32", ema=0.9) | {"model": {"size": "7b"}}
    found = estimate(large, Run(tmp_path), gpus=8)
    assert found.peak == HOPPER_PEAK["fp32"] < HOPPER_PEAK["bf16"]
    assert not found.fits and not found.as_json()["fits"]
    said = dict(found.lines())["fits"]
    assert said.startswith("NOT into the 131 GiB") and "sharding" in said
    shared = estimate(recipe(sharding="full", ema=0.9) | {"model": {"size": "7b"}}, Run(tmp_path), gpus=8)
    assert shared.fits and dict(shared.lines())["fits"] == "into 131 GiB"


def test_what_the_log_says_of_the_speed_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(hardware, "matrix_peak", lambda device, precision: 1e12)
    assert estimate(recipe(), Run(tmp_path)).share == SHARE
    (tmp_path / "generator").mkdir()
    lines = [{"step": step, "matrix_share": share} for step, share in ((1, 0.1), (2, 0.2), (3, 0.3))]
    (tmp_path / "generator" / "log.jsonl").write_text(
        "\n".join(map(json.dumps, [*lines, {"step": 3, "held_out_k0": 2}]))
    )
    found = estimate(recipe(), Run(tmp_path))
    assert found.share == 0.2 and found.seconds_per_step == pytest.approx(found.operations / 0.2e12)
    assert "20%" in dict(found.lines())["assumed"]
    assert estimate(recipe(), Run(tmp_path), gpus=2).share == SHARE  # of others it says nothing


def test_gpus_share_out_micro_batches_and_if_asked_weights(tmp_path):
    alone, shared = (estimate(recipe(sharding=sharding), Run(tmp_path), gpus=8) for sharding in ("none", "full"))
    assert alone.tokens == 8 * 8 * 2 * (81 + 40 + 7) and "accumulation = 8" in dict(alone.lines())["assumed"]
    assert "accumulation" not in dict(estimate(recipe(), Run(tmp_path), gpus=2).lines())["assumed"]
    for name in ("weights", "gradients", "optimiser"):
        assert shared.memory[name] == -(-alone.memory[name] // 8)
    assert shared.memory["activations"] == alone.memory["activations"]


def test_muon_has_one_moment_for_hidden_matrices_and_two_for_the_rest(tmp_path):
    adam, muon = (estimate(recipe(optimizer=name), Run(tmp_path), gpus=1) for name in ("adamw", "muon"))
    size = SIZES["350m"]
    assert adam.memory["optimiser"] - muon.memory["optimiser"] == 4 * size.layers * size.matrices


def test_what_is_prepared_is_looked_at_and_this_machine_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(hardware, "matrix_peak", lambda device, precision: 1e12)
    model = tmp_path / "image-tokenizer" / "model"
    model.mkdir(parents=True)
    config = {"sample_size": 64, "block_out_channels": [8, 8, 8, 8], "num_vq_embeddings": 512}
    (model / "config.json").write_text(json.dumps(config))
    found = estimate(recipe(), Run(tmp_path))
    assert found.tokens == 4 * 8 * 2 * (64 + 40 + 7) and (found.devices, found.peak) == (1, 1e12)
    assert found.parameters == SIZES["350m"].parameters(2000 + len(CONTROL) + 512)
