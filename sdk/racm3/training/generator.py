"""Stage three: the generator, trained with retrieved documents before each document (paper sections 3.2 and 3.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from tokenizers import Tokenizer

from ..errors import CheckpointError, ConfigError
from ..generators.cm3.document_format import DocumentFormat, Span, TokenPart, TokenSequence
from ..generators.cm3.image_tokenizer import ImageTokenizer
from ..generators.cm3.masking import MaskingSettings, draw_spans
from ..generators.cm3.model import Checkpoint, Size, build_model, size_named
from ..generators.cm3.vocabulary import Vocabulary
from ..interfaces import Progress
from .data import generator_at
from .documents import PreparedDocuments, Shown
from .hardware import training_operations
from .objective import WeightedSequence, weighted_loss, weighted_sequence
from .packing import attention_mask, collate_packed
from .recipe import read_table
from .trainer import Stage, TrainerSettings, WeightFormat, train


class GeneratorModelSettings(BaseModel):
    """The `[model]` table of a generator recipe."""

    model_config = ConfigDict(extra="forbid")

    size: str = Field("tiny", description="tiny, small, 125m, 350m, 760m, 2.7b or 7b")
    layers: int | None = Field(None, ge=1, description="in place of the size's own; width and heads alike")
    width: int | None = Field(None, ge=2, description="the same")
    heads: int | None = Field(None, ge=1, description="the same")
    start: Path | None = Field(
        None, description="a trained model, such as run/vanilla/model, whose weights are trained further"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="of attention weights")
    document_stride: int = Field(128, ge=1, description="positions from the start of a document to that of the next")
    image_offset: int = Field(32, ge=1, description="position of the first image token in its document")
    max_positions: int = Field(4096, ge=1, description="of a sequence, documents and all")
    tie_embeddings: bool = Field(True, description="one matrix for input and output, which the sizes' names count on")
    attention: Literal["sdpa", "eager"] = Field(
        "sdpa", description="eager, compiled, is the faster of the two on a CPU: its fused kernel is slow backwards"
    )
    codebook_embeddings: bool = Field(
        True, description="start the image embeddings from the image tokenizer's codebook"
    )
    weight_format: WeightFormat = Field("bfloat16", description="of the exported model: float32, float16 or bfloat16")

    @property
    def shape(self) -> Size:
        """Depth and width; `ConfigError` if the width cannot be shared out among the heads."""
        own = {name: value for name in ("layers", "width", "heads") if (value := getattr(self, name)) is not None}
        shape = replace(size_named(self.size), **own)
        if shape.width % (2 * shape.heads):
            raise ConfigError(
                f"In [model] of the recipe, {shape.heads} heads cannot share a width of {shape.width}.",
                f"Choose a width that is a multiple of {2 * shape.heads}.",
            )
        return shape


class ObjectiveSettings(BaseModel):
    """The `[objective]` table, with the method's defaults."""

    model_config = ConfigDict(extra="forbid")

    alpha: float = Field(0.1, ge=0, description="weight of the retrieved documents' tokens")
    k: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (0, 1, 2),
        min_length=1,
        description="numbers of retrieved documents, in equal shares; one that comes twice has two",
    )
    context: Literal["retrieved", "random"] = Field(
        "retrieved", description="random: any other training documents, a baseline (worse in the paper)"
    )
    context_parts: Shown = Field("both", description="both: whole retrieved documents; text, image: that part alone")
    batch_size: int = Field(32, ge=1, description="documents in a micro-batch")
    sentinel_weight: float = Field(0.0, ge=0, description="weight of predicting where a span was cut out, and which")
    text_queries: float = Field(
        0.5,
        ge=0,
        le=1,
        description="share of samples whose documents were found by the first query form, the rest by the second",
    )
    variants: float = Field(0.0, ge=0, le=1, description="share of samples with one variant on all their pictures")
    copies: tuple[Annotated[float, Field(ge=0, le=1)], Annotated[float, Field(ge=0, le=1)]] = Field(
        (0.0, 0.0),
        description="share of samples with the document itself among the retrieved: at the start, at the end",
    )
    corruption: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of x's image tokens that the model is shown wrongly (not the ones it predicts)",
    )
    pad_to: int = Field(8, ge=1, description="sequence lengths are padded to a multiple of this")
    pack_to: int = Field(
        0,
        ge=0,
        description="samples are packed into rows of at most so many tokens, K drawn for each; 0: a row each, K for all. "
        "Of documents of 83 tokens, about 1 % is padding with 768 and batch_size = 32, or 512 and 96",
    )


class GeneratorStage(Stage):
    """Trains a Llama on documents behind retrieved documents."""

    def __init__(
        self,
        model: GeneratorModelSettings,
        objective: ObjectiveSettings,
        masking: MaskingSettings,
        trainer: TrainerSettings,
        data: PreparedDocuments,
        text_tokenizer: Tokenizer,
        image_tokenizer: ImageTokenizer,
    ) -> None:
        if max(objective.k) > 0 and objective.context == "retrieved" and data.neighbours is None:
            raise ConfigError("Training with k > 0 needs neighbours.", "Prepare them, or set k = [0].")
        caption = max(map(len, data.texts), default=0)
        # Three tokens stand around a caption, one behind a picture, and one behind the document.
        extent = max(model.image_offset, caption + 3) + data.images.shape[-1] + 2
        positions = -(-extent // model.document_stride) * model.document_stride
        if positions * (max(objective.k) + 1) > model.max_positions:
            raise ConfigError(
                f"{max(objective.k)} documents and one more, of up to {positions} positions each (the longest caption has "
                f"{caption} tokens), do not fit into [model] max_positions = {model.max_positions}.",
                "Raise it, or lower [objective] k, [tokenizer] longest or [model] document_stride.",
            )
        self.settings, self.objective, self.masking, self.trainer = model, objective, masking, trainer
        self.data = data
        self.text_tokenizer, self.image_tokenizer = text_tokenizer, image_tokenizer
        vocabulary = Vocabulary(text_tokenizer.get_vocab_size(), image_tokenizer.codes)
        self.format = DocumentFormat(vocabulary, model.document_stride, model.image_offset)

    def build(self) -> torch.nn.Module:
        settings, vocabulary = self.settings, self.format.vocabulary
        model: Any = build_model(
            settings.shape, vocabulary, max_positions=settings.max_positions, dropout=settings.dropout,
            tie_embeddings=settings.tie_embeddings,
        )  # fmt: skip
        model.set_attn_implementation(settings.attention)
        if settings.start is not None:
            self._start_from(model, settings.start)
        elif settings.codebook_embeddings:
            # Codes that look alike start alike: a random projection keeps the codebook's distances.
            codebook = self.image_tokenizer.codebook.float().cpu()
            codebook = (codebook - codebook.mean(0)) / codebook.std()
            width = model.config.hidden_size
            projection = torch.randn(codebook.shape[1], width) * codebook.shape[1] ** -0.5
            with torch.no_grad():
                spread = model.get_input_embeddings().weight.std()
                model.get_input_embeddings().weight[vocabulary.first_image :] = codebook @ projection * spread
        return model

    def _start_from(self, model: torch.nn.Module, folder: Path) -> None:
        """Take over trained weights; `CheckpointError` if they are of another model, or of other tokens."""
        given = Checkpoint.load(folder)
        same = given.text_tokenizer.to_str() == self.text_tokenizer.to_str() and torch.equal(
            given.image_tokenizer.codebook.cpu(), self.image_tokenizer.codebook.float().cpu()
        )
        try:
            if not same:
                raise RuntimeError("it knows other tokens")
            model.load_state_dict(given.model.state_dict())
        except RuntimeError as error:
            raise CheckpointError(
                f"Training cannot start from {folder}: {error}.",
                "Its [model] table must be the same, and the text and image tokenizers of its run.",
            ) from error

    # --- batches ------------------------------------------------------------------------------------------------

    def batch(self, step: int, micro: int) -> dict[str, torch.Tensor]:
        """Entities drawn uniformly, a document of each, and K of its neighbours.

        Packed, K is drawn for each sample, in equal shares. A row each, K is the same in a micro-batch, so that little is
        padding, and takes its values in turn over the micro-batches of a step."""
        objective, pad = self.objective, self.format.vocabulary.control("<pad>")
        k = objective.k[(step * self.trainer.accumulation + micro) % len(objective.k)]
        rng = generator_at(self.trainer.seed, step, micro)
        picked = rng.integers(len(self.data.entities), size=objective.batch_size)
        ks = [k] * len(picked)
        if objective.pack_to:
            ks = rng.permutation(np.resize(rng.permutation(objective.k), len(picked))).tolist()
        samples = [
            self.sample(int(rng.choice(self.data.entities[entity])), k, step, rng)
            for entity, k in zip(picked, ks, strict=True)
        ]
        if objective.pack_to:
            batch = collate_packed(samples, pad, objective.pack_to, objective.pad_to)
        else:
            batch = collate(samples, pad, objective.pad_to)
        if self.objective.corruption:
            # Against memorising, which dropout would serve too, had the CPU's fast attention any: what it has drawn so
            # far is less to be trusted than the documents.
            ids, first_image = batch["ids"].numpy(), self.format.vocabulary.first_image
            wrong = (rng.random(ids.shape) < self.objective.corruption) & batch["main"].numpy() & (ids >= first_image)
            others = rng.integers(first_image, self.format.vocabulary.size, size=ids.shape)
            batch["inputs"] = torch.from_numpy(np.where(wrong, others, ids))
        return batch

    def sample(self, row: int, k: int, step: int, rng: np.random.Generator) -> WeightedSequence:
        """One training sequence: the document of a row behind k documents, the nearest of them last."""
        number = int(rng.integers(1, self.data.images.shape[1])) if rng.random() < self.objective.variants else 0
        context = self._context_rows(row, k, rng) if k else []
        first, last = self.objective.copies
        if context and rng.random() < first + (last - first) * step / self.trainer.steps:
            context[int(rng.integers(len(context)))] = row
        return self._sequence(row, context, number, rng)

    def _context_rows(self, row: int, k: int, rng: np.random.Generator, *, by_text: bool = False) -> list[int]:
        """by_text: what the caption found, where there are queries of both forms."""
        if self.objective.context == "random":
            return self.data.random_rows(row, k, rng)
        neighbours = self.data.neighbours
        assert neighbours is not None
        _, forms, draws, _ = neighbours.rows.shape
        form = 0
        if forms == 2:
            form = neighbours.forms.index("text") if by_text else int(rng.random() >= self.objective.text_queries)
        chosen = neighbours.rows[row, form, rng.integers(draws), :k]
        return [int(r) for r in chosen[::-1] if r >= 0]

    def _sequence(self, row: int, context: list[int], number: int, rng: np.random.Generator | None) -> WeightedSequence:
        """rng None: nothing is masked."""
        parts = self.data.parts(row, number)
        shown = [self.data.parts(other, number, self.objective.context_parts) for other in context]
        spans = draw_spans(parts, self.masking, rng) if rng is not None else []
        of_shown = (
            [draw_spans(one, self.masking, rng) for one in shown] if rng is not None and self.masking.retrieved else []
        )
        objective = self.objective
        return behind_documents(
            self.format, shown, parts, objective.alpha, spans, of_shown, sentinel_weight=objective.sentinel_weight
        )

    # --- loss and figures ---------------------------------------------------------------------------------------

    def loss(
        self, model: torch.nn.Module, batch: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, float | torch.Tensor]]:
        inputs = batch.get("inputs", batch["ids"])
        if "samples" in batch:
            mask = attention_mask(batch["samples"], self.settings.attention)
        else:
            # All ones, as padding stands last and weighs nothing. Without a mask, transformers would take the gaps between
            # positions for borders of packed sequences, and hide the documents.
            mask = torch.ones_like(inputs)
        logits = model(input_ids=inputs, position_ids=batch["positions"], attention_mask=mask, use_cache=False).logits
        loss, figures = weighted_loss(logits, batch["ids"], batch["weights"], batch["main"])
        padding = (batch["ids"] == self.format.vocabulary.control("<pad>")).float().mean()
        return loss, {**figures, "padding": padding}

    def work(self, batch: dict[str, torch.Tensor]) -> tuple[int, float]:
        """Tokens, padding not counted, and the operations that they take."""
        used = batch["ids"] != self.format.vocabulary.control("<pad>")
        if "samples" in batch:
            rows = range(len(used))
            lengths = np.concatenate([np.bincount(batch["samples"][row][used[row]].numpy()) for row in rows])
        else:
            lengths = used.sum(1).numpy()
        size = self.settings.shape
        return int(lengths.sum()), training_operations(size, self.format.vocabulary.size, lengths)

    def evaluate(self, model: torch.nn.Module) -> dict[str, float]:
        """Nats per image token of held-out pictures, given their captions, for each K of training.

        The documents are those that the caption found, as in drawing from a text: a query that saw the picture would
        give it away. Where [neighbours] forms has no "text", they are those that the picture found all the same.
        """
        figures: dict[str, float] = {}
        for k in self.objective.k if len(self.data.held_out) else ():
            rng = np.random.default_rng(0)
            losses = []
            for start in range(0, len(self.data.held_out), 64):
                samples = [
                    self._sequence(row, self._context_rows(row, k, rng, by_text=True) if k else [], 0, None)
                    for row in self.data.held_out[start : start + 64].tolist()
                ]
                batch = collate(samples, self.format.vocabulary.control("<pad>"), self.objective.pad_to)
                losses.append(image_token_losses(model, batch, self.format.vocabulary).mean(1))
            figures[f"held_out_k{k}"] = float(np.concatenate(losses).mean())
        return figures

    def export(self, model: torch.nn.Module, folder: Path) -> None:
        model = model.to(getattr(torch, self.settings.weight_format))
        Checkpoint(model, self.text_tokenizer, self.image_tokenizer, self.format).save(folder)


def behind_documents(
    format: DocumentFormat,
    context: Sequence[Sequence[TokenPart]],
    parts: Sequence[TokenPart],
    alpha: float = 1.0,
    spans: Sequence[Span] = (),
    context_spans: Sequence[Sequence[Span]] = (),
    *,
    sentinel_weight: float = 0.0,
) -> WeightedSequence:
    """A document behind others, the nearest of which stands last, with what is masked of it and, if anything, of each of
    these; see `weighted_sequence` for the weights."""
    written: list[TokenSequence] = []
    for other, masked in zip(context, context_spans or [()] * len(context), strict=True):
        written.append(format.write(other, slot=format.slot_after(written[-1]) if written else 0, spans=masked))
    own = format.write(parts, slot=format.slot_after(written[-1]) if written else 0, spans=spans)
    return weighted_sequence(written, own, format.vocabulary, alpha, sentinel_weight)


def collate(samples: list[WeightedSequence], pad: int, multiple: int) -> dict[str, torch.Tensor]:
    """Sequences side by side, padded on the right: ids, positions, weights and main, each [B, T]."""
    longest = -(-max(len(s.ids) for s in samples) // multiple) * multiple
    shape = (len(samples), longest)
    ids, positions = np.full(shape, pad, np.int64), np.zeros(shape, np.int64)
    weights, main = np.zeros(shape, np.float32), np.zeros(shape, bool)
    for i, s in enumerate(samples):
        n = len(s.ids)
        ids[i, :n], positions[i, :n], weights[i, :n], main[i, :n] = s.ids, s.positions, s.weights, s.main
    arrays = {"ids": ids, "positions": positions, "weights": weights, "main": main}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def image_token_losses(model: torch.nn.Module, batch: dict[str, torch.Tensor], vocabulary: Vocabulary) -> np.ndarray:
    """Nats of each image token of x, of each sequence of a batch: [B, tokens]. Only image tokens compete."""
    device = next(model.parameters()).device
    batch = {name: value.to(device) for name, value in batch.items()}
    logits = model(
        input_ids=batch["ids"], position_ids=batch["positions"], attention_mask=torch.ones_like(batch["ids"]),
        use_cache=False,
    ).logits[:, :-1, vocabulary.first_image :]  # fmt: skip
    wanted = batch["ids"][:, 1:] - vocabulary.first_image
    counted = (wanted >= 0) & batch["main"][:, 1:]
    losses = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), wanted.clamp_min(0).flatten(), reduction="none"
    ).view(wanted.shape)
    return losses[counted].view(len(losses), -1).detach().cpu().numpy()  # all pictures have the same number of tokens


def generator_settings(recipe: Mapping[str, Any]) -> tuple[GeneratorModelSettings, TrainerSettings]:
    """The tables model and trainer; a learning rate that is left out is that of the model's size."""
    model = read_table(GeneratorModelSettings, recipe, "model")
    rate = {"learning_rate": model.shape.learning_rate}
    return model, read_table(TrainerSettings, {"trainer": {**rate, **recipe.get("trainer", {})}}, "trainer")


def train_generator(
    recipe: Mapping[str, Any],
    data: PreparedDocuments,
    text_tokenizer: Tokenizer,
    image_tokenizer: ImageTokenizer,
    folder: Path,
    *,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Train from a recipe (tables model, objective, masking, trainer), in `folder`; the result is `folder/model`."""
    model, trainer = generator_settings(recipe)
    stage = GeneratorStage(
        model, read_table(ObjectiveSettings, recipe, "objective"),
        read_table(MaskingSettings, recipe, "masking"), trainer, data, text_tokenizer, image_tokenizer,
    )  # fmt: skip
    return train(stage, trainer, folder, progress=progress)
