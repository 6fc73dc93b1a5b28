"""The image tokenizer's training: pictures get better, the codebook stays alive, the result is diffusers' format."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from diffusers import VQModel
from safetensors.torch import load_file

from racm3.errors import CheckpointError, ConfigError
from racm3.generators.cm3.image_tokenizer import ImageTokenizer, to_model_range
from racm3.training.data import VARIANTS, TrainingSet, generator_at, variant
from racm3.training.generator_inputs import _with_decoder
from racm3.training.image_tokenizer import ImageTokenizerSettings, ImageTokenizerStage, psnr, train_image_tokenizer
from racm3.training.perceptual import PerceptualDistance
from racm3.training.runs import Run

MODEL = {
    "size": 16, "channels": [8, 8, 16], "norm_groups": 4, "codes": 24, "code_width": 4, "batch_size": 8,
    "free_steps": 4,
}  # fmt: skip
TRAINER = {"steps": 30, "learning_rate": 5e-3, "device": "cpu", "log_every": 1, "ema": 0.5}


def squares(count, seed):
    """White pictures with a coloured square."""
    rng = np.random.default_rng(seed)
    pixels = np.full((count, 16, 16, 3), 255, np.uint8)
    for picture in pixels:
        y, x = rng.integers(0, 9, 2)
        picture[y : y + 7, x : x + 7] = rng.integers(0, 200, 3)
    names = [f"{seed}-{i}" for i in range(count)]
    return TrainingSet(pixels, ids=names, texts=names, entities=[f"{seed}-{i // 2}" for i in range(count)])


DATA, HELD_OUT = squares(12, 1), squares(6, 2)


def stage(**changes):
    return ImageTokenizerStage(ImageTokenizerSettings(**{**MODEL, **changes}), DATA, HELD_OUT, seed=3)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder that a short run has trained in, and its held-out figures."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("run")
    return folder, train_image_tokenizer({"model": MODEL, "trainer": TRAINER}, DATA, HELD_OUT, folder)


def log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_training_improves_held_out_pictures(trained):
    folder, figures = trained
    torch.manual_seed(0)
    untrained = stage().evaluate(stage().build())
    assert figures["held_out_psnr"] > untrained["held_out_psnr"] + 3
    losses = [line["loss"] for line in log(folder) if "loss" in line]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:3])


def test_the_result_is_a_tokenizer_whose_pictures_resemble_what_it_was_shown(trained):
    tokenizer = ImageTokenizer.load(trained[0] / "model")
    assert (tokenizer.size, tokenizer.grid, tokenizer.codes) == (16, 4, 24)
    error = (tokenizer.decode(tokenizer.encode(HELD_OUT.pixels)).astype(np.float32) - HELD_OUT.pixels) / 127.5
    found = float(psnr(torch.from_numpy(error).permute(0, 3, 1, 2)).mean())
    # Exported in half precision.
    assert found == pytest.approx(trained[1]["held_out_psnr"], abs=0.3)


def test_the_result_is_diffusers_own_format_in_half_precision(trained):
    model = VQModel.from_pretrained(trained[0] / "model")
    assert model.config.num_vq_embeddings == 24
    weights = load_file(trained[0] / "model" / "diffusion_pytorch_model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float16}


def test_the_codebook_is_used(trained):
    assert trained[1]["held_out_codes_used"] > 0.2


def test_a_resumed_run_ends_with_the_same_weights(tmp_path, monkeypatch):
    """The codebook's moving averages are part of the state."""
    recipe = {"model": MODEL, "trainer": {**TRAINER, "steps": 8, "save_every": 3}}
    train_image_tokenizer(recipe, DATA, HELD_OUT, tmp_path / "whole")
    batch = ImageTokenizerStage.batch

    def stop(self, step, micro):
        if step == 7:
            raise KeyboardInterrupt
        return batch(self, step, micro)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ImageTokenizerStage, "batch", stop)
        train_image_tokenizer(recipe, DATA, HELD_OUT, tmp_path / "stopped")
    train_image_tokenizer(recipe, DATA, HELD_OUT, tmp_path / "stopped")
    for file in ("model/diffusion_pytorch_model.safetensors", "state/state.safetensors"):
        whole, resumed = (load_file(tmp_path / name / file) for name in ("whole", "stopped"))
        assert all(torch.equal(weight, resumed[name]) for name, weight in whole.items())


# --- batches and loss -------------------------------------------------------------------------------------------


def test_a_batch_depends_on_the_step_only():
    one, other = stage(), stage()
    other.batch(0, 0)
    assert torch.equal(one.batch(5, 1)["pixels"], other.batch(5, 1)["pixels"])
    assert not torch.equal(one.batch(5, 0)["pixels"], one.batch(5, 1)["pixels"])


def test_pictures_are_training_pictures_some_of_them_in_a_variant():
    originals = {picture.tobytes() for picture in DATA.pixels}
    variants = {
        np.ascontiguousarray(variant(picture, n)).tobytes() for picture in DATA.pixels for n in range(1, VARIANTS)
    }
    plain = [p.numpy().tobytes() for p in stage(recolour=0.0, batch_size=64).batch(0, 0)["pixels"]]
    assert set(plain) <= originals
    mixed = [p.numpy().tobytes() for p in stage(recolour=0.5, batch_size=200).batch(0, 0)["pixels"]]
    assert set(mixed) <= originals | variants
    assert np.mean([p in originals for p in mixed]) == pytest.approx(0.5, abs=0.1)


def test_the_first_steps_are_without_quantisation():
    made = stage(free_steps=3)
    assert [made.batch(step, 0)["quantise"] for step in range(5)] == [False] * 3 + [True] * 2
    model = made.build()
    images = to_model_range(made.batch(0, 0)["pixels"])
    _, commitment, _, _ = model(images, False)
    assert float(commitment) == 0
    _, commitment, _, _ = model(images, True)
    assert float(commitment) > 0


def test_the_gradient_passes_straight_through_the_codebook():
    made = stage()
    torch.manual_seed(0)
    model = made.build()
    loss, _ = made.loss(model, {**made.batch(9, 0), "quantise": True})
    loss.backward()
    assert model.vq.encoder.conv_in.weight.grad.abs().sum() > 0
    assert model.vq.quantize.embedding.weight.grad is None


def test_training_and_use_agree_on_the_ids():
    """What the loss is computed with is what `ImageTokenizer` gives out."""
    made = stage()
    torch.manual_seed(0)
    model = made.build().eval()
    pixels = made.batch(0, 0)["pixels"]
    with torch.no_grad():
        painted, _, _, ids = model(to_model_range(pixels), True)
    tokenizer = ImageTokenizer(model.vq)
    assert (tokenizer.encode(pixels.numpy()).ravel() == ids.numpy()).all()
    expected = ((painted.clamp(-1, 1) + 1) * 127.5).permute(0, 2, 3, 1).numpy()
    assert np.abs(tokenizer.decode(tokenizer.encode(pixels.numpy())) - expected).max() <= 0.51


# --- the codebook -----------------------------------------------------------------------------------------------


def after_step(made, latents, ids, step=100):
    torch.manual_seed(0)
    model = made.build()
    before = model.vq.quantize.embedding.weight.clone()
    made._seen = [(latents, ids)]
    with torch.no_grad():
        made.after_step(model, step)
    return before, model.vq.quantize.embedding.weight, model


def test_codes_move_towards_the_mean_of_what_falls_to_them():
    made = stage(decay=0.5, restart_below=0.0)
    torch.manual_seed(0)
    model = made.build()
    model.sums.copy_(model.vq.quantize.embedding.weight)
    latents = torch.tensor([[1.0] * 4, [3.0] * 4])
    made._seen = [(latents, torch.tensor([5, 5]))]
    before = model.vq.quantize.embedding.weight.clone()
    with torch.no_grad():
        made.after_step(model, 100)
    after = model.vq.quantize.embedding.weight
    # Usage 0.5 + 0.5 * 2, sums 0.5 * code + 0.5 * (1 + 3)
    assert torch.allclose(after[5], (0.5 * before[5] + 2.0) / 1.5)
    others = torch.arange(24) != 5
    assert torch.allclose(after[others], before[others])


def test_a_code_that_nothing_falls_to_starts_again_among_the_latents():
    made = stage(decay=0.0, restart_below=0.03)
    latents = torch.randn(40, 4) + 10
    _, after, model = after_step(made, latents, torch.zeros(40, dtype=torch.long))
    assert torch.allclose(after[0], latents.mean(0), atol=1e-4)
    for code in after[1:]:
        assert any(torch.allclose(code, latent) for latent in latents)
    assert torch.allclose(model.usage[1:], torch.full((23,), 40 / 24))
    assert torch.allclose(model.sums / model.usage[:, None], after, atol=1e-5)


def test_the_codebook_starts_among_latents():
    made = stage(free_steps=10)
    latents = torch.randn(40, 4) + 10
    _, after, model = after_step(made, latents, torch.zeros(40, dtype=torch.long), step=10)
    for code in after:
        assert any(torch.equal(code, latent) for latent in latents)
    assert (model.usage == 1).all()


# --- data and settings ------------------------------------------------------------------------------------------


def test_psnr_is_that_of_pictures():
    error = torch.full((1, 3, 4, 4), 2 / 255)  # one step of 255, on a scale from -1 to 1
    assert float(psnr(error)) == pytest.approx(20 * np.log10(255), abs=1e-3)


def test_there_are_24_variants_of_a_picture_and_white_stays_white():
    picture = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    assert (variant(picture, 0) == picture).all()
    assert (variant(picture, 1) == picture[:, ::-1]).all()
    assert (variant(picture, 2) == picture[::-1]).all()
    assert len({np.ascontiguousarray(variant(picture, n)).tobytes() for n in range(VARIANTS)}) == VARIANTS == 24
    batch = np.stack([picture, picture[::-1]])
    for number in range(VARIANTS):
        assert (variant(batch, number)[1] == variant(batch[1], number)).all()
        assert (variant(np.full_like(picture, 255), number) == 255).all()


def test_a_position_gives_the_same_random_stream_wherever_it_is_asked_for():
    assert generator_at(1, 2, 3).random() == generator_at(1, 2, 3).random()
    assert len({generator_at(*p).random() for p in ((1, 2, 3), (1, 3, 2), (2, 2, 3), (1, 2))}) == 4


def test_a_wrong_key_in_the_recipe_is_named_with_the_nearest():
    with pytest.raises(ConfigError, match=r"\[model\].*'?code'?.*Did you mean 'codes'"):
        train_image_tokenizer({"model": {"code": 5}, "trainer": TRAINER}, DATA, HELD_OUT, None)


# --- trained further, and by what an encoder sees ------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A small random CLIP in a folder."""
    from open_clip.model import CLIP

    from racm3.training.clip_checkpoint import clip_tokenizer, save_clip_checkpoint, with_vocabulary
    from racm3.training.text_tokenizer import train_text_tokenizer

    folder = tmp_path_factory.mktemp("clip")
    train_text_tokenizer(["a red square", "a blue one"], 300, folder / "text.json")
    tokenizer = clip_tokenizer(folder / "text.json", 8)
    architecture = with_vocabulary(
        {
            "embed_dim": 16,
            "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8},
            "text_cfg": {"context_length": 8, "width": 16, "heads": 2, "layers": 1},
        },
        tokenizer,
    )
    torch.manual_seed(0)
    save_clip_checkpoint(folder / "model", architecture, tokenizer, CLIP(**architecture).state_dict())
    return folder / "model"


def test_a_perceptual_distance_is_none_of_a_picture_to_itself_and_grows_with_what_is_done_to_it(encoder):
    distance = PerceptualDistance(encoder)
    images = to_model_range(torch.from_numpy(HELD_OUT.pixels))
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    none, little, much = (float(distance(images + size * noise, images)) for size in (0.0, 0.05, 0.5))
    assert none == 0 < little < much < 4
    painted = (images + 0.1 * noise).requires_grad_()
    distance(painted, images).backward()
    assert painted.grad is not None and float(painted.grad.abs().max()) > 0


def test_the_tokenizer_with_the_best_pictures_is_exported(tmp_path):
    trainer = {**TRAINER, "steps": 6, "evaluate_every": 2, "keep_best": "held_out_psnr"}
    train_image_tokenizer({"model": MODEL, "trainer": trainer}, DATA, HELD_OUT, tmp_path)
    best = max(line["held_out_psnr"] for line in log(tmp_path) if "held_out_psnr" in line)
    tokenizer = ImageTokenizer.load(tmp_path / "model")
    error = (tokenizer.decode(tokenizer.encode(HELD_OUT.pixels)).astype(np.float32) - HELD_OUT.pixels) / 127.5
    assert float(psnr(torch.from_numpy(error).permute(0, 3, 1, 2)).mean()) == pytest.approx(best, abs=0.05)


def test_a_decoder_trained_further_gives_better_pictures_of_the_same_tokens(trained, encoder, tmp_path):
    folder, before = trained
    model = {**MODEL, "start": str(folder / "model"), "trained": "decoder", "perceptual": str(encoder)}
    recipe, place = {"model": model, "trainer": {**TRAINER, "ema": None}}, tmp_path / "decoder"
    after = train_image_tokenizer(recipe, DATA, HELD_OUT, place)
    assert after["held_out_psnr"] > before["held_out_psnr"]
    one, other = (ImageTokenizer.load(each / "model") for each in (folder, place))
    assert np.array_equal(one.encode(HELD_OUT.pixels), other.encode(HELD_OUT.pixels))
    weights = [load_file(each / "model" / "diffusion_pytorch_model.safetensors") for each in (folder, place)]
    changed = {name.split(".")[0] for name in weights[0] if not torch.equal(weights[0][name], weights[1][name])}
    assert changed == {"decoder", "post_quant_conv"}
    assert all(0 < line["perceptual"] < 4 for line in log(place) if "loss" in line)
    # A generator of the run gets it, unless it is one for other tokens.
    ids = one.encode(HELD_OUT.pixels)
    assert np.array_equal(_with_decoder(Run(tmp_path), one).decode(ids), other.decode(ids))
    assert _with_decoder(Run(tmp_path / "elsewhere"), one) is one
    one.model.quantize.embedding.weight.data[0] += 1
    with pytest.raises(CheckpointError, match="knows other tokens"):
        _with_decoder(Run(tmp_path), one)


def test_training_goes_on_from_a_trained_image_tokenizer(trained, tmp_path):
    folder, before = trained
    recipe = {"model": {**MODEL, "start": str(folder / "model")}, "trainer": {**TRAINER, "steps": 10}}
    after = train_image_tokenizer(recipe, DATA, HELD_OUT, tmp_path)
    assert after["held_out_psnr"] > before["held_out_psnr"] - 1 and log(tmp_path)[0]["commitment"] > 0
    with pytest.raises(CheckpointError, match=r"cannot start from .*the same shape"):
        stage(start=folder / "model", codes=32).build()
    with pytest.raises(ValueError, match="needs a start"):
        ImageTokenizerSettings(**MODEL, trained="decoder")


@pytest.mark.parametrize("each", [1, 85, 256])
def test_the_codes_that_training_starts_from_are_kept_however_large_the_batch(trained, each):
    started = stage(start=trained[0] / "model")
    model = started.build()
    codebook = model.vq.quantize.embedding.weight
    before = codebook.clone()
    ids = torch.arange(len(codebook)).repeat_interleave(each)
    started._seen = [(before[ids], ids)]
    with torch.no_grad():
        started.after_step(model, 1)
    assert torch.allclose(codebook, before, atol=1e-5)


def test_a_format_that_would_change_tokens_is_refused(trained, tmp_path):
    recipe = {"model": {**MODEL, "weight_format": "float32"}, "trainer": {**TRAINER, "steps": 2}}
    train_image_tokenizer(recipe, DATA, HELD_OUT, tmp_path)
    start = {"start": tmp_path / "model", "trained": "decoder"}
    with pytest.raises(ConfigError, match=r"weight_format = 'float16' would round .*'float32'"):
        stage(**start).build()
    stage(**start, weight_format="float32").build()
