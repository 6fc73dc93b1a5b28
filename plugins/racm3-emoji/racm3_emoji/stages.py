"""The emoji world as training data, and its models, stage by stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from racm3.errors import ConfigError, WeightsNotFound, nearest

from .world import Drawing, World

if TYPE_CHECKING:
    from racm3.document import Document
    from racm3.interfaces import Progress
    from racm3.training.data import Corpus, TrainingSet

RECIPES = Path(__file__).parent / "recipes"
SOURCE = {"source": f"{__name__}:corpus"}  # the table [data], by which racm3 finds this world again

# What the analysis compares with. The generator's own recipe has what it found to be better.
PAPER: Mapping[str, Mapping[str, Any]] = {
    "neighbours": {"sampler": "diverse", "draws": 3, "dropout": 0.2},
    "objective": {"alpha": 0.1},
}

# Two sets by one hand: what one of them shows would give the other away.
_VENDORS = {"Noto v1": "Noto", "Flag Icons 1:1": "Flag Icons 4:3"}


def vendor(drawing: Drawing) -> str:
    """Who drew it; the two generations of Noto and the two shapes of Flag Icons are one vendor each."""
    return _VENDORS.get(drawing.style, drawing.style)


def hand(drawing: Drawing) -> str:
    """One key for all drawings of a thing by one vendor: none of them may be looked up for another."""
    return f"{drawing.entity}/{vendor(drawing)}"


def training_set(world: World, rows: np.ndarray) -> TrainingSet:
    """Rows of the world (see `World.select`) in the form that the training stages take."""
    from racm3.training.data import PixelRows, TrainingSet

    drawings = [world.drawings[row] for row in rows]
    return TrainingSet(
        pixels=PixelRows(world.pixels, rows),
        ids=[d.id for d in drawings],
        texts=[d.text for d in drawings],
        entities=[d.entity for d in drawings],
        names=[d.name for d in drawings],
        sources=[vendor(d) for d in drawings],
        keywords=[list(d.keywords) for d in drawings],
    )


def document(world: World, row: int) -> Document:
    """A drawing as a document: its text and its picture, with entity, style and group as metadata."""
    from racm3.document import Document, Image

    d = world.drawings[row]
    metadata = {"name": d.name, "style": d.style, "vendor": vendor(d), "entity": d.entity, "group": d.group}
    return Document([d.text, Image(world.to_png_bytes(row))], id=d.id, metadata=metadata)


@dataclass(frozen=True)
class Run:
    """A folder with one sub-folder a stage, and the recipes that are followed in it."""

    folder: Path
    recipes: Path
    world: World

    def model(self, stage: str) -> Path:
        """The trained model of a stage; `WeightsNotFound` if it is not there yet."""
        path = self.folder / stage / "model"
        if not path.is_dir():
            raise WeightsNotFound(f"{path} is missing.", f"Train it first: racm3 emoji train {stage}")
        return path

    def recipe(self, stage: str) -> dict[str, Any]:
        from racm3.training.recipe import read_recipe

        return read_recipe(self.recipes / f"{stage}.toml")

    def analysed(self) -> dict[str, Any]:
        """The recipe that the analysis changes one thing of at a time: the generator's, with the paper's choices in it."""
        recipe = self.recipe("generator")
        return recipe | {table: recipe[table] | settings for table, settings in PAPER.items()} | {"data": SOURCE}


def recipes_for(hardware: str) -> Path:
    """The recipes for a kind of hardware ("cpu", "gpu"), or a folder of one's own."""
    known = sorted(path.name for path in RECIPES.iterdir() if path.is_dir())
    if hardware in known:
        return RECIPES / hardware
    if Path(hardware).is_dir():
        return Path(hardware)
    raise ConfigError(
        f"No recipes for '{hardware}'. There are: {', '.join(known)}, or a folder.", nearest(hardware, known)
    )


def train_stage(run: Run, stage: str, progress: Progress | None = None) -> dict[str, float]:
    """Train one stage, or go on with it, and return its held-out figures."""
    from racm3.training import runs

    if stage not in STAGES:
        raise ConfigError(f"No stage named '{stage}'. There are: {', '.join(STAGES)}.", nearest(stage, STAGES))
    kind, recipe = STAGES[stage], run.recipe(stage)
    recipe["data"] = SOURCE
    if stage == "decoder":
        recipe["model"] |= {
            "start": str(run.model("image-tokenizer").resolve()), "perceptual": str(run.model("retriever").resolve()),
        }  # fmt: skip
    if kind == "generator":  # one text tokenizer for all generators of a run
        recipe["tokenizer"] = run.recipe("generator")["tokenizer"]
    return runs.train_stage(
        runs.Run(run.folder), kind, recipe, corpus_of(run.world, kind), name=stage, progress=progress
    )


STAGES: Mapping[str, str] = {
    "image-tokenizer": "image-tokenizer",
    "retriever": "retriever",
    "evaluation-encoder": "retriever",
    "decoder": "image-tokenizer",
    "generator": "generator",
    "vanilla": "generator",
}


def corpus(stage: str) -> Corpus:
    """The emoji world as a source of `racm3 train`: `[data] source = "racm3_emoji.stages:corpus"`."""
    from .world import build

    return corpus_of(build(), stage)


def corpus_of(world: World, stage: str) -> Corpus:
    """Training and validation drawings: base forms alone are held out, and what a generator is trained on."""
    from racm3.training.data import Corpus

    training = world.select(split="train", base_form=True if stage == "generator" else None)
    held_out = world.select(split="validation", base_form=True)
    rows = np.concatenate([training, held_out])
    return Corpus(training_set(world, rows), np.arange(len(training), len(rows)))
