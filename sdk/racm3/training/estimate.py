"""What training a generator will take, before it is started: `racm3 train generator RECIPE --dry-run`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from ..generators.cm3.model import Size
from ..generators.cm3.vocabulary import CONTROL
from .account import read_lines
from .recipe import read_table
from .runs import Run
from .text_tokenizer import TextSettings

# Operations a second and bytes of an H200, as published: what --gpus counts on where there is no GPU to measure.
HOPPER_PEAK = {"bf16": 989e12, "fp32": 67e12}
HOPPER_MEMORY = 141 * 10**9
SHARE = 0.4  # of the peak that training is expected to reach, until a log says what it does


@dataclass(frozen=True)
class Estimate:
    """parameters; memory: bytes on each device, by what fills it; room: bytes that a device has; tokens: of a step, padding
    not counted; operations: of a step; peak: of one device, in operations a second, and the share of it that is reached;
    assumed: what the figures rest on, in words."""

    size: str
    parameters: int
    memory: dict[str, int]
    room: int
    tokens: int
    operations: float
    devices: int
    peak: float
    share: float
    steps: int
    assumed: list[str] = field(default_factory=list)

    @property
    def seconds_per_step(self) -> float:
        return self.operations / (self.peak * self.devices * self.share)

    @property
    def fits(self) -> bool:
        """Whether a device has the memory."""
        return sum(self.memory.values()) <= self.room

    def as_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "fits": self.fits,
            "seconds_per_step": self.seconds_per_step,
            "seconds": self.seconds_per_step * self.steps,
        }

    def lines(self) -> list[tuple[str, str]]:
        """Labels and values, to print."""
        memory = ", ".join(f"{name} {size / 2**30:.2f}" for name, size in self.memory.items())
        room = f"{self.room / 2**30:.0f} GiB"
        mend = 'lower [objective] batch_size, and with several devices set [trainer] sharding = "full"'
        return [
            ("size", self.size),
            ("parameters", f"{self.parameters:,}"),
            ("memory of each device", f"{sum(self.memory.values()) / 2**30:.2f} GiB ({memory})"),
            ("fits", f"into {room}" if self.fits else f"NOT into the {room} that there are: {mend}"),
            ("tokens per step", f"{self.tokens:,}"),
            ("operations per step", f"{self.operations:.3g}"),
            ("matrix peak", f"{self.peak / 1e12:.3g} TFLOP/s, {self.devices} times"),
            ("time per step", duration(self.seconds_per_step)),
            (f"time for {self.steps:,} steps", duration(self.seconds_per_step * self.steps)),
            ("assumed", "; ".join(self.assumed)),
        ]


def estimate(recipe: Mapping[str, Any], run: Run, *, gpus: int | None = None) -> Estimate:
    """An estimate for this machine, or for so many data-centre GPUs.

    What is prepared in the run already (image tokenizer, text tokenizer, documents) is looked at, the rest assumed.
    """
    from .generator import ObjectiveSettings, generator_settings
    from .hardware import device_for, matrix_peak, memory_of, training_operations

    model, trainer = generator_settings(recipe)
    objective, size = read_table(ObjectiveSettings, recipe, "objective"), model.shape
    assumed: list[str] = []
    image_tokens, codes = _pictures(run, model.document_stride - model.image_offset, assumed)
    texts, devices = read_table(TextSettings, recipe, "tokenizer"), gpus or 1
    accumulation = -(-trainer.accumulation // devices) * devices
    if accumulation != trainer.accumulation:
        assumed.append(
            f"[trainer] accumulation = {accumulation}, as {devices} GPUs share out the micro-batches of a step"
        )
    text_tokens = _text_tokens(run, texts.longest, min(texts.longest, model.image_offset), assumed)
    vocabulary = texts.vocabulary + len(CONTROL) + codes

    document = round(image_tokens + text_tokens) + 7  # the control tokens of a captioned picture with one span masked
    lengths = [document * (k + 1) for k in objective.k]
    of_a_batch = np.repeat(lengths, objective.batch_size) / len(objective.k)
    here = device_for(trainer.device)
    if gpus is not None and here == "cpu":
        peak, room, share = HOPPER_PEAK[trainer.precision], HOPPER_MEMORY, None
        assumed.append(
            f"GPUs with the memory and the {trainer.precision} peak of an H200, as published; there is none here to measure"
        )
    else:
        peak, room, share = matrix_peak(here, trainer.precision), memory_of(here), _share(run)
        assumed.append(f"matrix peak measured on this {here} just now, in {trainer.precision}")
    if share is None:
        assumed.append(f"training reaches {SHARE:.0%} of the peak, a guess (11 to 54 % were measured on CPUs)")
    else:
        assumed.append(f"training reaches {share:.0%} of the peak, as the generator of this run does by its log")
    tokens = objective.batch_size * float(np.mean(lengths)) * accumulation
    operations = sum(
        training_operations(size, vocabulary, [n]) * objective.batch_size / len(lengths) for n in lengths
    ) * accumulation  # fmt: skip
    parameters = size.parameters(vocabulary, tie_embeddings=model.tie_embeddings)
    longest = max(lengths) if not objective.pack_to else max(*lengths, objective.pack_to)
    memory = _memory(size, parameters, vocabulary, float(of_a_batch.sum()), longest, model.attention, trainer)
    if trainer.sharding == "full":
        memory |= {name: -(-bytes_ // devices) for name, bytes_ in memory.items() if name != "activations"}
        assumed.append(f"weights and what belongs to them shared out over {devices} processes")
    return Estimate(
        model.size, parameters, memory, room, round(tokens), operations, devices, peak, share or SHARE, trainer.steps,
        assumed,
    )  # fmt: skip


def _share(run: Run) -> float | None:
    """What of the matrix peak the run's generator has reached so far, by its log."""
    found = [line["matrix_share"] for line in read_lines(run.folder / "generator") if "matrix_share" in line]
    return float(np.median(found)) if found else None


def _memory(
    size: Size, parameters: int, vocabulary: int, tokens: float, longest: int, attention: str, trainer: Any
) -> dict[str, int]:
    """Bytes on one device. Activations: what a layer keeps for its backward pass, and the logits with their gradient."""
    hidden = size.layers * size.matrices if trainer.optimizer == "muon" else 0  # which have one moment in place of two
    each = 2 if trainer.precision == "bf16" else 4
    kept = each * (8 * size.width + 4 * size.feed_forward) + 4 * 2 * size.width
    if attention == "eager":
        kept += (each + 4) * size.heads * longest
    return {
        "weights": 4 * parameters, "gradients": 4 * parameters, "optimiser": 4 * (2 * parameters - hidden),
        "average": 4 * parameters if trainer.ema else 0,
        "activations": round(tokens * (size.layers * kept + (each + 8) * vocabulary)),
    }  # fmt: skip


def _pictures(run: Run, positions: int, assumed: list[str]) -> tuple[int, int]:
    """Tokens of a picture, and codes, of the run's image tokenizer; if it is not there yet, what the recipe has room for, and
    the paper's codes. positions: of a document, from the picture on."""
    path = run.folder / "image-tokenizer" / "model" / "config.json"
    if not path.is_file():
        tokens = math.isqrt(max(1, positions - 2)) ** 2  # two tokens stand behind a picture
        assumed.append(
            f"pictures of {tokens} tokens, as [model] document_stride has room for, out of 8192, as in the paper"
        )
        return tokens, 8192
    config = json.loads(path.read_text())
    side = config["sample_size"] // 2 ** (len(config["block_out_channels"]) - 1)
    return side * side, int(config["num_vq_embeddings"])


def _text_tokens(run: Run, longest: int, guess: int, assumed: list[str]) -> float:
    """Mean tokens of a text, over the first thousand, none longer than `longest`."""
    documents, tokenizer = run.folder / "data" / "documents.jsonl", run.prepared / "tokenizer.json"
    if not (documents.is_file() and tokenizer.is_file()):
        assumed.append(f"texts of {guess} tokens")
        return guess
    from ..generators.cm3.vocabulary import load_text_tokenizer

    with documents.open(encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in islice(lines, 1000)]
    found = load_text_tokenizer(tokenizer).encode_batch(texts)
    return float(np.mean([min(len(one.ids), longest) for one in found]))


def duration(seconds: float) -> str:
    """Such as 3.4 minutes."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60), ("s", 1)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds * 1000:.1f} ms"
