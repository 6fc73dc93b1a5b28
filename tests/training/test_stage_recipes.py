"""The recipes of the stages: what is wrong in one is told before anything is read or trained."""

from __future__ import annotations

import pytest

from racm3.errors import ConfigError
from racm3.training.stage_recipes import check_recipe, check_tables, read_stage_recipe


def test_relative_paths_of_a_recipe_belong_to_its_folder(tmp_path):
    (tmp_path / "recipe.toml").write_text(
        '[data]\npath = "pictures"\nimages = "/here"\n[retriever]\nmodel = "./clip"\n'
    )
    found = read_stage_recipe(tmp_path / "recipe.toml")
    assert found["data"] == {"path": str(tmp_path / "pictures"), "images": "/here"}
    assert found["retriever"]["model"] == str(tmp_path / "clip")
    (tmp_path / "recipe.toml").write_text('[model]\nstart = "vanilla/model"\n')
    assert read_stage_recipe(tmp_path / "recipe.toml")["model"] == {"start": str(tmp_path / "vanilla" / "model")}
    (tmp_path / "recipe.toml").write_text('[retriever]\nmodel = "ViT-B-32"\npretrained = "./weights.safetensors"\n')
    named = read_stage_recipe(tmp_path / "recipe.toml")["retriever"]
    assert named == {"model": "ViT-B-32", "pretrained": str(tmp_path / "weights.safetensors")}


@pytest.mark.parametrize(
    ("kind", "tables", "message"),
    [("generatr", {}, "Did you mean 'generator'"), ("retriever", {"modle": {}}, "Did you mean 'model'")],
)
def test_a_wrong_stage_or_table_is_named(kind, tables, message):
    with pytest.raises(ConfigError, match=message):
        check_tables(kind, tables)


@pytest.mark.parametrize(
    ("kind", "recipe", "message"),
    [
        ("generator", {"trainer": {"steps": 2, "stps": 3}}, "no key 'stps'. Keys: steps, .*Did you mean 'steps'"),
        ("generator", {"trainer": {"steps": 2}, "model": {"weight_format": "bfloat17"}}, "weight_format"),
        ("generator", {"trainer": {"steps": 2}, "neighbours": {"forms": []}}, "forms"),
        ("generator", {"trainer": {"steps": 2}, "model": {"start": "/nowhere"}}, "no folder /nowhere"),
        (
            "image-tokenizer",
            {"trainer": {"steps": 2, "learning_rate": 1}, "model": {"perceptual": "/nowhere"}},
            "no folder /nowhere",
        ),
        (
            "image-tokenizer",
            {"trainer": {"steps": 2, "learning_rate": 1}, "model": {"perceptual_weight": 0.2}},
            "needs a perceptual",
        ),
        ("image-tokenizer", {"trainer": {"steps": 2, "learning_rate": 1}, "model": {"size": 20}}, "cannot be halved 3"),
        ("image-tokenizer", {"trainer": {"steps": 2, "learning_rate": 1}, "model": {"size": 32}}, "pictures have 64"),
        ("generator", {"trainer": {"steps": 2}, "model": {"channels": [8, 8]}}, "recipe for image-tokenizer"),
        ("generator", {"trainer": {"steps": 2}, "objective": {"k": [9]}}, "only 4 are kept"),
        ("image-tokenizer", {"objective": {}, "model": {"document_stride": 9}}, "recipe for generator"),
    ],
)
def test_a_wrong_recipe_is_told_before_a_document_is_read(kind, recipe, message):
    with pytest.raises(ConfigError, match=message):
        check_recipe(kind, recipe)


@pytest.mark.parametrize("kind", ["image-tokenizer", "generator"])
def test_a_recipe_needs_no_model_table(kind):
    check_recipe(kind, {"trainer": {"steps": 2, "learning_rate": 1}})


def test_what_is_no_table_is_told(tmp_path):
    (tmp_path / "recipe.toml").write_text('data = "pictures"')
    with pytest.raises(ConfigError, match="data is no table"):
        read_stage_recipe(tmp_path / "recipe.toml")


def test_a_folder_has_one_name_however_it_is_spelt(tmp_path):
    (tmp_path / "recipe.toml").write_text('[data]\npath = "../x/./pictures"\n')
    assert read_stage_recipe(tmp_path / "recipe.toml")["data"]["path"] == str(tmp_path.parent / "x" / "pictures")
