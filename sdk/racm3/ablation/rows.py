"""What the analysis compares: rows in groups, and the models that they need (paper section 4.3; method section 3)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from ..errors import ConfigError, nearest
from ..generators.cm3.masking import MaskingSettings
from ..training.documents import Shown
from ..training.generator import GeneratorModelSettings, ObjectiveSettings, generator_settings
from ..training.neighbours import NeighbourSettings
from ..training.recipe import read_table

ALPHAS = (0.0, 0.1, 0.3, 1.0)
DOCUMENTS = (0, 1, 2, 3, 4)
DROPOUT = 0.2  # the method's, for a recipe that has none
NO_DROPOUT = {"dropout": 0.0, "draws": 1}  # whole queries: several draws would all be the same
FINE_TUNING = 0.5  # steps with documents, as a share of those that the vanilla model was trained for before


@dataclass(frozen=True)
class Condition:
    """What a model is shown when it is measured: k documents, which ones, and what of them."""

    k: int
    context: Literal["retrieved", "random"] = "retrieved"
    parts: Shown = "both"
    sampler: Literal["diverse", "topk"] = "diverse"

    @property
    def name(self) -> str:
        """Such as k2, k2-random, k2-text, k2-topk."""
        special = [self.context, self.parts, self.sampler]
        usual = ["retrieved", "both", "diverse"]
        return "-".join([f"k{self.k}", *(one for one, other in zip(special, usual, strict=True) if one != other)])


@dataclass(frozen=True)
class Model:
    """A model to train. start: the model of the same seed whose weights it starts from."""

    name: str
    recipe: Mapping[str, Any]
    start: str | None = None

    def recipe_for(self, seed: int, start: Path | None) -> dict[str, Any]:
        """The recipe of one run. seed: 0, 1 ..., added to the recipe's. start: folder of the weights to start from."""
        recipe = changed(self.recipe, {"trainer": {"seed": self.recipe["trainer"].get("seed", 0) + seed}})
        return recipe if start is None else changed(recipe, {"model": {"start": str(start)}})


@dataclass(frozen=True)
class Row:
    """A line of a table: a model, measured in a condition. reference: what the other rows of the group are held against."""

    group: str
    label: str
    model: str
    condition: Condition
    reference: bool = False

    @property
    def key(self) -> str:
        """What it measures: rows of several groups may be one measurement."""
        return f"{self.model}-{self.condition.name}"


@dataclass
class Plan:
    """Rows and models. recipe: of the reference, ours. k: documents in training at most, and in a group at inference."""

    recipe: dict[str, Any]
    k: int
    own: Condition
    models: dict[str, Model] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)

    def model(self, name: str, changes: Mapping[str, Mapping[str, Any]], start: str | None = None) -> str:
        """The name of the model with these changes of the recipe: one that is planned already, if it is the same."""
        recipe = _with_best(changed(self.recipe, changes))
        for known in self.models.values():
            if _effective(known.recipe) == _effective(recipe) and known.start == start:
                return known.name
        self.models[name] = Model(name, recipe, start)
        return name

    def conditions(self, model: str) -> list[Condition]:
        """All conditions that a model is measured in, each once."""
        return list(dict.fromkeys(row.condition for row in self.rows if row.model == model))


def plan(recipe: Mapping[str, Any], groups: Iterable[str] = (), *, steps: int | None = None) -> Plan:
    """The rows of some groups (all by default) for a generator's recipe.

    steps: in place of the recipe's; its warm-up is shortened alike. `ConfigError`: no such group, or a recipe that the
    analysis cannot start from, as it trains without documents or never asks for them by text.
    """
    chosen = list(dict.fromkeys(groups)) or list(GROUPS)
    for group in chosen:
        if group not in GROUPS:
            raise ConfigError(f"No rows named '{group}'. There are: {', '.join(GROUPS)}.", nearest(group, GROUPS))
    objective, neighbours = (
        read_table(ObjectiveSettings, recipe, "objective"), read_table(NeighbourSettings, recipe, "neighbours"),
    )  # fmt: skip
    most = max(objective.k)
    if most == 0:
        raise ConfigError(
            "The recipe trains without documents ([objective] k = [0]).", "Give that of the model with documents."
        )
    if (objective.context, objective.context_parts) != ("retrieved", "both"):
        raise ConfigError("[objective] context and context_parts are what is varied.", "Leave them out of the recipe.")
    if "text" not in neighbours.forms:
        raise ConfigError("Drawings are asked for by text, but [neighbours] forms lacks it.", 'forms = ["text", ...]')
    keep = {"neighbours": {"keep": max(neighbours.keep, most, *DOCUMENTS)}}
    base = changed(with_steps(recipe, steps) if steps is not None else recipe, keep)
    generator_settings(base)  # a wrong table is found out now
    made = Plan(base, most, Condition(most, sampler=neighbours.sampler))
    _ours(made)  # first, so that no group calls it by another name
    made.rows = [row for group in chosen for row in GROUPS[group](made)]
    used = {row.model for row in made.rows}
    made.models = {name: model for name, model in made.models.items() if name in used}
    return made


def with_steps(recipe: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """The recipe for so many steps, the warm-up in proportion."""
    if steps < 1:
        raise ConfigError(f"A run has at least one step, not {steps}.")
    trainer = recipe.get("trainer", {})
    warmup = round(trainer.get("warmup", 0) * steps / max(1, trainer.get("steps", steps)))
    return changed(recipe, {"trainer": {"steps": steps, "warmup": warmup}})


def changed(recipe: Mapping[str, Any], changes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A copy of a recipe with some settings replaced, as plain JSON values."""
    merged = {table: {**recipe.get(table, {}), **changes.get(table, {})} for table in {**recipe, **changes}}
    plain: dict[str, Any] = json.loads(json.dumps(merged, default=str))
    return plain


def _effective(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe with the defaults that its tables leave out: what tells two of them apart."""
    models: dict[str, type[BaseModel]] = {
        "model": GeneratorModelSettings, "objective": ObjectiveSettings, "masking": MaskingSettings,
        "neighbours": NeighbourSettings,
    }  # fmt: skip
    return {**recipe, **{table: read_table(model, recipe, table) for table, model in models.items()}}


def _with_best(recipe: dict[str, Any]) -> dict[str, Any]:
    """The best weights are those with the most documents that this model is trained with."""
    if recipe["trainer"].get("keep_best") is None:
        return recipe
    most = max(read_table(ObjectiveSettings, recipe, "objective").k)
    return changed(recipe, {"trainer": {"keep_best": f"held_out_k{most}"}})


# --- the groups ---------------------------------------------------------------------------------------------------


def _ours(made: Plan) -> str:
    return made.model("ours", {})


def _vanilla(made: Plan) -> str:
    return made.model("vanilla", {"objective": {"k": [0]}})


def _relevance(made: Plan) -> list[Row]:
    ours, random = _ours(made), Condition(made.k, context="random")
    # A copy of the document itself is as relevant as can be: it goes with retrieval.
    shown_random = made.model("random", {"objective": {"context": "random", "copies": [0.0, 0.0]}})
    return [
        Row("relevance", "retrieved documents", ours, made.own, reference=True),
        Row("relevance", "random at training", shown_random, made.own),
        Row("relevance", "random at inference", ours, random),
        Row("relevance", "random at both", shown_random, random),
    ]


def _modality(made: Plan) -> list[Row]:
    rows = [Row("modality", "multimodal documents", _ours(made), made.own, reference=True)]
    shown: Shown
    for shown, label in (("text", "text only"), ("image", "image only")):
        model = made.model(f"{shown}-only", {"objective": {"context_parts": shown}})
        rows.append(Row("modality", label, model, Condition(made.k, parts=shown, sampler=made.own.sampler)))
    return rows


def _diversity(made: Plan) -> list[Row]:
    dropout = read_table(NeighbourSettings, made.recipe, "neighbours").dropout or DROPOUT
    diverse, top = Condition(made.k), Condition(made.k, sampler="topk")
    whole = made.model("diverse-dropout", {"neighbours": {"sampler": "diverse", "dropout": dropout}})
    plain = made.model("topk", {"neighbours": {"sampler": "topk", **NO_DROPOUT}})
    apart = made.model("no-dropout", {"neighbours": {"sampler": "diverse", **NO_DROPOUT}})
    return [
        Row("diversity", "top-K", plain, top),
        Row("diversity", "avoid redundancy", apart, diverse),
        Row("diversity", "avoid redundancy, query dropout", whole, diverse, reference=True),
    ]


def _alpha(made: Plan) -> list[Row]:
    own = read_table(ObjectiveSettings, made.recipe, "objective").alpha
    ours = _ours(made)
    rows = []
    for alpha in sorted({*ALPHAS, own}):
        model = ours if alpha == own else made.model(f"alpha-{alpha:g}", {"objective": {"alpha": alpha}})
        rows.append(Row("alpha", f"α = {alpha:g}", model, made.own, reference=alpha == own))
    return rows


def _documents(made: Plan) -> list[Row]:
    ours = _ours(made)
    return [
        Row(
            "k", f"K = {k}" + (f", groups of {made.k}" if k > made.k else ""), ours,
            Condition(k, sampler=made.own.sampler), reference=k == made.k,
        )
        for k in sorted({*DOCUMENTS, made.k})
    ]  # fmt: skip


def _parameters(made: Plan) -> list[Row]:
    shape, vanilla = read_table(GeneratorModelSettings, made.recipe, "model").shape, _vanilla(made)
    wide = {"width": 2 * shape.width, "heads": 2 * shape.heads}  # four times the weights of each matrix
    larger = made.model("vanilla-4x", {"objective": {"k": [0]}, "model": wide})
    return [
        Row("parameters", "with documents", _ours(made), made.own, reference=True),
        Row("parameters", "vanilla, of the same size", vanilla, Condition(0)),
        Row("parameters", "vanilla, twice as wide", larger, Condition(0)),
    ]


def _fine_tuning(made: Plan) -> list[Row]:
    ours, vanilla = _ours(made), _vanilla(made)
    before = made.recipe["trainer"]["steps"]
    steps = max(1, round(FINE_TUNING * before))
    tuned = made.model("fine-tuned", {"trainer": with_steps(made.recipe, steps)["trainer"]}, start=vanilla)
    # With as many steps in all as the one that is trained further.
    longer = made.model("longer", {"trainer": with_steps(made.recipe, before + steps)["trainer"]})
    return [
        Row("fine-tuning", "trained with documents", ours, made.own, reference=True),
        Row("fine-tuning", f"trained with documents, {before + steps} steps", longer, made.own),
        Row("fine-tuning", "vanilla", vanilla, Condition(0)),
        Row("fine-tuning", f"vanilla, then {steps} steps with documents", tuned, made.own),
        Row("fine-tuning", "vanilla, shown documents all the same", vanilla, made.own),
    ]


GROUPS: Mapping[str, Callable[[Plan], list[Row]]] = {
    "relevance": _relevance, "modality": _modality, "diversity": _diversity, "alpha": _alpha, "k": _documents,
    "parameters": _parameters, "fine-tuning": _fine_tuning,
}  # fmt: skip
TITLES = {
    "relevance": "Relevance of the documents",
    "modality": "Modality: what is shown of them",
    "diversity": "Diversity: how they are chosen",
    "alpha": "α, the weight of their tokens in the objective",
    "k": "K, how many of them at inference",
    "parameters": "Documents or parameters",
    "fine-tuning": "Trained with documents, or fine-tuned with them",
}
