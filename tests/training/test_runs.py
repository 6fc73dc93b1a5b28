"""A run's folder: what its stages share, and by which recipe each was started."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import numpy as np
import pytest

from racm3.errors import CheckpointError, ConfigError, WeightsNotFound
from racm3.training import runs
from racm3.training.runs import (
    Run,
    check_same_recipe,
    recorded,
    train_stage,
)


def test_two_processes_do_not_train_in_one_folder(tmp_path, monkeypatch, corpus):
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
                train_stage(Run(tmp_path), "retriever", {"model": {"batch_size": 4}}, corpus)
            assert not (tmp_path / "retriever" / "stage.json").exists()
        finally:
            other.kill()
    for _ in range(2):  # who has ended, or finished, is in nobody's way
        train_stage(Run(tmp_path), "retriever", {"model": {"batch_size": 4}}, corpus)


def test_a_stage_remembers_its_recipe(tmp_path, monkeypatch, corpus):
    asked = []
    monkeypatch.setitem(runs._STAGES, "retriever", lambda *a: asked.append(a) or {"figure": 1.0})
    recipe = {"model": {"batch_size": 4}}
    assert train_stage(Run(tmp_path), "retriever", recipe, corpus, name="second") == {"figure": 1.0}
    assert asked[0][1] == tmp_path / "second"
    assert recorded(tmp_path / "second") == ("retriever", recipe)
    check_same_recipe(tmp_path / "second", "retriever", {"model": {"batch_size": 5}})  # nothing has been trained yet
    (tmp_path / "second" / "state").mkdir()
    check_same_recipe(tmp_path / "second", "retriever", recipe)
    with pytest.raises(ConfigError, match=r"another recipe: \[model\]") as raised:
        check_same_recipe(tmp_path / "second", "retriever", {"model": {"batch_size": 5}})
    assert "racm3 train resume" in raised.value.hint
    with pytest.raises(ConfigError, match="another recipe"):
        train_stage(Run(tmp_path), "retriever", {"model": {"batch_size": 5}}, corpus, name="second")
    assert len(asked) == 1 and recorded(tmp_path / "second") == ("retriever", recipe)
    with pytest.raises(ConfigError, match=r"no stage\.json"):
        recorded(tmp_path)


def test_a_missing_stage_is_named(tmp_path):
    with pytest.raises(WeightsNotFound, match="image-tokenizer is not trained yet") as raised:
        Run(tmp_path).model("image-tokenizer")
    assert "racm3 train image-tokenizer" in raised.value.hint


def test_pictures_of_another_size_are_refused(tmp_path, corpus):
    with pytest.raises(ConfigError, match="size is 64, but the pictures have 16"):
        train_stage(Run(tmp_path), "image-tokenizer", {"model": {"size": 64}}, corpus)


def test_a_torn_record_of_a_stage_is_named(run):
    recipe = {"objective": {"k": [0, 2]}}
    runs.record(run.folder / "generator", "generator", recipe)
    (run.folder / "generator" / "state").mkdir()
    path = run.folder / "generator" / "stage.json"
    for torn in ("", '{"stage": "gen', "[]", '{"stage": "generator"}'):
        path.write_text(torn)
        with pytest.raises(CheckpointError, match=re.escape(str(path))):
            check_same_recipe(run.folder / "generator", "generator", recipe)


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
