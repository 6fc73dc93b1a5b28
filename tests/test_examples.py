"""The example scripts: short, and run as they stand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
SCRIPTS = sorted(EXAMPLES.glob("[0-9]*.py"))


def run(script: str, *arguments: str, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / script), *arguments], cwd=cwd, capture_output=True, text=True, check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_an_example_is_short(script: Path) -> None:
    assert len(script.read_text().splitlines()) < 40


@pytest.mark.slow
def test_quickstart_finds_draws_and_captions(tmp_path: Path) -> None:
    from PIL import Image

    said = run("01_quickstart.py", "--out", "drawing.png", cwd=tmp_path)
    assert Image.open(tmp_path / "drawing.png").size == (256, 256)
    found, drawn, captioned = said.split("\n\n")
    assert len(found.splitlines()) == 3
    assert "flag: Denmark" in drawn.splitlines()[1]
    assert captioned.startswith("Its caption: ")


@pytest.mark.slow
def test_a_folder_of_pictures_is_indexed_and_searched(tmp_path: Path) -> None:
    said = run("02_your_own_pictures.py", cwd=tmp_path).splitlines()
    assert said[0].startswith("3 documents, 1 skipped") and "broken.png" in said[0]
    assert said[1].endswith("blue.png  a blue square")


@pytest.mark.slow
def test_parts_put_together_by_hand(tmp_path: Path) -> None:
    said = run("03_by_hand.py", cwd=tmp_path).splitlines()
    assert int(said[0].split()[0]) > 100
    assert said[1].startswith("drawn after: [('flag:")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "says", "size"),
    [
        ("04_edit_a_region.py", "grounded on", (600, 200)),
        ("05_steer_by_context.py", "drawn in", (600, 600)),
        ("07_texts_and_mixed.py", "filled:", (256, 256)),
        ("08_guidance_ranking_streams.py", "scores, best first", (800, 100)),
    ],
)
def test_a_picture_to_judge(script: str, says: str, size: tuple[int, int], tmp_path: Path) -> None:
    from PIL import Image

    said = run(script, "--out", "out.png", cwd=tmp_path)
    assert says in said
    assert Image.open(tmp_path / "out.png").size == size


@pytest.mark.slow
def test_labels_with_their_probabilities(tmp_path: Path) -> None:
    said = run("06_classify.py", cwd=tmp_path).splitlines()
    assert [line.split(":")[0] for line in said[1:]] == ["no example", "one example of each", "two retrieved documents"]


def test_all_three_models_are_trained_on_a_folder_of_pictures(tmp_path: Path) -> None:
    """And the run goes on from its folder alone: the recipe stands there."""
    from PIL import Image, ImageDraw

    from racm3.cli import main

    for number in range(16):
        picture = Image.new("RGB", (40, 32), "white")
        ImageDraw.Draw(picture).rectangle((number, 4, 30, 20), (16 * number, 90, 0))
        picture.save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(f"bar number {number}")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    said = run("09_train_on_your_pictures.py", str(tmp_path), str(tmp_path / "run"), cwd=tmp_path)
    assert said.count("16 documents") == 3
    assert "held_out_k2" in said and "nan" not in said
    model = tmp_path / "run" / "generator" / "model"
    assert (model / "racm3.json").is_file() and (model / "model.safetensors").is_file()
    assert "broken.png" in (tmp_path / "run" / "data" / "skipped.jsonl").read_text()
    (model / "model.safetensors").unlink()
    with pytest.raises(SystemExit) as finished:
        main(["train", "resume", str(tmp_path / "run" / "generator")])
    assert not finished.value.code and (model / "model.safetensors").is_file()
