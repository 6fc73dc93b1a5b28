"""A run of toy size: pictures in a folder, an image tokenizer that was never trained, and a retriever without weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from racm3.ablation import analysis
from racm3.generators.cm3 import model as cm3_model
from racm3.generators.cm3.model import Size
from racm3.testing import HashingRetriever
from racm3.training import generator_inputs

COLOURS = ("red", "green", "blue", "white", "black", "grey")


@pytest.fixture(autouse=True)
def nano(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cm3_model.SIZES, "nano", Size(1, 16, 2))
    for module in (generator_inputs, analysis):
        monkeypatch.setattr(module, "retriever_of", lambda run, recipe: HashingRetriever(64))


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from diffusers import VQModel

    from racm3.generators.cm3.image_tokenizer import ImageTokenizer

    folder = tmp_path_factory.mktemp("image-tokenizer") / "model"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ImageTokenizer(
            VQModel(
                down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
                block_out_channels=(8, 8, 8), layers_per_block=1, sample_size=16, latent_channels=4, vq_embed_dim=4,
                num_vq_embeddings=32, norm_num_groups=4,
            )
        ).save(folder)  # fmt: skip
    return folder


@pytest.fixture
def toy_run(tmp_path: Path, tokenizer_folder: Path) -> Path:
    """A run's folder with its image tokenizer."""
    (tmp_path / "run" / "image-tokenizer").mkdir(parents=True)
    (tmp_path / "run" / "image-tokenizer" / "model").symlink_to(tokenizer_folder)
    return tmp_path / "run"


@pytest.fixture
def toy_recipe(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """A generator's recipe over a folder with two drawings of each of six colours, four of which are held out."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    rng = np.random.default_rng(0)
    lines = []
    for number in range(12):
        pixels = np.array(PIL.Image.new("RGB", (16, 16), COLOURS[number // 2]))
        pixels[rng.integers(16, size=4), rng.integers(16, size=4)] = 99
        PIL.Image.fromarray(pixels).save(pictures / f"{number}.png")
        text, metadata = f"{COLOURS[number // 2]} {number}", {"entity": COLOURS[number // 2], "source": str(number % 2)}
        lines.append(json.dumps({"image": f"{number}.png", "text": text, "metadata": metadata}))
    (pictures / "documents.jsonl").write_text("\n".join(lines))

    def recipe(**trainer: Any) -> dict[str, Any]:
        return {
            "data": {"source": "jsonl", "path": str(pictures / "documents.jsonl"), "size": 16, "held_out": 0.4},
            "tokenizer": {"vocabulary": 260},
            "neighbours": {"draws": 1, "candidates": 8, "threshold": 1.0},
            "model": {"size": "nano", "document_stride": 32, "image_offset": 12, "max_positions": 256},
            "objective": {"batch_size": 2, "copies": [0.5, 0.1]},
            "trainer": {
                "steps": 4, "learning_rate": 1e-2, "accumulation": 3, "device": "cpu", "log_every": 1, "save_every": 2,
                "ema": 0.5, **trainer,
            },
        }  # fmt: skip

    return recipe
