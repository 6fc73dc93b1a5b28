"""The analysis as a folder: every model is trained, every condition measured, and what is done is never done again.

    ablation/
      models/ours-0/            a training run each, by model and seed: stage.json, log.jsonl, model/ (state/ until it is done)
      rows/ours-k2-0.json       a measurement each; beside it the drawings that the report shows
      ablation.json  report.md  index.html  relevance.png ...     the report, written anew after every model

Killed at any moment, it goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..errors import ConfigError
from ..interfaces import Progress, Retriever
from ..options import Options
from ..training.account import read_lines
from ..training.data import Corpus
from ..training.generator_inputs import GeneratorInputs, decoder_of, generator_inputs, retriever_of
from ..training.hardware import device_for
from ..training.neighbours import NeighbourSettings
from ..training.recipe import read_table
from ..training.run_files import check_model, read_json, write_json
from ..training.runs import Run, differing, record, recorded
from .measure import Bench
from .rows import NO_DROPOUT, Condition, Model, Plan, changed

if TYPE_CHECKING:
    from ..generators.cm3.generator import Cm3Generator

SHOWN = 8  # held-out documents in the grids of samples

State = Literal["trained", "begun", "waiting"]


@dataclass(frozen=True)
class Ablation:
    """What is to be done, and where. seeds: runs of each model. drawings: of each condition and seed; 0: none."""

    run: Run
    plan: Plan
    out: Path
    seeds: int = 3
    drawings: int = 64
    options: Options = field(default_factory=lambda: Options(temperature=0.8, top_p=0.95))

    def __post_init__(self) -> None:
        if self.seeds < 1 or self.drawings < 0:
            raise ConfigError(
                f"An analysis has a seed at least, and no fewer drawings than 0: {self.seeds}, {self.drawings}."
            )

    def folder(self, model: str, seed: int) -> Path:
        """Where a model is trained."""
        return self.out / "models" / f"{model}-{seed}"

    def measurement(self, key: str, seed: int) -> Path:
        """Where a measurement is written down; its drawings lie in the folder of the same name without the suffix."""
        return self.out / "rows" / f"{key}-{seed}.json"

    def seeds_of(self, kind: Literal["models", "rows"], name: str) -> list[int]:
        """Seeds that a model was trained, or a row measured, with: also those that are not asked for now."""
        found = (re.fullmatch(re.escape(name) + r"-(\d+)(\.json)?", path.name) for path in (self.out / kind).glob("*"))
        return sorted({int(match[1]) for match in found if match})

    def training_runs(self) -> Iterator[tuple[Model, int, State]]:
        """All models and seeds, the first seed of all models first, and how far each is."""
        for seed in range(self.seeds):
            for model in self.plan.models.values():
                folder = self.folder(model.name, seed)
                begun = any((folder / name).is_dir() for name in ("state", "state.old"))
                yield model, seed, "trained" if (folder / "model").is_dir() else "begun" if begun else "waiting"

    def recipe(self, model: Model, seed: int) -> dict[str, Any]:
        """The recipe of one run."""
        start = None if model.start is None else self.folder(model.start, seed) / "model"
        return model.recipe_for(seed, None if start is None else start.resolve())

    def check(self) -> None:
        """`ConfigError` if something in the folder was trained by another recipe than would be now."""
        for model, seed, state in self.training_runs():
            folder = self.folder(model.name, seed)
            if state == "waiting" or not (folder / "stage.json").is_file():
                continue
            before, now = recorded(folder)[1], self.recipe(model, seed)
            if changed_keys := differing(before, now):
                raise ConfigError(
                    f"{folder} was trained by another recipe: {', '.join(changed_keys)} differs.",
                    "Give the steps and the recipe that the analysis was begun with, or another --out.",
                )


def analyse(
    ablation: Ablation,
    corpus: Corpus,
    judge: Retriever | None = None,
    *,
    progress: Progress | None = None,
) -> Iterator[Bench]:
    """Train and measure all that is not there yet. Gives what is measured on, after every model and at the end.

    judge: the encoder that recognises drawings, which should neither retrieve nor re-rank; the run's retriever by
    default.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("The analysis trains its models in one process.", "Start it without torchrun.")
    if not len(corpus.held_out):
        raise ConfigError("No documents are held out to measure on.", "Set [data] held_out.")
    ablation.check()
    inputs, bench = _prepare(ablation, corpus, judge, progress)
    for model, seed, state in ablation.training_runs():
        conditions = ablation.plan.conditions(model.name)
        missing = [one for one in conditions if not _is_measured(ablation, bench, model, one, seed)]
        if state == "trained" and not missing:
            continue
        if state != "trained":
            _train(ablation, inputs(model), model, seed, _named(progress, f"{model.name}, seed {seed}: "))
        _measure(ablation, bench, model, missing, seed, progress)
        yield bench
    yield bench


def judge_of(run: Run, recipe: Mapping[str, Any], given: Path | None = None) -> tuple[Retriever, bool]:
    """The encoder that recognises drawings, and whether it is one that did not retrieve: the folder that is given, else
    the run's own `evaluation-encoder`, else the retriever."""
    from ..retrievers.clip import ClipRetriever

    own = run.folder / "evaluation-encoder" / "model"
    if given is None and not own.is_dir():
        return retriever_of(run, recipe), False
    return ClipRetriever(str(given or own)), True


def _prepare(
    ablation: Ablation, corpus: Corpus, judge: Retriever | None, progress: Progress | None
) -> tuple[Callable[[Model], GeneratorInputs], Bench]:
    """What each model is trained with, and what all are measured on. Models with the same neighbours share a table."""
    run, plan = ablation.run, ablation.plan
    tables: dict[str, GeneratorInputs] = {}

    def inputs_for(recipe: Mapping[str, Any]) -> GeneratorInputs:
        settings = read_table(NeighbourSettings, recipe, "neighbours").model_dump_json()
        if settings not in tables:
            retrieving = changed(recipe, {"objective": {"k": [plan.k], "context": "retrieved"}})
            tables[settings] = generator_inputs(run, retrieving, corpus, progress=progress)
        return tables[settings]

    settings, ours = read_table(NeighbourSettings, plan.recipe, "neighbours"), inputs_for(plan.recipe)
    found = {settings.sampler: ours.documents.neighbours}
    for sampler in {row.condition.sampler for row in plan.rows} - {settings.sampler}:
        # Held-out queries are whole in any case; without dropout the table is that of the model trained this way.
        other = changed(plan.recipe, {"neighbours": {"sampler": sampler, **NO_DROPOUT}})
        found[sampler] = inputs_for(other).documents.neighbours
    if not ablation.drawings:
        judge = None
    elif judge is None:
        judge, _ = judge_of(run, plan.recipe)
    bench = Bench(
        corpus.data, ours.documents, ours.image_tokenizer, decoder_of(run), corpus.digest,
        {name: table for name, table in found.items() if table is not None}, settings.forms.index("text"), plan.k, judge,
        ablation.options,
    )  # fmt: skip
    return lambda model: inputs_for(model.recipe), bench


def _train(ablation: Ablation, inputs: GeneratorInputs, model: Model, seed: int, progress: Progress | None) -> None:
    from ..training.generator import train_generator

    folder, recipe = ablation.folder(model.name, seed), ablation.recipe(model, seed)
    record(folder, "generator", recipe)
    train_generator(recipe, inputs.documents, inputs.text_tokenizer, inputs.image_tokenizer, folder, progress=progress)
    # Sixty runs of optimiser states would fill a disk, and a trained model needs none.
    shutil.rmtree(folder / "state")
    (folder / "best.safetensors").unlink(missing_ok=True)


# --- measurements -------------------------------------------------------------------------------------------------


def _measure(
    ablation: Ablation, bench: Bench, model: Model, conditions: list[Condition], seed: int, progress: Progress | None
) -> None:
    from ..generators.cm3.generator import Cm3Generator
    from ..generators.cm3.model import Checkpoint

    folder = ablation.folder(model.name, seed)
    check_model(folder / "model", f"Delete {folder}: it is trained again.")
    checkpoint = Checkpoint.load(folder / "model", device=device_for("auto"))
    generator = Cm3Generator.from_checkpoint(replace(checkpoint, image_tokenizer=bench.image_tokenizer))
    for done, condition in enumerate(conditions):
        if progress is not None:
            progress(done, len(conditions), f"{model.name}, seed {seed}: measured with {condition.name}")
        _measure_one(ablation, bench, model, condition, seed, generator)


def _measure_one(
    ablation: Ablation, bench: Bench, model: Model, condition: Condition, seed: int, generator: Cm3Generator
) -> None:
    path = ablation.measurement(f"{model.name}-{condition.name}", seed)
    nats = bench.nats(generator, condition, seed)
    hits: list[float] = []
    if places := bench.spread(ablation.drawings):
        drawn = bench.draw(generator, condition, places, seed)
        hits = bench.recognised(drawn, places).tolist()
        if seed == 0:
            pictures = path.with_suffix("")
            pictures.mkdir(parents=True, exist_ok=True)
            for place in shown_places(places):
                drawn[places.index(place)].picture.save(pictures / f"{place}.png")
    parameters = sum(weight.numel() for weight in generator.checkpoint.model.parameters())
    found = {
        **_asked(ablation, bench, model, condition, seed), "parameters": parameters,
        "training_seconds": training_seconds(ablation.folder(model.name, seed)),
        "nats": [round(float(value), 6) for value in nats], "places": places, "hits": hits,
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, found)


def _asked(ablation: Ablation, bench: Bench, model: Model, condition: Condition, seed: int) -> dict[str, Any]:
    """What a measurement depends on: it is taken again if any of this changes."""
    judge = bench.judge.encoder.fingerprint if bench.judge is not None else None
    return {
        "model": model.name, "condition": condition.name, "seed": seed, "drawings": ablation.drawings,
        "recipe": _digest(ablation.recipe(model, seed)), "documents": bench.digest,
        "options": ablation.options.model_dump() if ablation.drawings else None, "judge": judge,
        "decoder": bench.decoder if ablation.drawings else None,
        "held_out": len(bench.held_out),
    }  # fmt: skip


def _digest(recipe: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(recipe, sort_keys=True, default=str).encode()).hexdigest()


def _is_measured(ablation: Ablation, bench: Bench, model: Model, condition: Condition, seed: int) -> bool:
    found = read_measurement(ablation, f"{model.name}-{condition.name}", seed)
    asked = json.loads(json.dumps(_asked(ablation, bench, model, condition, seed)))
    return found is not None and all(found.get(name) == value for name, value in asked.items())


def read_measurement(ablation: Ablation, key: str, seed: int) -> dict[str, Any] | None:
    """What was measured: nats of each held-out document, hits of each drawing, and more; None if it was not yet."""
    path = ablation.measurement(key, seed)
    if not path.is_file():
        return None
    return read_json(path, "Delete it: it is measured again.")


def shown_places(places: list[int]) -> list[int]:
    """Of the places that are drawn, those that the report shows: evenly spread."""
    return [places[i] for i in np.unique(np.linspace(0, len(places) - 1, min(SHOWN, len(places))).astype(int))]


def training_seconds(folder: Path) -> float:
    """Seconds that a run's optimiser steps took, by its log; a step that was taken again after a kill counts once."""
    seconds: dict[int, float] = {}
    for line in read_lines(folder):
        if "seconds_per_step" in line:
            seconds[line["step"]] = line["seconds_per_step"]
    steps = sorted(seconds)
    return round(sum(seconds[step] * (step - before) for before, step in zip([0, *steps], steps, strict=False)), 1)


def _named(progress: Progress | None, name: str) -> Progress | None:
    if progress is None:
        return None
    shown = progress
    return lambda done, total, what: shown(done, total, name + what)
