"""Stage two: the retriever's CLIP encoder, an open_clip model with open_clip's own loss (paper section 3.1; CLIP, arXiv 2103.00020).

A batch shows every thing twice, drawn by different hands and said in different ways. The loss is a weighted mean of
`ClipLoss` over pairs of views: each drawing with its text, drawing with drawing, text with text; and, if asked for,
drawing and text with the pooled vector of the other view. Names of training things are soon known by heart; their
documents are then more alike in picture and text than any that was never seen, and crowd those out. Hence little weight
on the first of these, or some on the last, which has made-up names among it that say nothing about their picture.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from open_clip.loss import ClipLoss
from open_clip.model import CLIP
from pydantic import BaseModel, ConfigDict, Field

from ..errors import ConfigError
from ..interfaces import Progress
from .clip_checkpoint import clip_tokenizer, save_clip_checkpoint, with_vocabulary
from .data import PixelRows, TrainingSet, generator_at
from .processes import main_process_first
from .recipe import read_table
from .retriever_batches import PairSampler, TextViews, augment, draw_batch
from .text_tokenizer import train_text_tokenizer
from .trainer import Stage, TrainerSettings, WeightFormat, train

LARGEST_MEMORY = 20_000  # training documents among which held-out ones are looked for, for the figures


class RetrieverSettings(BaseModel):
    """The `[model]` table of a retriever recipe."""

    model_config = ConfigDict(extra="forbid")

    architecture: dict[str, Any] = Field(description="open_clip's model configuration: embed_dim, vision_cfg, text_cfg")
    vocabulary: int = Field(2000, ge=256, description="tokens of the text tokenizer, when one is trained")
    batch_size: int = Field(256, ge=2, description="things per batch, each drawn twice")
    made_up: float = Field(
        0.4, ge=0, lt=1, description="share of things in a batch that are made up: recoloured, renamed"
    )
    augmentation: float = Field(1.0, ge=0, description="strength; 0: pictures as they are")
    image_text: float = Field(1.0, ge=0, description="weight of the loss between drawings and texts (two pairs)")
    image_image: float = Field(1.0, ge=0, description="weight of the loss between two drawings")
    text_text: float = Field(1.0, ge=0, description="weight of the loss between two texts")
    document: float = Field(
        0.0, ge=0, description="weight of drawings, and of texts, against the other view's pooled vector"
    )
    weight_format: WeightFormat = Field("float16", description="of the exported model: float32, float16 or bfloat16")


def check_architecture(architecture: Mapping[str, Any]) -> None:
    """`ConfigError` for one that open_clip cannot build; no weights are made for it."""
    _sizes(architecture)
    with torch.device("meta"):
        _clip(architecture)


def _sizes(architecture: Mapping[str, Any]) -> tuple[int, int]:
    """The side of its pictures in pixels, and the length of its texts in tokens, which is 32 unless it says so."""
    try:
        size, length = architecture["vision_cfg"]["image_size"], architecture["text_cfg"].get("context_length", 32)
        return int(size), int(length)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(
            "A CLIP architecture needs embed_dim, vision_cfg with image_size, and text_cfg.",
            "There is one in examples/recipes/retriever.toml.",
        ) from error


def _clip(architecture: Mapping[str, Any]) -> CLIP:
    known = {name: value for name, value in architecture.items() if name != "custom_text"}
    try:
        return CLIP(**copy.deepcopy(known))
    except Exception as error:  # whatever its parts raise
        raise ConfigError(
            f"open_clip cannot build this architecture: {type(error).__name__}: {error}",
            "There is one in examples/recipes/retriever.toml.",
        ) from error


class RetrieverStage(Stage):
    """Trains an open_clip model from nothing; held-out figures on things that it never saw."""

    best = "highest"

    def __init__(
        self,
        settings: RetrieverSettings,
        data: TrainingSet,
        held_out: TrainingSet,
        tokenizer: str | Path,
        *,
        seed: int = 0,
    ) -> None:
        self.settings, self.data, self.held_out, self.seed = settings, data, held_out, seed
        self.size, context_length = _sizes(settings.architecture)
        self.tokenizer = clip_tokenizer(tokenizer, context_length)
        self.architecture = with_vocabulary(settings.architecture, self.tokenizer)
        self._pairs, self._views = PairSampler(data), TextViews(data)
        self._loss = ClipLoss()

    def build(self) -> torch.nn.Module:
        return _clip(self.architecture).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

    def tokens(self, texts: Sequence[str]) -> torch.Tensor:
        """Token ids, int64 [n, context length]."""
        return torch.tensor([encoding.ids for encoding in self.tokenizer.encode_batch(list(texts))])

    def batch(self, step: int, micro: int) -> dict[str, Any]:
        """images: float [2 n, 3, size, size], first drawings and then second ones; texts: int64 [2 n, L], likewise."""
        settings = self.settings
        drawn = draw_batch(
            self.data, self._pairs, self._views, size=settings.batch_size, made_up=settings.made_up,
            seed=(self.seed, step, micro),
        )  # fmt: skip
        rng = generator_at(self.seed, step, micro, 1)
        images = augment(drawn["pixels"], self.size, rng, settings.augmentation)
        return {"images": images, "texts": self.tokens(drawn["texts"]), "real": drawn["real"]}

    def loss(
        self, model: torch.nn.Module, batch: dict[str, Any]
    ) -> tuple[torch.Tensor, dict[str, float | torch.Tensor]]:
        images, texts, scale = model(batch["images"].contiguous(memory_format=torch.channels_last), batch["texts"])
        settings = self.settings
        # In bf16 a logit of 50 has steps of 0.25: the loss itself is worked out in full precision.
        with torch.autocast(images.device.type, enabled=False):
            (image_a, image_b), (text_a, text_b) = images.float().chunk(2), texts.float().chunk(2)  # [n, dim] each
            real, scale = batch["real"], scale.float()

            def twice(one: Pair, other: Pair) -> torch.Tensor:
                return (self._loss(*one, scale) + self._loss(*other, scale)) / 2

            losses = {
                "image_text": twice((image_a[:real], text_a[:real]), (image_b[:real], text_b[:real])),
                "image_image": self._loss(image_a, image_b, scale),
                "text_text": self._loss(text_a, text_b, scale),
            }
            weights = {
                "image_text": 2 * settings.image_text, "image_image": settings.image_image, "text_text": settings.text_text,
            }  # fmt: skip
            if settings.document:
                pooled_a, pooled_b = (
                    torch.nn.functional.normalize(i + t, dim=-1) for i, t in ((image_a, text_a), (image_b, text_b))
                )
                losses["image_document"] = twice((image_a, pooled_b), (image_b, pooled_a))
                losses["text_document"] = twice((text_a, pooled_b), (text_b, pooled_a))
                weights |= dict.fromkeys(("image_document", "text_document"), settings.document)
            loss = sum((weights[name] * value for name, value in losses.items()), scale.new_zeros(()))
        figures: dict[str, float | torch.Tensor] = {name: value.detach() for name, value in losses.items()}
        figures["scale"] = scale.detach()
        return loss / sum(weights.values()), figures

    def after_step(self, model: torch.nn.Module, step: int) -> None:
        assert isinstance(model, CLIP)
        model.logit_scale.clamp_(0, math.log(100))  # as in CLIP

    def evaluate(self, model: torch.nn.Module) -> dict[str, float]:
        return retrieval_figures(self.encoder(model), self.data, self.held_out) if len(self.held_out) else {}

    def encoder(self, model: torch.nn.Module, batch_size: int = 256) -> tuple[EncodeImages, EncodeTexts]:
        """Two functions that give unit vectors, float32 [n, dim]: of pictures (uint8 [n, h, w, 3]), and of texts."""
        assert isinstance(model, CLIP)
        device = next(model.parameters()).device

        def chunks(n: int) -> list[slice]:
            return [slice(start, start + batch_size) for start in range(0, n, batch_size)]

        def encode_images(pixels: np.ndarray | PixelRows) -> np.ndarray:
            vectors = []
            for chunk in chunks(len(pixels)):
                images = torch.from_numpy(np.array(pixels[chunk])).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
                images = torch.nn.functional.interpolate(images, (self.size, self.size), mode="bilinear")
                vectors.append(model.encode_image(images, normalize=True).float().cpu())
            return torch.cat(vectors).numpy()

        def encode_texts(texts: Sequence[str]) -> np.ndarray:
            tokens = self.tokens(texts).to(device)
            return torch.cat(
                [model.encode_text(tokens[c], normalize=True).float().cpu() for c in chunks(len(texts))]
            ).numpy()

        return encode_images, encode_texts

    def export(self, model: torch.nn.Module, folder: Path) -> None:
        """The folder that open_clip opens as `local-dir:FOLDER`."""
        dtype = getattr(torch, self.settings.weight_format)
        weights = {n: w.to(dtype) if w.is_floating_point() else w for n, w in model.state_dict().items()}
        save_clip_checkpoint(folder, self.architecture, self.tokenizer, weights)


Pair = tuple[torch.Tensor, torch.Tensor]
EncodeImages = Callable[[np.ndarray | PixelRows], np.ndarray]
EncodeTexts = Callable[[Sequence[str]], np.ndarray]


def retrieval_figures(
    encoder: tuple[EncodeImages, EncodeTexts], data: TrainingSet, held_out: TrainingSet
) -> dict[str, float]:
    """Recall@1 on things never seen, among themselves and all training things (base forms: the first name of each).

    name_to_document: a name, in a memory of full documents. drawing_to_document: a drawing, in a memory of full
    documents of which those of its own source that show a held-out thing are left out; drawing_to_drawing: likewise, in
    a memory of drawings; drawing_to_held_out: among held-out drawings alone. name_to_drawing: a name, in a memory of
    drawings.
    """
    encode_images, encode_texts = encoder
    base = _base_forms(data)
    sources = held_out.sources or held_out.ids
    entities = np.array([data.entities[row] for row in base] + held_out.entities)
    drawings = np.concatenate([encode_images(data.pixels[base]), encode_images(held_out.pixels)])
    documents = _unit(drawings + encode_texts([data.texts[row] for row in base] + held_out.texts))
    own = drawings[len(base) :]
    names = held_out.names or held_out.texts
    first = {entity: row for row, entity in reversed(list(enumerate(held_out.entities)))}
    asked = np.array(sorted(first.values()))
    name_vectors = encode_texts([names[row] for row in asked])

    same_source = np.array(sources)[:, None] == np.array(sources)[None, :]
    hidden = np.concatenate([np.zeros((len(own), len(base)), bool), same_source], 1)  # [queries, memory]
    wanted = np.array(held_out.entities)
    return {
        "name_to_document": _recall(name_vectors @ documents.T, wanted[asked], entities),
        "name_to_drawing": _recall(name_vectors @ drawings.T, wanted[asked], entities),
        "drawing_to_document": _recall(np.where(hidden, -2, own @ documents.T), wanted, entities),
        "drawing_to_drawing": _recall(np.where(hidden, -2, own @ drawings.T), wanted, entities),
        "drawing_to_held_out": _recall(np.where(same_source, -2, own @ own.T), wanted, wanted),
    }


def _recall(scores: np.ndarray, wanted: np.ndarray, entities: np.ndarray) -> float:
    """The share of queries whose best document shows what is wanted, of those for which there is any."""
    possible = ((entities[None, :] == wanted[:, None]) & (scores > -2)).any(1)
    return float((entities[scores.argmax(1)] == wanted)[possible].mean()) if possible.any() else 0.0


def _base_forms(data: TrainingSet) -> np.ndarray:
    """The rows whose name is the first one of their entity: every source's drawing of it, without the variants."""
    names = data.names or data.texts
    first: dict[str, str] = {}
    for entity, name in zip(data.entities, names, strict=True):
        first.setdefault(entity, name)
    rows = np.array([row for row, entity in enumerate(data.entities) if names[row] == first[entity]])
    return rows[:: -(-len(rows) // LARGEST_MEMORY)]


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def train_retriever(
    recipe: Mapping[str, Any],
    data: TrainingSet,
    held_out: TrainingSet,
    folder: str | Path,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Train an encoder from a recipe (tables `model` and `trainer`) in `folder`; the checkpoint is `folder/model`.

    The text tokenizer is learnt from the training texts first, unless `folder/tokenizer.json` is there. A later call
    with the same folder goes on where the last one stopped. Returns the held-out figures.
    """
    settings = read_table(RetrieverSettings, recipe, "model")
    loop = read_table(TrainerSettings, recipe, "trainer")
    tokenizer = Path(folder) / "tokenizer.json"
    with main_process_first(recipe):
        if not tokenizer.is_file():
            train_text_tokenizer({*data.texts, *data.names}, settings.vocabulary, tokenizer)
    stage = RetrieverStage(settings, data, held_out, tokenizer, seed=loop.seed)
    return train(stage, loop, folder, progress=progress)
