"""The emoji world as training data: who drew what, and which recipes there are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from racm3.ablation.rows import plan
from racm3.errors import ConfigError, WeightsNotFound
from racm3_emoji import stages
from racm3_emoji.world import Drawing, World


def drawing(id: str, style: str, entity: str = "1f3b8") -> Drawing:
    return Drawing(
        id, "guitar", style, f"guitar, in {style} style", entity, entity, "objects", ("music",), "train", True
    )


@pytest.fixture
def world() -> World:
    drawings = [drawing("noto/1f3b8", "Noto"), drawing("noto-v1/1f3b8", "Noto v1"), drawing("twemoji/1f3b8", "Twemoji")]
    pixels = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    return World(drawings, pixels)


def test_two_sets_by_one_hand_are_one_vendor(world: World) -> None:
    noto, first_noto, twemoji = world.drawings
    assert stages.hand(noto) == stages.hand(first_noto) != stages.hand(twemoji)
    assert stages.vendor(drawing("flag/x", "Flag Icons 1:1")) == stages.vendor(drawing("flag/y", "Flag Icons 4:3"))


def test_rows_become_a_training_set(world: World) -> None:
    data = stages.training_set(world, np.array([2, 0]))
    assert data.ids == ["twemoji/1f3b8", "noto/1f3b8"]
    assert data.texts[0] == "guitar, in Twemoji style" and data.names == ["guitar", "guitar"]
    assert data.sources == ["Twemoji", "Noto"] and data.keywords == [["music"], ["music"]]
    assert (data.pixels == world.pixels[[2, 0]]).all()


def test_a_document_has_the_picture_without_loss(world: World) -> None:
    made = stages.document(world, 1)
    assert made.id == "noto-v1/1f3b8" and made.texts == ("guitar, in Noto v1 style",)
    assert (made.images[0].square(64) == world.pixels[1]).all()
    assert made.metadata["vendor"] == "Noto" and made.metadata["style"] == "Noto v1"


def test_every_stage_has_a_recipe_for_every_hardware() -> None:
    for hardware in ("cpu", "gpu"):
        found = {path.stem for path in stages.recipes_for(hardware).glob("*.toml")}
        assert found == set(stages.STAGES)


def test_vanilla_is_trained_alike() -> None:
    run = stages.Run(Path("."), stages.recipes_for("cpu"), World([], np.empty((0, 64, 64, 3), np.uint8)))
    ours, vanilla = run.recipe("generator"), run.recipe("vanilla")
    # Each keeps the best of its own kind; all else is the same.
    assert (ours["trainer"].pop("keep_best"), vanilla["trainer"].pop("keep_best")) == ("held_out_k2", "held_out_k0")
    assert ours["model"] == vanilla["model"] and ours["trainer"] == vanilla["trainer"]
    assert vanilla["objective"]["k"] == [0]
    assert ours["objective"]["batch_size"] == vanilla["objective"]["batch_size"]


def test_the_analysis_takes_the_recipe_of_the_generator_and_the_world(
    world: World, tmp_path: Path, monkeypatch
) -> None:
    from racm3_emoji import commands

    asked = []
    monkeypatch.setattr("racm3_emoji.world.build", lambda: world)
    monkeypatch.setattr(commands, "run_ablation", lambda recipe, run, **options: asked.append((recipe, run, options)))
    with pytest.raises(WeightsNotFound, match="racm3 emoji train image-tokenizer"):
        commands.ablate(run=tmp_path)
    for stage in ("image-tokenizer", "retriever"):
        (tmp_path / stage / "model").mkdir(parents=True)
    with pytest.raises(WeightsNotFound, match="racm3 emoji train evaluation-encoder"):
        commands.ablate(run=tmp_path)
    commands.ablate(run=tmp_path, drawings=0, rows="alpha")  # nothing is drawn, so nobody has to recognise it
    [(recipe, run, options)] = asked
    assert run == tmp_path and options["rows"] == "alpha"
    assert recipe["data"]["source"] == "racm3_emoji.stages:corpus"
    # The paper's choices are the reference, whatever the generator is trained with.
    assert recipe["objective"]["alpha"] == 0.1 and recipe["neighbours"]["dropout"] == 0.2
    assert [row.label for row in plan(recipe, ["alpha"]).rows] == ["α = 0", "α = 0.1", "α = 0.3", "α = 1"]


@pytest.mark.parametrize("hardware", ["cpu", "gpu"])
def test_every_row_of_the_analysis_can_be_planned(hardware: str) -> None:
    recipe = stages.Run(Path("."), stages.recipes_for(hardware), World([], np.empty((0, 64, 64, 3), np.uint8)))
    assert len(plan(recipe.analysed()).models) == 13


def test_errors_say_what_there_is(world: World, tmp_path: Path) -> None:
    run = stages.Run(tmp_path, stages.recipes_for("cpu"), world)
    with pytest.raises(ConfigError, match=r"image-tokenizer.*Did you mean 'generator'"):
        stages.train_stage(run, "generatr")
    with pytest.raises(WeightsNotFound, match="racm3 emoji train retriever"):
        run.model("retriever")
    with pytest.raises(ConfigError, match="cpu, gpu"):
        stages.recipes_for("tpu")
