"""Pictures to image tokens and back."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from diffusers import VQModel
from safetensors.torch import load_file, save_file

from racm3.errors import CheckpointError, WeightsNotFound
from racm3.generators.cm3.image_tokenizer import ImageTokenizer, to_model_range, to_pixels


@pytest.fixture
def tokenizer(checkpoint):
    return checkpoint.image_tokenizer


@pytest.fixture
def folder(checkpoint_folder, tmp_path):
    return shutil.copytree(checkpoint_folder / "image_tokenizer", tmp_path / "image_tokenizer")


def noise(count):
    return np.random.default_rng(3).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)


def test_sizes_come_from_the_model(tokenizer):
    assert (tokenizer.size, tokenizer.grid, tokenizer.tokens, tokenizer.codes) == (16, 4, 16, 24)
    assert tokenizer.codebook.shape == (24, 4)


def test_pictures_become_ids_in_range(tokenizer):
    ids = tokenizer.encode(noise(5))
    assert (ids.shape, ids.dtype) == ((5, 16), np.int64)
    assert ids.min() >= 0 and ids.max() < tokenizer.codes
    assert len(np.unique(ids, axis=0)) == 5


def test_ids_become_pictures(tokenizer):
    pictures = tokenizer.decode(np.arange(32).reshape(2, 16) % 24)
    assert (pictures.shape, pictures.dtype) == ((2, 16, 16, 3), np.uint8)


def test_each_latent_gets_the_nearest_code(tokenizer):
    """`VQModel.encode` alone does not quantise; ids are checked against all distances."""
    pixels = noise(4)
    with torch.no_grad():
        latents = tokenizer.model.encode(to_model_range(torch.from_numpy(pixels))).latents  # [4, 4, 4, 4]
    flat = latents.permute(0, 2, 3, 1).reshape(4, 16, 1, 4).double().numpy()
    distances = ((flat - tokenizer.codebook.double().numpy()) ** 2).sum(-1)  # [4, 16, 24]
    assert (tokenizer.encode(pixels) == distances.argmin(-1)).all()


def test_pictures_are_painted_from_the_codes_themselves(tokenizer):
    """Decoding must not quantise a second time, nor mix up rows and columns."""
    ids = np.random.default_rng(0).integers(0, 24, (2, 16))
    latents = tokenizer.codebook[torch.from_numpy(ids)].view(2, 4, 4, 4).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = tokenizer.model.decoder(tokenizer.model.post_quant_conv(latents))
    assert (tokenizer.decode(ids) == to_pixels(expected)).all()


def test_the_batch_size_does_not_matter(tokenizer):
    pixels = noise(5)
    ids = tokenizer.encode(pixels)
    assert (tokenizer.encode(pixels, batch_size=2) == ids).all()
    assert np.abs(tokenizer.decode(ids).astype(int) - tokenizer.decode(ids, batch_size=2)).max() <= 1


def test_no_pictures_give_no_ids(tokenizer):
    assert tokenizer.encode(noise(0)).shape == (0, 16)
    assert tokenizer.decode(np.empty((0, 16), np.int64)).shape == (0, 16, 16, 3)


def test_pixels_survive_the_models_range():
    pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    scaled = to_model_range(torch.from_numpy(pixels))
    assert scaled.shape == (1, 3, 16, 16)
    assert (scaled.min(), scaled.max()) == (-1, 1)
    assert (to_pixels(scaled) == pixels).all()
    assert to_pixels(torch.tensor([-3.0, 0.0, 3.0]).view(1, 3, 1, 1)).ravel().tolist() == [0, 128, 255]


def test_diffusers_alone_opens_it(tokenizer, folder):
    model = VQModel.from_pretrained(folder)
    assert torch.equal(model.quantize.embedding.weight, tokenizer.codebook)


def test_half_precision_weights_come_back_as_float32(tokenizer, folder):
    VQModel.from_pretrained(folder).to(torch.float16).save_pretrained(folder)
    opened = ImageTokenizer.load(folder)
    assert opened.codebook.dtype == torch.float32
    assert torch.allclose(opened.codebook, tokenizer.codebook, atol=1e-2)
    assert opened.encode(noise(2)).shape == (2, 16)


@pytest.mark.parametrize("file", ["config.json", "diffusion_pytorch_model.safetensors"])
def test_missing_files_are_named(folder, file):
    (folder / file).unlink()
    with pytest.raises(WeightsNotFound, match=file.split("_")[-1][-11:]) as raised:
        ImageTokenizer.load(folder)
    assert str(folder) in raised.value.message and raised.value.hint


@pytest.mark.parametrize("file", ["config.json", "diffusion_pytorch_model.safetensors"])
def test_damaged_files_are_refused(folder, file):
    (folder / file).write_bytes((folder / file).read_bytes()[:50])
    with pytest.raises(CheckpointError, match="cannot be read") as raised:
        ImageTokenizer.load(folder)
    assert raised.value.hint


def test_weights_that_are_not_numbers_are_refused(folder):
    path = folder / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["decoder.conv_out.bias"][0] = float("nan")
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"NaN or infinite weights in 'decoder\.conv_out\.bias'"):
        ImageTokenizer.load(folder)


def test_weights_that_are_not_there_are_refused(folder):
    """diffusers would go on with random ones."""
    path = folder / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    del weights["decoder.conv_out.bias"]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks weights: decoder\.conv_out\.bias"):
        ImageTokenizer.load(folder)
