"""The rows of the analysis: what each changes, which models they need, and what a recipe must have."""

from __future__ import annotations

import pytest

from racm3.ablation.rows import GROUPS, TITLES, plan
from racm3.errors import ConfigError
from racm3.training.generator import GeneratorModelSettings

RECIPE = {
    "model": {"size": "tiny"},
    "objective": {"k": [0, 1, 2], "copies": [0.5, 0.1]},
    "trainer": {"steps": 100, "warmup": 10, "learning_rate": 1e-3, "keep_best": "held_out_k2", "seed": 5},
}


def recipe(**tables):
    return {**RECIPE, **{name: {**RECIPE.get(name, {}), **table} for name, table in tables.items()}}


def rows(group, **tables):
    made = plan(recipe(**tables), [group])
    return made, {row.label: row for row in made.rows}


def changes(made, name):
    """What a model's recipe changes of ours."""
    ours, theirs = made.recipe, made.models[name].recipe
    return {
        f"{table}.{key}": value
        for table, settings in theirs.items()
        for key, value in settings.items()
        if ours[table].get(key) != value
    }


def test_every_group_has_a_title_and_one_reference():
    made = plan(RECIPE)
    assert set(GROUPS) == set(TITLES) == {row.group for row in made.rows}
    for group in GROUPS:
        assert sum(row.reference for row in made.rows if row.group == group) == 1
    assert {row.model for row in made.rows} == set(made.models)


def test_rows_that_differ_at_inference_alone_share_a_model():
    made, found = rows("relevance")
    assert found["retrieved documents"].model == found["random at inference"].model == "ours"
    assert found["random at training"].model == found["random at both"].model == "random"
    assert changes(made, "random") == {"objective.context": "random", "objective.copies": [0.0, 0.0]}
    assert [c.name for c in made.conditions("random")] == ["k2", "k2-random"]
    made, found = rows("k")
    assert list(made.models) == ["ours"]
    assert [row.condition.k for row in made.rows] == [0, 1, 2, 3, 4]
    assert found["K = 2"].reference and "K = 4, groups of 2" in found


def test_modality_is_changed_at_training_and_at_inference():
    made, found = rows("modality")
    assert changes(made, found["text only"].model) == {"objective.context_parts": "text"}
    assert found["text only"].condition.parts == "text" and found["image only"].condition.parts == "image"


def test_diversity_is_built_up_step_by_step():
    made, found = rows("diversity")
    assert found["avoid redundancy, query dropout"].model == "ours"  # whose recipe names neither, and has both
    whole_queries = {"neighbours.dropout": 0.0, "neighbours.draws": 1}
    assert changes(made, found["top-K"].model) == {"neighbours.sampler": "topk", **whole_queries}
    assert changes(made, found["avoid redundancy"].model) == {"neighbours.sampler": "diverse", **whole_queries}
    assert [row.condition.sampler for row in made.rows] == ["topk", "diverse", "diverse"]


def test_diversity_does_not_need_a_recipe_with_all_of_it():
    made, found = rows("diversity", neighbours={"dropout": 0.0, "draws": 1})
    whole = found["avoid redundancy, query dropout"]
    assert whole.reference and changes(made, whole.model) == {
        "neighbours.sampler": "diverse", "neighbours.dropout": 0.2
    }  # fmt: skip
    assert found["avoid redundancy"].model == "ours"


def test_the_recipe_s_own_alpha_is_the_reference():
    made, found = rows("alpha")
    assert found["α = 0.1"].model == "ours" and found["α = 0.1"].reference
    assert [row.label for row in made.rows] == ["α = 0", "α = 0.1", "α = 0.3", "α = 1"]
    made, found = rows("alpha", objective={"alpha": 0.5})
    assert found["α = 0.5"].model == "ours" and found["α = 0.5"].reference
    assert changes(made, "alpha-0.1") == {"objective.alpha": 0.1}


def test_the_larger_vanilla_has_four_times_the_weights():
    made, found = rows("parameters")
    ours, larger = (
        GeneratorModelSettings(**made.models[found[label].model].recipe["model"]).shape
        for label in ("with documents", "vanilla, twice as wide")
    )
    assert larger.layers * larger.matrices == pytest.approx(4 * ours.layers * ours.matrices, rel=0.01)
    assert larger.width // larger.heads == ours.width // ours.heads
    assert found["vanilla, twice as wide"].condition.k == 0


def test_the_best_weights_are_those_with_what_a_model_was_trained_with():
    made = plan(RECIPE)
    assert made.models["vanilla"].recipe["trainer"]["keep_best"] == "held_out_k0"
    assert made.models["random"].recipe["trainer"]["keep_best"] == "held_out_k2"
    last = plan(recipe(trainer={"keep_best": None}))
    assert last.models["vanilla"].recipe["trainer"]["keep_best"] is None


def test_fine_tuning_starts_from_the_vanilla_model_of_the_same_seed(tmp_path):
    made, found = rows("fine-tuning")
    tuned = made.models[found["vanilla, then 50 steps with documents"].model]
    assert tuned.start == "vanilla" and list(made.models).index("vanilla") < list(made.models).index(tuned.name)
    asked = tuned.recipe_for(2, tmp_path)
    assert asked["model"]["start"] == str(tmp_path) and asked["trainer"]["steps"] == 50
    assert asked["trainer"]["seed"] == 7
    longer = made.models[found["trained with documents, 150 steps"].model]  # as many in all
    assert longer.start is None and longer.recipe["trainer"]["steps"] == 150
    assert {**longer.recipe, "trainer": None} == {**made.models["ours"].recipe, "trainer": None}


def test_steps_shorten_the_warm_up_alike():
    made = plan(RECIPE, ["k"], steps=30)
    assert (made.recipe["trainer"]["steps"], made.recipe["trainer"]["warmup"]) == (30, 3)
    assert RECIPE["trainer"]["steps"] == 100


def test_neighbours_are_kept_for_all_that_is_shown_at_inference():
    assert plan(RECIPE, ["k"]).recipe["neighbours"]["keep"] == 4
    assert plan(recipe(neighbours={"keep": 9}), ["k"]).recipe["neighbours"]["keep"] == 9


@pytest.mark.parametrize(
    ("tables", "groups", "message"),
    [
        ({}, ["relevence"], "Did you mean 'relevance'"),
        ({"objective": {"k": [0]}}, [], "trains without documents"),
        ({"objective": {"context": "random"}}, [], "are what is varied"),
        ({"neighbours": {"forms": ["image"]}}, [], "asked for by text"),
        ({"neighbours": {"smapler": "topk"}}, [], "Did you mean 'sampler'"),
        ({"trainer": {"step": 3}}, [], "Did you mean 'steps'"),
        ({"model": {"width": 30, "heads": 4}}, ["k"], "4 heads cannot share a width of 30"),
    ],
)
def test_a_recipe_that_cannot_be_analysed_is_refused(tables, groups, message):
    with pytest.raises(ConfigError, match=message):
        plan(recipe(**tables), groups)


def test_an_analysis_has_steps():
    with pytest.raises(ConfigError, match="at least one step"):
        plan(RECIPE, ["k"], steps=0)
