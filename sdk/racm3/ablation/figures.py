"""From measurements to figures: means over seeds and entities, their spread, and what each row gains over another."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..evaluation.bootstrap import Figure, mean_figure
from .analysis import Ablation, read_measurement, training_seconds
from .measure import Bench
from .rows import TITLES, Row


def figures(ablation: Ablation, bench: Bench, notes: Sequence[str] = ()) -> dict[str, Any]:
    """All figures so far as plain values. Nats are per image token of held-out pictures, given their captions.

    interval: 95 %, bootstrap over entities, of the mean over the seeds. spread: standard deviation between the seeds, None
    for one. difference: to the group's reference row, on the same documents and seeds; below zero is better.
    """
    rows, entities = ablation.plan.rows, bench.entities
    references = {row.group: row for row in rows if row.reference}
    groups: dict[str, dict[str, Any]] = {}
    for row in rows:
        group = groups.setdefault(row.group, {"name": row.group, "title": TITLES[row.group], "rows": []})
        group["rows"].append(_row(ablation, bench, row, references[row.group]))
    measured = [len(shown["seeds"]) for group in groups.values() for shown in group["rows"]]
    trainer = ablation.plan.recipe["trainer"]
    return {
        "finished": min(measured) >= ablation.seeds, "steps": trainer["steps"], "seeds": ablation.seeds,
        "k": ablation.plan.k, "held_out": len(entities), "entities": len(set(entities)),
        "training_documents": sum(map(len, bench.documents.entities)), "drawings": ablation.drawings,
        "options": ablation.options.model_dump(), "recipe": ablation.plan.recipe,
        "models": {name: {"recipe": model.recipe, "start": model.start} for name, model in ablation.plan.models.items()},
        "judge": bench.judge.encoder.fingerprint if bench.judge is not None else None,
        "training_hours": round(_training_seconds(ablation) / 3600, 3), "hardware": hardware(trainer),
        "groups": list(groups.values()), "notes": list(notes),
    }  # fmt: skip


def hardware(trainer: dict[str, Any]) -> dict[str, Any]:
    """What the figures were made on."""
    import torch

    cuda = torch.cuda.is_available() and trainer.get("device") != "cpu"
    return {
        "device": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(), "torch": torch.__version__,
        "precision": trainer.get("precision", "fp32"),
    }  # fmt: skip


def _row(ablation: Ablation, bench: Bench, row: Row, reference: Row) -> dict[str, Any]:
    found = _measured(ablation, row)
    shown: dict[str, Any] = {
        "label": row.label, "model": row.model, "condition": row.condition.name, "reference": row.reference,
        "seeds": sorted(found), "parameters": None, "training_seconds": None, "nats": None, "perplexity": None,
        "difference": None, "recall_at_1": None,
    }  # fmt: skip
    if not found:
        return shown
    nats, one = np.array([found[seed]["nats"] for seed in shown["seeds"]]), next(iter(found.values()))
    mean = mean_figure(nats.mean(0), bench.entities)
    by_seed = [mean_figure(values, bench.entities, draws=1).value for values in nats]
    shown |= {
        "parameters": one["parameters"],
        "training_seconds": round(float(np.mean([each["training_seconds"] for each in found.values()])), 1),
        "nats": {**_plain(mean), **_between(by_seed)},
        "perplexity": {"value": math.exp(mean.value), "interval": [math.exp(mean.low), math.exp(mean.high)]},
    }
    held = _measured(ablation, reference)
    if both := sorted(set(found) & set(held)) if not row.reference else []:
        gained = np.array([np.subtract(found[seed]["nats"], held[seed]["nats"]) for seed in both])
        by_seed = [mean_figure(values, bench.entities, draws=1).value for values in gained]
        shown["difference"] = {**_plain(mean_figure(gained.mean(0), bench.entities)), **_between(by_seed)}
    if one["hits"]:
        drawn = [bench.entities[place] for place in one["places"]]
        alike = [each for each in found.values() if all(each[name] == one[name] for name in ("places", "judge"))]
        hits = np.array([each["hits"] for each in alike])
        by_seed = [mean_figure(values, drawn, draws=1).value for values in hits]
        shown["recall_at_1"] = {**_plain(mean_figure(hits.mean(0), drawn)), **_between(by_seed)}
    return shown


def _measured(ablation: Ablation, row: Row) -> dict[int, dict[str, Any]]:
    """The measurements of a row by seed: all that there are, as some rows are given more seeds than others."""
    every = {seed: read_measurement(ablation, row.key, seed) for seed in ablation.seeds_of("rows", row.key)}
    return {seed: found for seed, found in every.items() if found is not None}


def _plain(figure: Figure) -> dict[str, Any]:
    return {"value": figure.value, "interval": figure.interval}


def _between(by_seed: Sequence[float]) -> dict[str, Any]:
    return {"by_seed": list(by_seed), "spread": float(np.std(by_seed, ddof=1)) if len(by_seed) > 1 else None}


def _training_seconds(ablation: Ablation) -> float:
    """Of all models of the analysis, each run once."""
    names = ablation.plan.models
    return sum(
        training_seconds(ablation.folder(name, seed)) for name in names for seed in ablation.seeds_of("models", name)
    )
