"""The command line: each command, its JSON, its errors, and what plugins add to it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from racm3.cli import main

COLOURS = {"kite": "red", "whale": "grey", "fox": "orange"}
COMMANDS = ("index", "search", "generate", "caption", "evaluate", "plugins", "demo")


@pytest.fixture
def run(capsys):
    """Runs a command line in this process; gives exit code, stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as raised:
            main([str(argument) for argument in arguments])
        shown = capsys.readouterr()
        return int(raised.value.code or 0), shown.out, shown.err

    return run


@pytest.fixture
def photos(toy: Path) -> Path:
    folder = toy / "photos"
    folder.mkdir()
    for name, colour in COLOURS.items():
        PIL.Image.new("RGB", (16, 16), colour).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"a {name} [bold] 凧", encoding="utf-8")
    return folder


@pytest.fixture
def memory(photos: Path, run) -> Path:
    code, _, err = run("index", photos, "--memory", "mem", "--preset", "toy")
    assert code == 0, err
    return Path("mem")


def test_index_skips_counts_and_lists_bad_files(photos: Path, run):
    (photos / "bogus.jpg").write_bytes(b"no picture")
    (photos / "cut.png").write_bytes((photos / "kite.png").read_bytes()[:40])
    code, out, err = run("index", photos, "--memory", "mem", "--preset", "toy")
    assert code == 0
    assert out == "3 documents read, 3 of them new; the memory holds 3.\n"
    assert "2 passed over:" in err and "bogus.jpg: " in err and "cut.png: " in err and "Traceback" not in err


def test_index_again_adds_only_what_is_new(photos: Path, memory: Path, run):
    PIL.Image.new("RGB", (16, 16), "blue").save(photos / "new.png")
    code, out, _ = run("index", photos, "--memory", memory, "--preset", "toy", "--json")
    report = json.loads(out)
    assert code == 0
    assert (report["read"], report["new"], report["stored"], report["skipped"]) == (4, 1, 4, [])
    code, _, err = run("index", photos, "--memory", memory, "--preset", "toy", "--on-duplicate", "error")
    assert code == 1 and "fox.png" in err


def test_index_by_a_pipeline_file(photos: Path, run):
    Path("p.toml").write_text('[retriever]\nname = "hashing"\n[memory]\nname = "faiss"\npath = "inside"\n')
    assert run("index", photos, "--config", "p.toml")[0] == 0
    code, out, _ = run("search", "whale", "--config", "p.toml", "-k", 1, "--json")
    assert code == 0 and json.loads(out)[0]["id"] == "whale.png"


def test_index_with_nothing_to_index(toy: Path, run):
    (toy / "empty").mkdir()
    code, _, err = run("index", "empty", "--memory", "mem", "--preset", "toy")
    assert code == 1 and "There are no pictures in empty" in err
    (toy / "empty/bad.png").write_bytes(b"x")
    code, out, err = run("index", "empty", "--memory", "mem", "--preset", "toy")
    assert code == 1 and out.startswith("0 documents") and "bad.png" in err
    assert run("index", "absent", "--memory", "mem", "--preset", "toy")[0] == 1
    assert run("index", "empty", "--preset", "toy")[0] == 2, "where to?"


def test_search_by_text_picture_and_filter(photos: Path, memory: Path, run):
    chosen = ("--memory", memory, "--preset", "toy", "--json")
    code, out, _ = run("search", "a fox", "-k", 2, *chosen)
    hits = json.loads(out)
    assert code == 0 and [hits[0]["id"], len(hits)] == ["fox.png", 2]
    assert hits[0]["parts"][0] == {"text": "a fox [bold] 凧"} and hits[0]["metadata"] == {"path": "fox.png"}
    _, out, _ = run("search", "--image", photos / "whale.png", "-k", 1, *chosen)
    assert json.loads(out)[0]["id"] == "whale.png"
    _, out, _ = run("search", "a fox", "--where", '{"path": {"$ne": "fox.png"}}', *chosen)
    assert {hit["id"] for hit in json.loads(out)} == {"kite.png", "whale.png"}
    _, out, _ = run("search", "a fox", "--where", '{"path": "x"}', *chosen)
    assert json.loads(out) == []


def test_search_shows_a_table_without_reading_captions_as_markup(memory: Path, run, monkeypatch):
    for width in ("200", "24"):
        monkeypatch.setenv("COLUMNS", width)
        code, out, _ = run("search", "fox", "-k", 1, "--memory", memory, "--preset", "toy")
        assert code == 0 and max(map(len, out.splitlines())) <= int(width)
        if width == "200":
            assert "fox.png" in out and "a fox [bold] 凧" in out


@pytest.mark.parametrize(
    "arguments",
    [
        ("search",),
        ("search", "x", "--where", "{"),
        ("search", "x", "--where", "[1]"),
        ("search", "x", "-k", "0"),
        ("search", "x", "--unknown"),
        ("generate",),
        ("generate", "x", "--out", "picture.txt"),
        ("generate", "x", "--preset", "toy", "--config", "x.toml"),
        ("index", "x", "--memory", "m", "--on-duplicate", "perhaps"),
        ("no-such-command",),
    ],
)
def test_wrong_usage_exits_with_2(toy: Path, run, arguments):
    code, out, err = run(*arguments)
    assert code == 2 and out == "" and "Traceback" not in err


def test_generate_writes_pictures(memory: Path, run):
    chosen = ("--memory", memory, "--preset", "toy", "--seed", 7)
    code, out, err = run("generate", "a fox", "--out", "deep/fox.png", "-k", 1, *chosen)
    assert code == 0 and out == "deep/fox.png\n"
    assert "grounded on fox.png" in err and "seed 7" in err
    assert PIL.Image.open("deep/fox.png").size == (16, 16)
    code, out, _ = run("generate", "a fox", "--out", "two.webp", "-n", 2, "-k", 1, "--json", *chosen)
    report = json.loads(out)
    assert report["files"] == ["two-1.webp", "two-2.webp"] and all(Path(file).exists() for file in report["files"])
    assert report["hits"][0]["id"] == "fox.png" and len(report["outputs"]) == 2
    run("generate", "a fox", "--out", "again.png", "-k", 1, *chosen)
    assert np.array_equal(PIL.Image.open("again.png"), PIL.Image.open("deep/fox.png")), "the seed repeats it"


def test_caption_prints_words(memory: Path, run):
    chosen = ("--memory", memory, "--preset", "toy", "-k", 1)
    PIL.Image.new("RGB", (20, 20), COLOURS["whale"]).save("like-a-whale.png")
    code, out, err = run("caption", "like-a-whale.png", *chosen)
    assert code == 0 and out == "a whale [bold] 凧\n" and "grounded on whale.png" in err
    code, out, _ = run("caption", "like-a-whale.png", "--json", *chosen)
    assert code == 0 and json.loads(out)["outputs"][0]["filled"] == [{"text": "a whale [bold] 凧"}]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("caption", "nope.png", "--preset", "toy"), "nope.png cannot be read"),
        (("caption", __file__, "--preset", "toy"), "test_cli.py is not a picture"),
        (("search", "x", "--memory", "nowhere", "--preset", "toy"), "There is no memory at nowhere"),
        (("search", "x", "--preset", "tyo"), "Did you mean 'toy'?"),
        (("search", "x", "--config", "nope.toml"), "There is no pipeline file nope.toml"),
        (("search", "x"), "pip install racm3-emoji"),
        (("generate", "x", "--preset", "toy", "-k", "0", "--out", "/proc/nope/x.png"), "cannot be written"),
        (("demo",), "pip install racm3-emoji"),
    ],
)
def test_errors_have_no_traceback_unless_asked(toy: Path, run, arguments, message):
    code, out, err = run(*arguments)
    assert code == 1 and out == "" and "Traceback" not in err
    assert message in err.replace("\n", " ")
    from racm3.errors import RACM3Error

    with pytest.raises(RACM3Error):
        main([*arguments, "--debug"])


def test_an_unforeseen_error_points_to_debug(memory: Path, run, monkeypatch):
    from racm3.testing import HashingRetriever

    monkeypatch.setattr(HashingRetriever, "_text", lambda *_: 1 / 0)
    code, _, err = run("search", "x", "--memory", memory, "--preset", "toy")
    assert code == 1 and "ZeroDivisionError" in err and "--debug" in err and "Traceback" not in err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(toy: Path, run, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    code, out, _ = run(command, "--help")
    assert code == 0 and ("Example: racm3" in out or command == "demo")


def test_plugins_lists_all_and_says_what_is_broken(toy: Path, install, run, monkeypatch):
    install("racm3-bad", "import no_such_package", version="3.2")
    monkeypatch.setenv("COLUMNS", "200")
    code, out, err = run("plugins")
    assert code == 0
    assert "hashing" in out and "words and colours" in out and "diverse" in out
    assert "racm3-bad 3.2 (bad) is broken" in out and "no_such_package" in out
    assert err.count("Warning: The racm3 plugin racm3-bad") == 1
    code, out, _ = run("plugins", "--json")
    listed = {info["distribution"]: info for info in json.loads(out)}
    assert listed["racm3-bad"]["status"] == "broken" and listed["racm3-toy"]["presets"][0]["name"] == "toy"
    assert {"interface": "memory", "name": "faiss"}.items() <= listed["racm3"]["components"][1].items()


def test_plugins_runs_in_strict_mode_too(toy: Path, install, run, monkeypatch):
    install("racm3-bad", "import no_such_package")
    monkeypatch.setenv("RACM3_STRICT", "1")
    code, out, _ = run("plugins", "--json")
    assert code == 0 and [info["status"] for info in json.loads(out)] == ["ok", "broken", "ok"]
    code, _, err = run("search", "x", "--preset", "toy")
    assert code == 1 and "racm3-bad" in err


COMMAND = """
@hookimpl
def racm3_commands(app):
    @app.command()
    def {name}(loud: bool = False):
        "Say hello. Example: racm3 {name}"
        print("HELLO" if loud else "hello")
"""


def test_plugins_add_commands(toy: Path, install, run):
    install("racm3-greet", COMMAND.format(name="hello"))
    install("racm3-show", COMMAND.format(name="demo"))
    assert run("hello", "--loud")[:2] == (0, "HELLO\n")
    assert run("demo")[:2] == (0, "hello\n"), "a plugin brings the demo"
    assert "Say hello" in run("--help")[1]


GROUP = """
import typer
@hookimpl
def racm3_commands(app):
    group = typer.Typer()
    app.add_typer(group, name="emoji", help="The emoji world.")
    @group.command()
    def build(): print("built")
    @group.command()
    def train(): print("trained")
"""


def test_plugins_add_groups_of_commands(toy: Path, install, run):
    install("racm3-group", GROUP)
    assert run("emoji", "train")[:2] == (0, "trained\n")
    assert run("emoji", "--help")[0] == 0


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        (COMMAND.format(name="search"), "there is a command 'search' already"),
        ("@hookimpl\ndef racm3_commands(app):\n    app.command()(print)\n    raise OSError('late')", "OSError: late"),
        ("@hookimpl\ndef racm3_commands(app):\n    @app.command()\n    def x(y: int | str = 3): ...", "Union types"),
        ("@hookimpl\ndef racm3_commands(app): raise SystemExit(3)", "SystemExit: 3"),
    ],
)
def test_a_plugin_whose_commands_fail_does_not_break_the_others(toy: Path, install, run, source, cause):
    install("racm3-bad", source)
    install("racm3-greet", COMMAND.format(name="hello"))
    code, out, err = run("hello")
    assert (code, out) == (0, "hello\n") and cause in err
    listed = {info["distribution"]: info for info in json.loads(run("plugins", "--json")[1])}
    assert listed["racm3-bad"]["status"] == "broken" and cause in listed["racm3-bad"]["error"]


def test_version_and_no_arguments(toy: Path, run):
    assert run("--version")[1].strip()[0].isdigit()
    code, out, err = run()
    assert code in (0, 2) and "generate" in out + err


def test_the_installed_program_in_a_terminal_without_unicode(photos: Path):
    environment = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PATH": "/bin:/usr/bin", "RACM3_PLUGINS": "toy"}
    site = str(photos.parent.parent / "site")
    code = f"import sys; sys.path.insert(0, {site!r}); from racm3.cli import main; main()"
    base = [sys.executable, "-c", code]

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*base, *arguments], cwd=photos.parent, env=environment, capture_output=True, text=True)

    done = call("index", "photos", "--memory", "mem", "--preset", "toy", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["new"] == 3, done.stderr
    done = call("search", "凧 fox", "--memory", "mem", "--preset", "toy", "-k", "1")
    assert done.returncode == 0 and "fox.png" in done.stdout, done.stderr


def test_evaluate_writes_a_report(photos: Path, memory: Path, run):
    options = ("--preset", "toy", "--memory", memory, "--out", "report", "-k", 1)
    code, out, err = run("evaluate", photos, *options, "--limit", 2, "--json")
    assert code == 0, err
    figures = json.loads(out)
    assert (figures["pairs"], figures["memory"], figures["k"], figures["skipped"]) == (2, 3, 1, [])
    assert {"ra_cm3", "no_documents", "random_documents"} <= set(figures["text_to_image"])
    assert all(Path(file).is_file() for file in figures["files"])
    code, out, err = run("evaluate", photos, *options)
    assert code == 0 and out.startswith("# Evaluation on 3 pairs of 3 entities") and "index.html" in out
