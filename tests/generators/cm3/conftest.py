"""A tiny CM3 checkpoint with random weights: two layers, pictures of 16x16 pixels and 4x4 tokens, byte-level text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import VQModel

from racm3.document import Image
from racm3.generators.cm3.document_format import DocumentFormat
from racm3.generators.cm3.generator import Cm3Generator
from racm3.generators.cm3.image_tokenizer import ImageTokenizer, to_model_range
from racm3.generators.cm3.model import Checkpoint, Size, build_model
from racm3.generators.cm3.vocabulary import Vocabulary
from racm3.training.text_tokenizer import train_text_tokenizer

CODES = 24


def tiny_image_tokenizer() -> ImageTokenizer:
    """Untrained, but its codebook lies where latents lie, so that different pictures get different tokens."""
    model = VQModel(
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8), layers_per_block=1, sample_size=16, latent_channels=4, vq_embed_dim=4,
        num_vq_embeddings=CODES, norm_num_groups=4,
    )  # fmt: skip
    noise = np.random.default_rng(0).integers(0, 256, (CODES, 16, 16, 3), dtype=np.uint8)
    with torch.no_grad():
        latents = model.encode(to_model_range(torch.from_numpy(noise))).latents
        model.quantize.embedding.weight.copy_(latents.permute(0, 2, 3, 1).flatten(1, 2)[:, 0])
    return ImageTokenizer(model)


@pytest.fixture(scope="session")
def checkpoint_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved checkpoint. Do not write to it: make a copy."""
    folder = tmp_path_factory.mktemp("cm3")
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        texts = ["a red kite over the beach", "a grey whale under the sea", "the red beach"] * 3
        text_tokenizer = train_text_tokenizer(texts, 280, folder / "tokenizer.json")
        image_tokenizer = tiny_image_tokenizer()
        vocabulary = Vocabulary(text_tokenizer.get_vocab_size(), image_tokenizer.codes)
        model = build_model(Size(2, 32, 2), vocabulary, max_positions=256)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(8)  # at their usual size, random weights give nearly the same answer to everything
    checkpoint = Checkpoint(model, text_tokenizer, image_tokenizer, DocumentFormat(vocabulary, 64, 16))
    checkpoint.save(folder / "checkpoint")
    return folder / "checkpoint"


@pytest.fixture(scope="session")
def checkpoint(checkpoint_folder: Path) -> Checkpoint:
    return Checkpoint.load(checkpoint_folder)


@pytest.fixture
def generator(checkpoint: Checkpoint) -> Cm3Generator:
    return Cm3Generator.from_checkpoint(checkpoint, batch_rows=8)


@pytest.fixture(scope="session")
def pictures() -> list[Image]:
    """Pictures that the image tokenizer tells apart."""
    rng = np.random.default_rng(1)
    return [Image(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for _ in range(6)]
