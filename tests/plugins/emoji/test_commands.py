"""The demo on the command line, over light components: what it says, and when."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from racm3 import Pipeline
from racm3.cli import main
from racm3.memories.faiss import FaissMemory
from racm3.testing import HashingRetriever, PaintingGenerator
from racm3_emoji.bundle import held_out_documents


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The preset with components that need no weights, and a memory that holds a few documents."""
    pipeline = Pipeline(HashingRetriever(), FaissMemory(), generator=PaintingGenerator())
    pipeline.add(list(held_out_documents())[:40])
    monkeypatch.setattr(Pipeline, "from_preset", lambda name: pipeline)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["demo", "--count", "2", *arguments])
    return int(ended.value.code or 0)


def test_drawings_and_captions_are_told_apart_and_every_stage_is_named(light: Path, capsys) -> None:
    assert run("--out", str(light / "demo")) == 0
    shown = capsys.readouterr()
    drawn, captioned = shown.out.split("From a picture to words")
    assert "From words to a picture" in drawn and "caption" not in drawn
    assert "caption with them" in captioned and f"6 pictures in {light / 'demo'}" in captioned
    assert shown.err.splitlines() == [
        "Loading the models ...",
        "Drawing, with documents (1 of 4) ...",
        "Drawing, without (2 of 4) ...",
        "Captioning, with documents (3 of 4) ...",
        "Captioning, without (4 of 4) ...",
    ]


def test_the_json_keeps_the_documents_of_each_task(light: Path, capsys) -> None:
    assert run("--out", str(light / "demo"), "--json") == 0
    for thing in json.loads(capsys.readouterr().out)["things"]:
        drawing, captioning = (
            {document["id"]: document["score"] for document in thing[task]["documents"]}
            for task in ("drawing", "captioning")
        )
        assert len(drawing) == len(captioning) == 2 and drawing != captioning


def test_the_folder_is_checked_before_any_model_is_loaded(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(Pipeline, "from_preset", lambda name: pytest.fail("loaded in vain"))
    (tmp_path / "file").touch()
    for out in ("/proc/nope", str(tmp_path / "file"), str(tmp_path / "file" / "below")):
        assert run("--out", out) == 1
        assert f"{out} cannot be written" in capsys.readouterr().err.replace("\n", "")
