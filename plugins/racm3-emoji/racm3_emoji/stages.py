"""The emoji world as training data, and its models, stage by stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from racm3.errors import ConfigError, WeightsNotFound, nearest

from .world import Drawing, World

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from racm3.document import Document
    from racm3.interfaces import Progress
    from racm3.training.data import TrainingSet
    from racm3.training.generator import PreparedDocuments

RECIPES = Path(__file__).parent / "recipes"

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
    from racm3.training.data import TrainingSet

    drawings = [world.drawings[row] for row in rows]
    return TrainingSet(
        pixels=world.pixels[rows],
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
    if stage not in STAGES:
        raise ConfigError(f"No stage named '{stage}'. There are: {', '.join(STAGES)}.", nearest(stage, STAGES))
    return STAGES[stage](run, stage, progress)


def _image_tokenizer(run: Run, stage: str, progress: Progress | None) -> dict[str, float]:
    from racm3.training.image_tokenizer import train_image_tokenizer

    data, held_out = _sides(run.world)
    return train_image_tokenizer(run.recipe(stage), data, held_out, run.folder / stage, progress=progress)


def _encoder(run: Run, stage: str, progress: Progress | None) -> dict[str, float]:
    from racm3.training.retriever import train_retriever

    data, held_out = _sides(run.world)
    return train_retriever(run.recipe(stage), data, held_out, run.folder / stage, progress)


def _generator(run: Run, stage: str, progress: Progress | None) -> dict[str, float]:
    from racm3.generators.cm3.image_tokenizer import ImageTokenizer
    from racm3.training.generator import train_generator

    recipe = run.recipe(stage)
    text_tokenizer = _text_tokenizer(run)
    image_tokenizer = ImageTokenizer.load(run.model("image-tokenizer"))
    prepared = _prepared(run, recipe, text_tokenizer, image_tokenizer, progress)
    return train_generator(recipe, prepared, text_tokenizer, image_tokenizer, run.folder / stage, progress=progress)


STAGES: Mapping[str, Callable[[Run, str, Progress | None], dict[str, float]]] = {
    "image-tokenizer": _image_tokenizer,
    "retriever": _encoder,
    "evaluation-encoder": _encoder,
    "generator": _generator,
    "vanilla": _generator,
}


def _sides(world: World) -> tuple[TrainingSet, TrainingSet]:
    held_out = world.select(split="validation", base_form=True)
    return training_set(world, world.select(split="train")), training_set(world, held_out)


def _text_tokenizer(run: Run) -> Tokenizer:
    """The generator's text tokenizer, learnt from training texts once, for all generators of a run."""
    from racm3.generators.cm3.vocabulary import load_text_tokenizer
    from racm3.training.text_tokenizer import train_text_tokenizer

    path = run.folder / "prepared" / "tokenizer.json"
    if not path.is_file():
        texts = [run.world.drawings[row].text for row in run.world.select(split="train")]
        return train_text_tokenizer(texts, run.recipe("generator")["tokenizer"]["vocabulary"], path)
    return load_text_tokenizer(path)


def _prepared(
    run: Run, recipe: Mapping[str, Any], text_tokenizer: Tokenizer, image_tokenizer: Any, progress: Progress | None
) -> PreparedDocuments:
    """Base forms as tokens, with neighbours where the recipe retrieves; both prepared once a run."""
    from racm3.retrievers.clip import ClipRetriever
    from racm3.samplers.diverse import DiverseSampler
    from racm3.training.generator import PreparedDocuments, prepare_documents
    from racm3.training.neighbours import (
        Neighbours,
        NeighbourSettings,
        neighbour_fingerprint,
        prepare_neighbours,
    )
    from racm3.training.recipe import read_table

    training = run.world.select(split="train", base_form=True)
    held_out = run.world.select(split="validation", base_form=True)
    rows = np.concatenate([training, held_out])
    is_held_out = np.arange(len(training), len(rows))
    data = training_set(run.world, rows)
    folder, images = run.folder / "prepared", run.folder / "prepared" / "images.npy"
    if images.is_file():
        texts = [encoding.ids for encoding in text_tokenizer.encode_batch(data.texts)]
        entities = [r[~np.isin(r, is_held_out)] for r in data.rows_by_entity()]
        codes = np.load(images, allow_pickle=False)
        prepared = PreparedDocuments(codes, texts, [r for r in entities if len(r)], is_held_out)
    else:
        prepared = prepare_documents(data, is_held_out, text_tokenizer, image_tokenizer, progress=progress)
        folder.mkdir(parents=True, exist_ok=True)
        np.save(images, prepared.images, allow_pickle=False)
    if "neighbours" not in recipe:
        return prepared
    settings = read_table(NeighbourSettings, recipe, "neighbours")
    retriever = ClipRetriever(str(run.model("retriever")))
    if (folder / "neighbours.json").is_file():
        neighbours = Neighbours.load(folder, fingerprint=neighbour_fingerprint(retriever, settings))
    else:
        documents = [document(run.world, int(row)) for row in rows]
        hands = [hand(run.world.drawings[row]) for row in rows]
        sampler = DiverseSampler(settings.threshold)
        neighbours = prepare_neighbours(
            documents, hands, np.arange(len(training)), is_held_out, retriever, sampler, settings, progress=progress
        )
        neighbours.save(folder)
    return PreparedDocuments(prepared.images, prepared.texts, prepared.entities, is_held_out, neighbours)

