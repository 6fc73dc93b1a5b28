"""A run's folder: what its stages share, and by which recipe each was started."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from racm3.errors import CheckpointError, ConfigError, WeightsNotFound
from racm3.testing import HashingRetriever
from racm3.training import runs
from racm3.training.data import Corpus, TrainingSet
from racm3.training.runs import (
    Run,
    check_recipe,
    check_same_recipe,
    check_tables,
    read_stage_recipe,
    recorded,
    train_stage,
)


def corpus(n=6):
    pixels = np.random.default_rng(0).integers(0, 256, (n, 16, 16, 3), dtype=np.uint8)
    data = TrainingSet(pixels, [str(i) for i in range(n)], [f"thing {i}" for i in range(n)], [str(i) for i in range(n)])
    return Corpus(data, np.array([n - 1]))


def test_relative_paths_of_a_recipe_belong_to_its_folder(tmp_path):
    (tmp_path / "recipe.toml").write_text(
        '[data]\npath = "pictures"\nimages = "/here"\n[retriever]\nmodel = "./clip"\n'
    )
    found = read_stage_recipe(tmp_path / "recipe.toml")
    assert found["data"] == {"path": str(tmp_path / "pictures"), "images": "/here"}
    assert found["retriever"]["model"] == str(tmp_path / "clip")
    (tmp_path / "recipe.toml").write_text('[model]\nstart = "vanilla/model"\n')
    assert read_stage_recipe(tmp_path / "recipe.toml")["model"] == {"start": str(tmp_path / "vanilla" / "model")}
    (tmp_path / "recipe.toml").write_text('[retriever]\nmodel = "ViT-B-32"\n')
    assert read_stage_recipe(tmp_path / "recipe.toml")["retriever"]["model"] == "ViT-B-32"


@pytest.mark.parametrize(
    ("kind", "tables", "message"),
    [("generatr", {}, "Did you mean 'generator'"), ("retriever", {"modle": {}}, "Did you mean 'model'")],
)
def test_a_wrong_stage_or_table_is_named(kind, tables, message):
    with pytest.raises(ConfigError, match=message):
        check_tables(kind, tables)


def test_two_processes_do_not_train_in_one_folder(tmp_path, monkeypatch):
    code = f"""
import time
from pathlib import Path
from racm3.training.processes import claimed
with claimed(Path({str(tmp_path / "retriever")!r})):
    print("claimed", flush=True)
    time.sleep(60)
"""
    monkeypatch.setitem(runs._STAGES, "retriever", lambda *a: {})
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout.readline() == "claimed\n"
            with pytest.raises(ConfigError, match=f"Process {other.pid} is training"):
                train_stage(Run(tmp_path), "retriever", {"model": {"batch_size": 4}}, corpus())
            assert not (tmp_path / "retriever" / "stage.json").exists()
        finally:
            other.kill()
    for _ in range(2):  # who has ended, or finished, is in nobody's way
        train_stage(Run(tmp_path), "retriever", {"model": {"batch_size": 4}}, corpus())


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


def test_a_stage_remembers_its_recipe(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setitem(runs._STAGES, "retriever", lambda *a: asked.append(a) or {"figure": 1.0})
    recipe = {"model": {"batch_size": 4}}
    assert train_stage(Run(tmp_path), "retriever", recipe, corpus(), name="second") == {"figure": 1.0}
    assert asked[0][1] == tmp_path / "second"
    assert recorded(tmp_path / "second") == ("retriever", recipe)
    check_same_recipe(tmp_path / "second", "retriever", {"model": {"batch_size": 5}})  # nothing has been trained yet
    (tmp_path / "second" / "state").mkdir()
    check_same_recipe(tmp_path / "second", "retriever", recipe)
    with pytest.raises(ConfigError, match=r"another recipe: \[model\]") as raised:
        check_same_recipe(tmp_path / "second", "retriever", {"model": {"batch_size": 5}})
    assert "racm3 train resume" in raised.value.hint
    with pytest.raises(ConfigError, match="another recipe"):
        train_stage(Run(tmp_path), "retriever", {"model": {"batch_size": 5}}, corpus(), name="second")
    assert len(asked) == 1 and recorded(tmp_path / "second") == ("retriever", recipe)
    with pytest.raises(ConfigError, match=r"no stage\.json"):
        recorded(tmp_path)


def test_a_missing_stage_is_named(tmp_path):
    with pytest.raises(WeightsNotFound, match="image-tokenizer is not trained yet") as raised:
        Run(tmp_path).model("image-tokenizer")
    assert "racm3 train image-tokenizer" in raised.value.hint


def test_pictures_of_another_size_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="size is 64, but the pictures have 16"):
        train_stage(Run(tmp_path), "image-tokenizer", {"model": {"size": 64}}, corpus())


def test_few_documents_are_held_out_for_figures(monkeypatch):
    monkeypatch.setattr(runs, "HELD_OUT", 3)
    assert runs._few(np.arange(10, 20)).tolist() == [10, 14, 19]
    assert runs._few(np.array([4, 5])).tolist() == [4, 5]


class Codes:
    """An image tokenizer that counts what it encodes: a picture's first pixels are its tokens."""

    tokens, codes = 4, 256

    def __init__(self):
        import torch

        self.codebook, self.encoded, self.model = torch.zeros(256, 2), 0, torch.nn.Identity()

    def encode(self, pixels):
        self.encoded += len(pixels)
        return pixels[:, 0, :4, 0].astype(np.int64)


@pytest.fixture
def run(tmp_path, monkeypatch):
    model = tmp_path / "image-tokenizer" / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    monkeypatch.setattr(runs, "retriever_of", lambda run, recipe: HashingRetriever())
    return Run(tmp_path)


RECIPE = {"tokenizer": {"vocabulary": 260, "longest": 3}, "neighbours": {"keep": 2}, "objective": {"k": [0, 2]}}


def test_documents_are_prepared_once_a_run(run):
    documents, tokenizer = corpus(), Codes()
    text_tokenizer = runs._text_tokenizer(run, RECIPE, documents)
    assert runs._text_tokenizer(run, {}, documents).to_str() == text_tokenizer.to_str()
    for _ in range(2):
        made = runs._prepared(run, RECIPE, documents, text_tokenizer, tokenizer, None)
        assert tokenizer.encoded == 6
        assert made.images.shape == (6, 1, 4) and made.images.dtype == np.uint16 and isinstance(made.images, np.memmap)
        assert (made.images[:, 0] == documents.data.pixels[:, 0, :4, 0]).all()
        assert max(len(text) for text in made.texts) == 3
        assert made.neighbours.rows.shape == (6, 2, 2, 2) and 5 not in made.neighbours.rows[:5]
        assert [rows.tolist() for rows in made.entities] == [[0], [1], [2], [3], [4]]
    vanilla = {**RECIPE, "objective": {"k": [0]}}
    assert runs._prepared(run, vanilla, documents, text_tokenizer, tokenizer, None).neighbours is None


def test_what_was_prepared_with_another_tokenizer_or_of_other_documents_is_refused(run):
    documents = corpus()
    text_tokenizer = runs._text_tokenizer(run, RECIPE, documents)
    runs._prepared(run, RECIPE, documents, text_tokenizer, Codes(), None)
    with pytest.raises(CheckpointError, match="documents changed"):
        runs._prepared(run, RECIPE, replace(documents, digest="other"), text_tokenizer, Codes(), None)
    (run.model("image-tokenizer") / "config.json").write_text(json.dumps({"other": 1}))
    with pytest.raises(CheckpointError, match="image tokenizer changed"):
        runs._prepared(run, RECIPE, documents, text_tokenizer, Codes(), None)


@pytest.mark.parametrize(
    "name", ["images.npy", "images.json", "neighbours-*.npy", "neighbours-*.json", "tokenizer.json"]
)
def test_a_file_that_was_torn_is_named(run, name):
    documents = corpus()

    def prepare():
        return runs._prepared(run, RECIPE, documents, runs._text_tokenizer(run, RECIPE, documents), Codes(), None)

    prepare()
    (path,) = run.prepared.glob(name)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=re.escape(str(path))) as raised:
        prepare()
    assert raised.value.hint
    for file in run.prepared.glob(f"{path.stem}*"):  # as the hint says
        file.unlink()
    prepare()


def test_a_torn_record_of_a_stage_is_named(run):
    runs.record(run.folder / "generator", "generator", RECIPE)
    (run.folder / "generator" / "state").mkdir()
    path = run.folder / "generator" / "stage.json"
    for torn in ("", '{"stage": "gen', "[]", '{"stage": "generator"}'):
        path.write_text(torn)
        with pytest.raises(CheckpointError, match=re.escape(str(path))):
            check_same_recipe(run.folder / "generator", "generator", RECIPE)


@pytest.mark.parametrize(
    ("wanted", "there", "device"), [("auto", True, "cuda"), ("cpu", True, "cpu"), ("auto", False, "cpu")]
)
def test_pictures_become_tokens_on_a_gpu_where_there_is_one(run, monkeypatch, wanted, there, device):
    import torch

    from racm3.generators.cm3.image_tokenizer import ImageTokenizer

    loaded = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(ImageTokenizer, "load", lambda path, device="cpu": loaded.append(device) or Codes())
    runs.generator_inputs(run, {**RECIPE, "trainer": {"device": wanted}}, corpus())
    assert loaded == [device]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_torn_model_of_a_stage_is_named_with_what_writes_it_anew(run, name):
    from safetensors.numpy import save_file

    model = run.model("image-tokenizer")
    save_file({"weight": np.ones(64, np.float32)}, model / "model.safetensors")
    (model / "config.json").write_text(json.dumps({"size": 8}))
    assert run.model("image-tokenizer") == model
    runs.record(model.parent, "image-tokenizer", {})
    (model / name).write_bytes((model / name).read_bytes()[:-3])
    with pytest.raises(CheckpointError, match=re.escape(str(model / name))) as raised:
        run.model("image-tokenizer")
    assert "racm3 train resume" in raised.value.hint
