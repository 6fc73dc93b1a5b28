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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from ..errors import CheckpointError, ConfigError, WeightsNotFound, nearest
from ..interfaces import Progress, Retriever
from .data import VARIANTS, Corpus, DocumentRows, TrainingSet
from .dataset import DataSettings, open_dataset
from .hardware import device_for
from .recipe import read_recipe, read_table
from .run_files import check_model, read_json, reading, write_json
from .sources import corpus_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from ..generators.cm3.image_tokenizer import ImageTokenizer
    from .documents import PreparedDocuments
    from .generator import ObjectiveSettings

# The stage whose image tokenizer has the tokens of the run's own, and the better pictures.
DECODER = "decoder"

# Held-out figures are taken on no more than so many documents, spread evenly over those that there are.
HELD_OUT = 1000

TABLES = {
    "image-tokenizer": ("data", "model", "trainer"),
    "retriever": ("data", "model", "trainer"),
    "generator": ("data", "tokenizer", "retriever", "neighbours", "model", "masking", "objective", "trainer"),
}


class TextSettings(BaseModel):
    """The `[tokenizer]` table of a generator recipe: the text tokenizer, learnt from the training texts."""

    model_config = ConfigDict(extra="forbid")

    vocabulary: int = Field(2048, ge=256, description="tokens; the first generator of a run decides")
    longest: int = Field(128, ge=1, description="tokens of a text at most; longer ones are cut")


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


def read_stage_recipe(path: Path) -> dict[str, Any]:
    """A recipe file; its relative paths belong to its folder."""
    recipe, here = read_recipe(path), path.resolve().parent
    places = [("data", "path"), ("data", "images"), ("model", "start"), ("model", "perceptual")]
    if str(recipe.get("retriever", {}).get("model", "")).startswith(
        (".", "~")
    ):  # other names are those of architectures
        places.append(("retriever", "model"))
    for table, key in places:
        if isinstance(value := recipe.get(table, {}).get(key), str):
            # One folder has one name, however it is spelt: another one would be another recipe.
            recipe[table][key] = str((here / Path(value).expanduser()).resolve())
    return recipe


def settings_of(kind: str) -> dict[str, type[BaseModel]]:
    """What the tables of a recipe for a kind of stage hold, but for `[retriever]`, which is as in a pipeline file."""
    from .trainer import TrainerSettings

    if kind == "image-tokenizer":
        from .image_tokenizer import ImageTokenizerSettings

        return {"data": DataSettings, "model": ImageTokenizerSettings, "trainer": TrainerSettings}
    if kind == "retriever":
        from .retriever import RetrieverSettings

        return {"data": DataSettings, "model": RetrieverSettings, "trainer": TrainerSettings}
    from ..generators.cm3.masking import MaskingSettings
    from .generator import GeneratorModelSettings, ObjectiveSettings
    from .neighbours import NeighbourSettings

    return {
        "data": DataSettings, "tokenizer": TextSettings, "neighbours": NeighbourSettings,
        "model": GeneratorModelSettings, "masking": MaskingSettings, "objective": ObjectiveSettings,
        "trainer": TrainerSettings,
    }  # fmt: skip


def check_recipe(kind: str, recipe: Mapping[str, Any]) -> None:
    """`ConfigError` for what can be seen to be wrong in a recipe before a document is read."""
    try:
        check_tables(kind, recipe)
        if kind == "generator":
            _check_generator(recipe)
        for table, settings in settings_of(kind).items():
            if (kind, table) != ("generator", "trainer"):  # whose learning rate may be that of the model's size
                read_table(settings, recipe, table)
        if kind == "retriever":
            from .retriever import check_architecture

            check_architecture(recipe["model"]["architecture"])
        for key in ("start", "perceptual"):
            if (folder := recipe.get("model", {}).get(key)) is not None and not Path(folder).is_dir():
                raise ConfigError(f"[model] {key}: there is no folder {folder}.", "Give that of a trained model.")
        data = read_table(DataSettings, recipe, "data")
        if kind == "image-tokenizer" and ":" not in data.source:
            _check_size(recipe, data.size)
    except ConfigError as error:
        for other, own in (
            ("image-tokenizer", "channels"),
            ("retriever", "architecture"),
            ("generator", "document_stride"),
        ):
            if other != kind and own in recipe.get("model", {}):
                raise ConfigError(
                    f"This is a recipe for {other}: [model] has {own}.", f"racm3 train {other} ..."
                ) from error
        raise


def _check_generator(recipe: Mapping[str, Any]) -> None:
    from .generator import ObjectiveSettings, generator_settings

    model, _ = generator_settings(recipe)
    _ = model.shape
    _check_kept(recipe, read_table(ObjectiveSettings, recipe, "objective"))


def _check_kept(recipe: Mapping[str, Any], objective: ObjectiveSettings) -> None:
    from .neighbours import NeighbourSettings

    keep = read_table(NeighbourSettings, recipe, "neighbours").keep
    if max(objective.k) > keep and objective.context == "retrieved":
        raise ConfigError(
            f"[objective] k has {max(objective.k)}, but of neighbours only {keep} are kept.",
            f"Set [neighbours] keep = {max(objective.k)}.",
        )


def check_tables(kind: str, recipe: Mapping[str, Any]) -> None:
    """`ConfigError` for a kind of stage that there is not, or a table that it does not read."""
    if kind not in TABLES:
        raise ConfigError(f"No stage named '{kind}'. There are: {', '.join(TABLES)}.", nearest(kind, TABLES))
    for table in recipe:
        if table not in TABLES[kind]:
            raise ConfigError(
                f"A recipe for {kind} has no table [{table}]. Tables: {', '.join(TABLES[kind])}.",
                nearest(table, TABLES[kind]),
            )


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

    _check_size(recipe, corpus.data.pixels.shape[1])
    data, held_out = _sides(corpus)
    return train_image_tokenizer(recipe, data, held_out, folder, progress=progress)


def _check_size(recipe: Mapping[str, Any], size: int) -> None:
    from .image_tokenizer import ImageTokenizerSettings

    wanted = read_table(ImageTokenizerSettings, recipe, "model").size
    if wanted != size:
        raise ConfigError(
            f"[model] size is {wanted}, but the pictures have {size} pixels.", f"Set [model] size = {size}."
        )


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


@dataclass(frozen=True)
class GeneratorInputs:
    """What a generator is trained with. documents.held_out: those that figures are taken on, not all there may be.
    image_tokenizer: with the better decoder, where the run has one."""

    documents: PreparedDocuments
    text_tokenizer: Tokenizer
    image_tokenizer: ImageTokenizer


def generator_inputs(
    run: Run, recipe: Mapping[str, Any], corpus: Corpus, *, progress: Progress | None = None
) -> GeneratorInputs:
    """What a generator's recipe is trained with, prepared where it is not yet."""
    from ..generators.cm3.image_tokenizer import ImageTokenizer
    from .processes import main_process_first

    with main_process_first(recipe):
        text_tokenizer = _text_tokenizer(run, recipe, corpus)
        device = device_for(recipe.get("trainer", {}).get("device", "auto"))
        image_tokenizer = ImageTokenizer.load(run.model("image-tokenizer"), device=device)
        prepared = _prepared(run, recipe, corpus, text_tokenizer, image_tokenizer, progress)
    image_tokenizer.model.to("cpu")  # where the codebook is looked at; the room is for the generator now
    held_out = _few(corpus.held_out)
    return GeneratorInputs(replace(prepared, held_out=held_out), text_tokenizer, _with_decoder(run, image_tokenizer))


def _with_decoder(run: Run, image_tokenizer: ImageTokenizer) -> ImageTokenizer:
    """The same tokens, painted by the decoder that was trained further, where the run has one."""
    import torch

    from .image_tokenizer import PAINTING

    if not (run.folder / DECODER / "model").is_dir():
        return image_tokenizer
    better = type(image_tokenizer).load(run.model(DECODER))
    weights, others = (one.model.state_dict() for one in (image_tokenizer, better))
    fixed = [name for name in weights if not name.startswith(PAINTING)]
    if not all(name in others and torch.equal(weights[name], others[name]) for name in fixed):
        raise CheckpointError(
            f"{run.folder / DECODER} knows other tokens than {run.folder / 'image-tokenizer'}.",
            "Train it with [model] start = that one's model and trained = 'decoder', or delete it.",
        )
    return better


_STAGES: Mapping[str, Callable[[Run, Path, Mapping[str, Any], Corpus, Progress | None], dict[str, float]]] = {
    "image-tokenizer": _image_tokenizer, "retriever": _retriever, "generator": _generator,
}  # fmt: skip


def _few(rows: np.ndarray) -> np.ndarray:
    return rows if len(rows) <= HELD_OUT else rows[np.linspace(0, len(rows) - 1, HELD_OUT).astype(np.int64)]


def _sides(corpus: Corpus) -> tuple[TrainingSet, TrainingSet]:
    return corpus.data.select(corpus.training), corpus.data.select(_few(corpus.held_out))


def _text_tokenizer(run: Run, recipe: Mapping[str, Any], corpus: Corpus) -> Tokenizer:
    """The text tokenizer of all generators of a run, learnt from the training texts by the first of them."""
    from ..generators.cm3.vocabulary import load_text_tokenizer
    from .text_tokenizer import train_text_tokenizer

    path = run.prepared / "tokenizer.json"
    if path.is_file():
        with reading(path, "Delete it: it is learnt again from the same texts."):
            return load_text_tokenizer(path)
    texts = (corpus.data.texts[row] for row in corpus.training)
    return train_text_tokenizer(texts, read_table(TextSettings, recipe, "tokenizer").vocabulary, path)


def _prepared(
    run: Run, recipe: Mapping[str, Any], corpus: Corpus, text_tokenizer: Tokenizer, image_tokenizer: ImageTokenizer,
    progress: Progress | None,
) -> PreparedDocuments:  # fmt: skip
    """Documents as tokens, with neighbours where the recipe retrieves; prepared once a run."""
    from ..generators.cm3.model import fingerprint
    from .documents import prepare_documents
    from .generator import ObjectiveSettings
    from .neighbours import NeighbourSettings, prepare_neighbours

    objective = read_table(ObjectiveSettings, recipe, "objective")
    made_from = {"image tokenizer": fingerprint(run.model("image-tokenizer")), "documents": corpus.digest}
    prepared = prepare_documents(
        corpus.data, corpus.held_out, text_tokenizer, image_tokenizer, variants=VARIANTS if objective.variants else 1,
        longest=read_table(TextSettings, recipe, "tokenizer").longest, path=run.prepared / "images.npy",
        made_from=made_from, progress=progress,
    )  # fmt: skip
    if max(objective.k) == 0 or objective.context == "random":
        return prepared
    settings = read_table(NeighbourSettings, recipe, "neighbours")
    _check_kept(recipe, objective)
    found = prepare_neighbours(
        DocumentRows(corpus.data), corpus.data.groups(), corpus.training, corpus.held_out, retriever_of(run, recipe),
        settings, folder=run.prepared, digest=corpus.digest, progress=progress,
    )  # fmt: skip
    return replace(prepared, neighbours=found)


def retriever_of(run: Run, recipe: Mapping[str, Any]) -> Retriever:
    """The retriever that `[retriever]` names, as in a pipeline file; without that table, the run's own."""
    from ..registry import registry

    settings = dict(recipe.get("retriever") or {"name": "clip", "model": str(run.model("retriever"))})
    made: Retriever = registry().create(Retriever, settings.pop("name", "clip"), settings)
    return made
