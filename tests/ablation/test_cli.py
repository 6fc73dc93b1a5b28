"""racm3 ablate on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from racm3.cli import main

TABLES = ("data", "tokenizer", "neighbours", "model", "objective", "trainer")


@pytest.fixture
def command(toy_run, toy_recipe, tmp_path, capsys):
    """Runs `racm3 ablate` on the toy recipe; gives exit code, stdout and stderr."""

    def command(*options, **trainer) -> tuple[int, str, str]:
        tables = toy_recipe(**trainer)
        lines = [
            line
            for name in TABLES
            for line in (f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in tables[name].items()))
        ]
        path = tmp_path / "recipe.toml"
        path.write_text("\n".join(lines))
        with pytest.raises(SystemExit) as ended:
            main(["ablate", str(path), "--run", str(toy_run), *map(str, options)])
        shown = capsys.readouterr()
        return int(ended.value.code or 0), shown.out, shown.err.replace("\n", " ")

    return command


def test_an_analysis_from_a_recipe(command, toy_run: Path):
    asked = ("--rows", "k", "--steps", 2, "--seeds", 1, "--drawings", 2)
    code, out, err = command(*asked, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["finished"] and found["steps"] == 2 and len(found["groups"][0]["rows"]) == 5
    assert "encoder that also retrieves" in found["notes"][0]
    assert {"ablation.json", "report.md", "index.html", "k.png"} <= {p.name for p in (toy_run / "ablation").iterdir()}
    code, out, err = command(*asked)
    assert code == 0 and out.startswith("# What matters") and "| K = 4, groups of 2 |" in out
    assert str(toy_run / "ablation" / "index.html") in out.replace("\n", "")
    assert "ours, seed 0" not in err  # nothing is trained again
    code, _, err = command(*asked, learning_rate=0.5)
    assert code == 1 and "trained by another recipe: [trainer] learning_rate differs" in err and "--out" in err


def test_a_dry_run_lists_what_would_be_trained_and_trains_nothing(command, toy_run: Path):
    code, out, _ = command("--dry-run", "--seeds", 2, "--json")
    assert code == 0 and not (toy_run / "ablation").exists()
    found = json.loads(out)
    assert len(found["runs"]) == 2 * 13 and {one["state"] for one in found["runs"]} == {"waiting"}
    assert found["seconds"] == pytest.approx(sum(one["seconds"] for one in found["runs"])) and found["seconds"] > 0
    wide, ours = (next(r for r in found["runs"] if r["model"] == name) for name in ("vanilla-4x", "ours"))
    assert wide["parameters"] > 2 * ours["parameters"] and "k2-random" in ours["conditions"]
    code, out, _ = command("--dry-run", "--rows", "relevance, alpha")
    assert code == 0 and "15 runs" in out and "begin, and ask again" in out.replace("\n", " ")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--rows", "relevance,alhpa"), "Did you mean 'alpha'"),
        (("--out", "/proc/nope"), "cannot be written"),
        (("--encoder", "nowhere"), "nowhere"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(command, options, says):
    code, _, err = command(*options)
    assert code == 1 and says in err and "Traceback" not in err


def test_a_run_without_an_image_tokenizer_is_told_what_to_train(command, toy_run: Path):
    (toy_run / "image-tokenizer" / "model").unlink()
    code, _, err = command("--rows", "k")
    assert code == 1 and "racm3 train image-tokenizer" in err


def test_plots_need_their_library(command, monkeypatch):
    monkeypatch.setattr("racm3.ablation.plots.find_spec", lambda name: None)
    code, _, err = command("--rows", "k")
    assert code == 1 and "racm3[evaluation]" in err
