"""A training run: a folder with one sub-folder a stage, and what the stages share.

    run/
      data/             the user's documents, read once (see `dataset`)
      image-tokenizer/  retriever/  generator/     log.jsonl, state/, model/, and stage.json: what is trained, by which recipe
      decoder/          the same of an image tokenizer's decoder that was trained further, if one was (`--name decoder`)
      prepared/         tokenizer.json, image tokens, document vectors, neighbours

Every stage goes on where it was stopped, and so does every preparation.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import CheckpointError, ConfigError, WeightsNotFound
from ..interfaces import Progress
from .data import Corpus, TrainingSet
from .dataset import DataSettings, open_dataset
from .generator_inputs import generator_inputs
from .recipe import read_table
from .run_files import check_model, read_json, reading, write_json
from .sources import corpus_of
from .stage_recipes import check_size, check_tables

if TYPE_CHECKING:
    from .generator_inputs import GeneratorInputs


@dataclass(frozen=True)
class Run:
    """A folder with one sub-folder a stage."""

    folder: Path

    @property
    def prepared(self) -> Path:
        return self.folder / "prepared"

    def model(self, stage: str) -> Path:
        """The trained model of a stage; `WeightsNotFound` if it is not there yet, `CheckpointError` if it is damaged."""
        path = self.folder / stage / "model"
        if not path.is_dir():
            raise WeightsNotFound(
                f"{path} is missing: {stage} is not trained yet.",
                f"Train it first: racm3 train {stage} RECIPE.toml --run {self.folder}",
            )
        trained = (path.parent / "stage.json").is_file()
        again = f"Write it anew from its state: racm3 train resume {path.parent}" if trained else "Copy it there again."
        check_model(path, again)
        return path


def train_stage(
    run: Run, kind: str, recipe: Mapping[str, Any], corpus: Corpus, *, name: str = "", progress: Progress | None = None
) -> dict[str, float]:
    """Train a stage, or go on with it, and return its held-out figures.

    kind: image-tokenizer, retriever or generator. name: its sub-folder of the run, by default the kind.
    """
    from .processes import claimed, main_process_first

    check_tables(kind, recipe)
    folder = run.folder / (name or kind)
    with ExitStack() as held:
        with main_process_first(recipe) as is_main:
            if is_main:
                held.enter_context(claimed(folder))
            check_same_recipe(folder, kind, recipe)
            if is_main:
                record(folder, kind, recipe)
        return _STAGES[kind](run, folder, recipe, corpus, progress)


def open_corpus(run: Run, kind: str, recipe: Mapping[str, Any], progress: Progress | None = None) -> Corpus:
    """The documents that a recipe's `[data]` names, read into the run's folder the first time."""
    from .processes import main_process_first

    settings = read_table(DataSettings, recipe, "data")
    if ":" in settings.source:
        return corpus_of(settings.source, kind)
    with main_process_first(recipe):
        return open_dataset(settings, run.folder / "data", progress)


# --- what is trained, by which recipe -----------------------------------------------------------------------------


def recorded(folder: Path) -> tuple[str, dict[str, Any]]:
    """The kind and the recipe of a stage's folder; `ConfigError` if nothing was trained there."""
    path = folder / "stage.json"
    if not path.is_file():
        raise ConfigError(
            f"{folder} is no folder of a training stage: it has no stage.json.", "Give one such as run/generator."
        )
    mend = "Delete it, and give the command that began the training again: it goes on."
    found = read_json(path, mend)
    with reading(path, mend):
        return found["stage"], dict(found["recipe"])


def _is_begun(folder: Path) -> bool:
    """Whether there is a state to go on from; one that was being replaced is called otherwise."""
    return (folder / "state").is_dir() or (folder / "state.old").is_dir()


def check_same_recipe(folder: Path, kind: str, recipe: Mapping[str, Any]) -> None:
    """`ConfigError` if a run in this folder was started with another recipe: it would be neither one nor the other."""
    if not _is_begun(folder) or not (folder / "stage.json").is_file():
        return
    kind_before, before = recorded(folder)
    plain = json.loads(json.dumps(dict(recipe), default=str))
    changed = differing(before, plain)
    if kind_before != kind or changed:
        raise ConfigError(
            f"{folder} holds a run by another recipe: {', '.join(changed) or kind_before} differs.",
            f"Go on with it: racm3 train resume {folder}. Or start anew with another --run or --name.",
        )


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The keys, with their tables, in which two recipes differ; a table alone, which one of them lacks."""
    found = []
    for table in sorted({*before, *now}):
        one, other = before.get(table), now.get(table)
        if one is None or other is None:
            found += [f"[{table}]"] if one != other else []
        else:
            found += [f"[{table}] {key}" for key in sorted({*one, *other}) if one.get(key) != other.get(key)]
    return found


def record(folder: Path, kind: str, recipe: Mapping[str, Any]) -> None:
    """Write down what is trained in a folder, and by which recipe."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "stage.json", {"stage": kind, "recipe": dict(recipe)}, indent=2)


# --- the stages ---------------------------------------------------------------------------------------------------


def _image_tokenizer(
    run: Run, folder: Path, recipe: Mapping[str, Any], corpus: Corpus, progress: Progress | None
) -> dict[str, float]:
    from .image_tokenizer import train_image_tokenizer

    check_size(recipe, corpus.data.pixels.shape[1])
    data, held_out = _sides(corpus)
    return train_image_tokenizer(recipe, data, held_out, folder, progress=progress)


def _retriever(
    run: Run, folder: Path, recipe: Mapping[str, Any], corpus: Corpus, progress: Progress | None
) -> dict[str, float]:
    from .retriever import train_retriever

    data, held_out = _sides(corpus)
    return train_retriever(recipe, data, held_out, folder, progress)


def _generator(
    run: Run, folder: Path, recipe: Mapping[str, Any], corpus: Corpus, progress: Progress | None
) -> dict[str, float]:
    from .generator import train_generator
    from .processes import main_process_first

    made = generator_inputs(run, recipe, corpus, progress=progress)
    with main_process_first(recipe) as is_main:
        _bind(folder, made, record=is_main)
    return train_generator(recipe, made.documents, made.text_tokenizer, made.image_tokenizer, folder, progress=progress)


def _bind(folder: Path, made: GeneratorInputs, *, record: bool) -> None:
    """A generator that is begun knows the tokens that it has learnt; `CheckpointError` if they are others by now."""
    codebook = np.ascontiguousarray(made.image_tokenizer.codebook.float().cpu().numpy())
    tokens = {
        "image tokens": hashlib.sha256(codebook.tobytes()).hexdigest(),
        "text tokens": hashlib.sha256(made.text_tokenizer.to_str().encode()).hexdigest(),
    }
    path = folder / "tokens.json"
    if _is_begun(folder) and path.is_file():
        before = read_json(path, "Delete it, if the run's tokenizers are those that the generator was begun with.")
        if changed := [name for name, value in tokens.items() if before.get(name) != value]:
            raise CheckpointError(
                f"The generator in {folder} has learnt other {' and '.join(changed)} than the run has now.",
                "Put the tokenizers back that it was begun with, or begin anew with another --name.",
            )
    if record:
        write_json(path, tokens, indent=2)


_STAGES: Mapping[str, Callable[[Run, Path, Mapping[str, Any], Corpus, Progress | None], dict[str, float]]] = {
    "image-tokenizer": _image_tokenizer, "retriever": _retriever, "generator": _generator,
}  # fmt: skip


def _sides(corpus: Corpus) -> tuple[TrainingSet, TrainingSet]:
    return corpus.data.select(corpus.training), corpus.data.select(corpus.measured)
