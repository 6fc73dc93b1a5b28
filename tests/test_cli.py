"""The command line: each command, its JSON, its errors, and what plugins add to it."""

from __future__ import annotations

import json
import os
import pydoc
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from racm3.cli import main

COLOURS = {"kite": "red", "whale": "grey", "fox": "orange"}
COMMANDS = ("index", "search", "generate", "caption", "evaluate", "plugins", "demo")


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
    assert run("index", "empty", "--preset", "toy")[0] == 2, "where to?"


def test_an_index_that_failed_leaves_nothing_behind(photos: Path, run, monkeypatch):
    from racm3.testing import HashingRetriever

    def failed(folder: str) -> str:
        code, _, err = run("index", folder, "--memory", "new/deep/mem", "--preset", "toy")
        assert code == 1 and not Path("new").exists()
        return err

    assert "There is no folder absent" in failed("absent")
    Path("empty").mkdir()
    assert "There are no pictures" in failed("empty")
    Path("empty/bad.png").write_bytes(b"x")
    assert "bad.png" in failed("empty")
    monkeypatch.setattr(HashingRetriever, "encode_document", lambda *_, **__: 1 / 0)
    assert "ZeroDivisionError" in failed("photos")
    Path("p.toml").write_text(
        '[retriever]\nname = "clip"\nmodel = "./absent"\n[memory]\nname = "faiss"\npath = "inside"'
    )
    code, _, err = run("index", photos, "--config", "p.toml")
    assert code == 1 and "absent" in err and not Path("inside").exists()


def test_an_index_that_failed_keeps_what_was_there_and_what_was_stored(photos: Path, memory: Path, run, monkeypatch):
    from racm3.testing import HashingRetriever

    assert run("index", "absent", "--memory", memory, "--preset", "toy")[0] == 1
    assert len(json.loads(run("search", "a", "--memory", memory, "--preset", "toy", "--json")[1])) == 3
    encode, calls = HashingRetriever.encode_document, []

    def once(self, documents, **options):
        calls.append(len(documents))
        return encode(self, documents, **options) if len(calls) == 1 else 1 / 0

    monkeypatch.setattr(HashingRetriever, "encode_document", once)
    assert run("index", photos, "--memory", "other", "--preset", "toy", "--batch-size", 1)[0] == 1
    assert calls == [1, 1]
    assert len(json.loads(run("search", "a", "--memory", "other", "--preset", "toy", "--json")[1])) == 1


KILLS = {
    "before anything is stored": ("racm3.memories.faiss.FaissMemory.add", 1),
    "in a transaction": ("racm3.memories.journal.Journal._store_fields", 2),
    "between two batches": ("racm3.memories.faiss.FaissMemory.get", 3),
    "before the index is written": ("racm3.memories.faiss.FaissMemory.flush", 1),
    "as the index is written": ("racm3.memories.snapshot.publish", 2),
}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("moment", KILLS)
@pytest.mark.parametrize("kind", ["kill", "interrupt"])
def test_an_index_that_was_stopped_goes_on_where_it_was(photos: Path, run, monkeypatch, moment, kind):
    from racm3.memories.faiss import FaissMemory

    for number in range(6):
        PIL.Image.new("RGB", (8, 8), (40 * number, 0, 99)).save(photos / f"more{number}.png")
    arguments = ["index", "photos", "--memory", "mem", "--preset", "toy", "--batch-size", "2"]
    target, at = KILLS[moment]
    said = Path("said.txt")
    child = os.fork()
    if child == 0:
        try:
            function, calls = pydoc.locate(target), []

            def stop(*given, **options):
                calls.append(target)
                if len(calls) == at:
                    os.kill(os.getpid(), signal.SIGKILL if kind == "kill" else signal.SIGINT)
                    time.sleep(0)  # where Python sees to a signal
                return function(*given, **options)

            monkeypatch.setattr(target, stop)
            signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background may ignore it
            sys.stdout = sys.stderr = said.open("w")
            main(arguments)
        except SystemExit as ended:
            sys.stderr.flush()
            os._exit(int(ended.code or 0))
        finally:
            os._exit(99)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if kind == "kill":
        assert status == -signal.SIGKILL
    else:
        assert status == 130, said.read_text()
        first, *rest = said.read_text().splitlines()[1:]
        stored = {"before anything is stored": 0, "in a transaction": 2, "between two batches": 4}.get(moment, 9)
        assert rest == []
        assert first == (
            f"Interrupted: the memory holds {stored} documents, and the same command goes on from there."
            if stored
            else "Interrupted: nothing is stored."
        )
        assert Path("mem").exists() == bool(stored)
    code, out, err = run(*arguments)
    assert code == 0 and out.endswith("the memory holds 9.\n"), err
    with FaissMemory(Path("mem")) as memory:
        assert sorted(document.id for document, _ in memory.items()) == sorted(
            file.name for file in photos.glob("*.png")
        )
        assert memory.verify() == []


def test_an_interrupted_drawing_says_so(memory: Path, run, monkeypatch):
    from racm3.testing import PaintingGenerator

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(PaintingGenerator, "generate", stop)
    code, out, err = run("generate", "a kite", "--memory", memory, "--preset", "toy", "--out", "kite.png")
    assert (code, out, err) == (130, "", "Interrupted: nothing was written.\n") and not Path("kite.png").exists()


def test_index_passes_over_near_duplicates_and_lists_them(photos: Path, run):
    pytest.importorskip("imagehash")
    for name in COLOURS:
        PIL.Image.open(photos / f"{name}.png").resize((40, 40)).save(photos / f"{name}-again.jpg")
    arguments = ("index", photos, "--memory", "mem", "--preset", "toy", "--near-duplicates", 8)
    for new in (3, 0):
        code, out, err = run(*arguments)
        assert code == 0 and out == f"6 documents read, {new} of them new; the memory holds 3.\n"
        assert "3 near-duplicates passed over:\n  fox.png looks like fox-again.jpg\n" in err
    report = json.loads(run(*arguments, "--json")[1])
    assert {"id": "kite.png", "of": "kite-again.jpg"} in report["near_duplicates"]
    assert (report["read"], report["new"], report["stored"], report["skipped"]) == (6, 0, 3, [])
    code, out, _ = run(*arguments[:-2], "--json")
    assert code == 0 and json.loads(out)["new"] == 3, "only where it is asked for"


def test_index_can_leave_pictures_in_their_files(photos: Path, run):
    assert run("index", photos, "--memory", "mem", "--preset", "toy", "--images-in-files")[0] == 0
    assert "of these in files" in run("memory", "stats", "mem")[1]
    assert run("memory", "verify", "mem")[:2] == (0, "mem is sound.\n")
    (photos / "kite.png").unlink()
    code, out, _ = run("memory", "verify", "mem")
    assert code == 1 and "kite.png is not there any more" in out.replace("\n", "")


def test_a_picture_that_is_gone_does_not_hide_what_else_is_found(photos: Path, run):
    run("index", photos, "--memory", "mem", "--preset", "toy", "--images-in-files")
    (photos / "kite.png").unlink()
    code, out, err = run("search", "a kite", "--memory", "mem", "--preset", "toy", "--json")
    assert code == 0 and {hit["id"] for hit in json.loads(out)} == {"whale.png", "fox.png"}
    assert "kite.png is left out" in err and "racm3 memory delete" in err.replace("\n", " ")
    for name in ("whale", "fox"):
        (photos / f"{name}.png").unlink()
    assert run("search", "a kite", "--memory", "mem", "--preset", "toy")[0] == 1


def test_indexing_again_finds_a_folder_that_was_moved(photos: Path, run):
    arguments = ("--memory", "mem", "--preset", "toy", "--images-in-files")
    assert run("index", photos, *arguments)[0] == 0
    moved = photos.rename("moved")
    assert run("memory", "verify", "mem")[0] == 1
    code, out, _ = run("index", moved, *arguments)
    assert (code, out) == (0, "3 documents read, 0 of them new; the memory holds 3.\n")
    assert run("memory", "verify", "mem")[0] == 0


def test_near_duplicates_need_a_library(photos: Path, run, monkeypatch):
    monkeypatch.setitem(sys.modules, "imagehash", None)
    code, _, err = run("index", photos, "--memory", "mem", "--preset", "toy", "--near-duplicates", 8)
    assert code == 1 and 'pip install "racm3[near-duplicates]"' in err and not Path("mem").exists()
    assert run("index", photos, "--memory", "mem", "--preset", "toy", "--near-duplicates", 64)[0] == 2


WRITER = """
import sys
from pathlib import Path
from racm3 import Document
from racm3.memories.faiss import FaissMemory
from racm3.testing import HashingRetriever
memory, retriever, documents = FaissMemory(Path(sys.argv[1])), HashingRetriever(), [Document("a kite", id="kite")]
memory.bind(retriever.encoder)
memory.add(documents, retriever.encode_document(documents))
print("stored", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("folder", ["photos", "empty"])
def test_an_index_that_is_refused_leaves_the_memory_of_another_process_alone(photos: Path, run, monkeypatch, folder):
    """Both begin where there is no memory yet; the other one is faster."""
    from racm3.cli import index

    (photos.parent / "empty").mkdir()
    begun = index._not_there_yet
    others: list[subprocess.Popen[str]] = []

    def overtaken(path: Path) -> list[Path]:
        missing = begun(path)
        piped = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        others.append(subprocess.Popen([sys.executable, "-c", WRITER, str(path)], **piped))
        assert others[0].stdout.readline() == "stored\n"
        return missing

    monkeypatch.setattr(index, "_not_there_yet", overtaken)
    code, _, err = run("index", folder, "--memory", "mem", "--preset", "toy")
    assert code == 1 and "Traceback" not in err
    assert others[0].communicate("")[0] == "" and others[0].returncode == 0
    assert json.loads(run("memory", "stats", "mem", "--json")[1])["documents"] == 1


def test_only_index_makes_a_memory(toy: Path, run):
    Path("empty").mkdir()
    for command in (("search", "x"), ("generate", "x")):
        code, _, err = run(*command, "--memory", "empty", "--preset", "toy")
        assert code == 1 and "There is no memory at empty" in err
    assert list(Path("empty").iterdir()) == [] and not Path("toy-memory").exists()


def test_looking_into_a_memory_changes_none_of_its_files(memory: Path, run):
    from racm3.memories.faiss import FaissMemory

    with FaissMemory(memory) as stored:
        stored.export_read_only(Path("shipped"))

    def files() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in Path("shipped").iterdir()}

    before = files()
    for command in (("search", "fox", "--json"), ("generate", "fox"), ("caption", "photos/fox.png")):
        assert run(*command, "-k", 1, "--memory", "shipped", "--preset", "toy")[0] == 0
        assert files() == before


def test_search_says_why_nothing_was_found(memory: Path, run):
    from racm3.memories.faiss import FaissMemory

    chosen = ("--memory", memory, "--preset", "toy")
    code, out, err = run("search", "fox", "--where", '{"path": "x"}', *chosen)
    assert (code, out, err) == (0, "", "Nothing was found: no document passes the filter.\n")
    _, _, err = run(
        "search", "a kite", "--memory", memory, "--preset", "toy", "--where", '{"$not": {"pth": {"$ne": "kite.png"}}}'
    )
    assert err == "Nothing was found: no document has the field 'pth'. Did you mean 'path'? Known: path.\n"
    with FaissMemory(memory) as stored:
        stored.delete([document.id for document, _ in stored.items()])
    code, out, err = run("search", "fox", "--json", *chosen)
    assert (code, json.loads(out), err) == (0, [], "Nothing was found: the memory is empty.\n")


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
        assert "fox.png" in out and "a fox [bold] 凧" in out
        assert ("text: a fox" in out) == (width == "24"), "too narrow for a table"


@pytest.mark.parametrize(
    "arguments",
    [
        ("search",),
        ("search", "x", "--where", "{"),
        ("search", "x", "--where", "[1]"),
        ("search", "x", "--where", '{"year": {"$around": 2020}}'),
        pytest.param(("search", "x", "--where", '{"a":' * 5000 + "1" + "}" * 5000), id="deep"),
        ("search", ""),
        ("search", " \t"),
        ("generate", ""),
        ("generate", " \t"),
        ("generate", "x", "-k", "-1"),
        ("generate", "x", "--top-p", "0"),
        ("generate", "x", "--top-p", "nan"),
        ("generate", "x", "--context-guidance", "-1"),
        ("generate", "x", "--temperature", "-1"),
        ("caption", "x.png", "--max-text-tokens", "0"),
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
    assert code == 2 and out == "" and "Traceback" not in err and "Try 'racm3" in err


def test_generate_writes_pictures(memory: Path, run):
    chosen = ("--memory", memory, "--preset", "toy", "--seed", 7)
    code, out, err = run("generate", "a fox", "--out", "deep/fox.png", "-k", 1, *chosen)
    assert code == 0 and out == "deep/fox.png\n"
    assert "grounded on fox.png (0." in err and ") a fox [bold] 凧\n" in err and "--seed 7 gives the same again" in err
    assert PIL.Image.open("deep/fox.png").size == (16, 16)
    code, out, _ = run("generate", "a fox", "--out", "two.webp", "-n", 2, "-k", 1, "--json", *chosen)
    report = json.loads(out)
    assert report["files"] == ["two-1.webp", "two-2.webp"] and all(Path(file).exists() for file in report["files"])
    assert report["hits"][0]["id"] == "fox.png" and len(report["outputs"]) == 2
    run("generate", "a fox", "--out", "again.png", "-k", 1, *chosen)
    assert np.array_equal(PIL.Image.open("again.png"), PIL.Image.open("deep/fox.png")), "the seed repeats it"


def test_what_was_passed_over_is_told(memory: Path, run):
    """The document that says what was asked, word for word, is no help, by the paper's rule: one has to know."""
    _, _, err = run("generate", "a fox [bold] 凧", "-k", 1, "--memory", memory, "--preset", "toy")
    assert "passed over fox.png: same content as the query\n" in err and "grounded on fox.png" not in err


def test_what_an_answer_is_grounded_on_takes_one_line_and_cannot_steer_the_terminal(photos: Path, run):
    (photos / "fox.txt").write_text("a fox\x1b[31m\u202e\nthat " + "runs and " * 100, encoding="utf-8")
    run("index", photos, "--memory", "mem", "--preset", "toy")
    chosen = ("--where", '{"path": "fox.png"}', "--memory", "mem", "--preset", "toy")
    _, _, err = run("generate", "a fox", *chosen)
    (line,) = [line for line in err.splitlines() if line.startswith("grounded on fox.png")]
    assert "a fox\ufffd[31m\ufffd that runs" in line and line.endswith("…") and len(line) < 100
    _, out, _ = run("search", "a fox", *chosen)
    assert "\x1b" not in out and "a fox" in out


@pytest.mark.parametrize("out", ["/proc/nope/x.png", "photos/x.png/y.png", "folder.png", f"{'x' * 300}.png"])
@pytest.mark.parametrize("samples", [1, 2])
def test_out_is_checked_before_anything_is_drawn(memory: Path, run, monkeypatch, out, samples):
    from racm3.testing import PaintingGenerator

    for folder in ("folder.png", "folder-2.png"):
        Path(folder).mkdir()
    Path("photos/x.png").touch()
    before = sorted(Path().rglob("*"))
    monkeypatch.setattr(PaintingGenerator, "generate", lambda *_, **__: pytest.fail("drawn in vain"))
    code, _, err = run("generate", "x", "--out", out, "-n", samples, "--memory", memory, "--preset", "toy")
    assert code == 1 and "cannot be written: " in err and "Give another --out." in err
    assert sorted(Path().rglob("*")) == before


def test_a_picture_is_saved_whole_or_not_at_all(memory: Path, run, monkeypatch):
    chosen = ("--memory", memory, "--preset", "toy", "-k", 1)
    run("generate", "a fox", "--out", "x.png", "--seed", 1, *chosen)
    first = Path("x.png").read_bytes()

    def full(self, path, *_, **__):
        Path(path).write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PIL.Image.Image, "save", full)
    code, _, err = run("generate", "a whale", "--out", "x.png", *chosen)
    assert code == 1 and "x.png cannot be written: No space left on device" in err
    assert Path("x.png").read_bytes() == first and not [p for p in Path().iterdir() if p.name.startswith(".")]


def test_caption_prints_words(memory: Path, run):
    chosen = ("--memory", memory, "--preset", "toy", "-k", 1)
    PIL.Image.new("RGB", (20, 20), COLOURS["whale"]).save("like-a-whale.png")
    code, out, err = run("caption", "like-a-whale.png", *chosen)
    assert code == 0 and out == "a whale [bold] 凧\n" and "grounded on whale.png" in err
    code, out, _ = run("caption", "like-a-whale.png", "--json", *chosen)
    assert code == 0 and json.loads(out)["outputs"][0]["filled"] == [{"text": "a whale [bold] 凧"}]
    assert run("caption", "like-a-whale.png", "--max-text-tokens", 2, *chosen)[1] == "a whale\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("caption", "nope.png", "--preset", "toy"), "nope.png cannot be read: No such file or directory. Give the"),
        (("caption", __file__, "--preset", "toy"), "in PNG, JPEG, WEBP, GIF, BMP format. Convert it"),
        (("search", "--image", __file__, "--preset", "toy"), "test_cli.py is not a picture"),
        (
            ("search", "x", "--memory", "nowhere", "--preset", "toy"),
            "There is no memory at nowhere. No memory named 'nowhere'. Installed: ",
        ),
        (("search", "x", "--preset", "toy"), "toy-memory. Make one: racm3 index FOLDER --preset toy --memory"),
        (("search", "x", "--preset", "tyo"), "Did you mean 'toy'?"),
        (("search", "x", "--config", "nope.toml"), "There is no pipeline file nope.toml"),
        (("search", "x", "--config", __file__), "test_cli.py is not valid TOML: "),
        (("search", "x", "--config", "."), ". cannot be read: Is a directory. Give a TOML file"),
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


def test_a_warning_is_shown_once(memory: Path, run):
    nothing = ("--where", '{"path": "x"}', "--memory", memory, "--preset", "toy")
    code, _, err = run("generate", "a fox", *nothing)
    assert code == 0 and err.count("Nothing was retrieved") == 1
    assert err.startswith("Warning: Nothing was retrieved: no document passes the filter. The answer is not grounded.")


NOISY = """
import logging, warnings
from racm3.testing import HashingRetriever
@hookimpl
def racm3_components():
    yield Component(Retriever, "noisy", "racm3_noisy:Noisy")
class Noisy(HashingRetriever):
    def encode_query(self, queries, **options):
        logging.info("configures the root logger where nobody has")
        logging.warning("noise of a library")
        warnings.warn("noise of another")
        logging.getLogger("racm3.noisy").info("a detail")
        for _ in queries * 2:
            logging.getLogger("racm3.noisy").warning("of %s", "interest")
        return super().encode_query(queries, **options)
"""


def test_libraries_are_silent_and_what_racm3_says_is_shown_once(memory: Path, install):
    install("racm3-noisy", NOISY)
    Path("p.toml").write_text('[retriever]\nname = "noisy"\n[memory]\nname = "faiss"\npath = "mem"')
    code = f"import sys; sys.path.insert(0, {str(Path('../site').resolve())!r}); from racm3.cli import main; main()"

    def search(*more: str) -> str:
        line = [sys.executable, "-c", code, "search", "fox", "--config", "p.toml", *more]
        environment = {**os.environ, "RACM3_PLUGINS": "noisy"}
        return subprocess.run(line, env=environment, capture_output=True, text=True, check=True).stderr

    assert search() == "Warning: Of interest\n"
    assert "WARNING:root:noise of a library" in search("--debug")


def test_long_work_is_told_of_where_there_is_no_terminal(photos: Path, run, capsys):
    _, _, err = run("index", photos, "--memory", "mem", "--preset", "toy")
    assert err == "Indexing " + str(photos) + " ...\n"
    from racm3.cli import output

    with output.stages("Loading") as progress:
        for done, stage in enumerate(("Drawing", "Captioning", "Done")):
            progress(done, 2, stage)
    assert capsys.readouterr().err == "Loading ...\nDrawing (1 of 2) ...\nCaptioning (2 of 2) ...\n"


def test_progress_is_told_with_its_rate(monkeypatch, capsys):
    from racm3.cli import output

    clock = iter([0.0, 4.0, 12.0, 15.0, 30.0])
    monkeypatch.setattr(output.time, "monotonic", lambda: next(clock))
    with output.progress("Indexing") as progress:
        for done in (10, 60, 70, 300):
            progress(done, 1000, "kite.png")
    assert capsys.readouterr().err == "Indexing ...\n60/1000 (5.0/s)\n300/1000 (10.0/s)\n"


def test_version_and_no_arguments(toy: Path, run):
    assert run("--version")[1].strip()[0].isdigit()
    code, out, err = run()
    assert code in (0, 2) and "generate" in out + err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_an_answer_that_cannot_be_written_is_one_line(memory: Path, run, monkeypatch):
    for options in ((), ("--json",)):
        # Closing it fails once more.
        with suppress(OSError), Path("/dev/full").open("w") as full, monkeypatch.context() as patched:
            patched.setattr(sys, "stdout", full)
            code, _, err = run("search", "fox", "--memory", "mem", "--preset", "toy", *options)
        assert (code, err) == (1, "Error: The answer cannot be written: No space left on device.\n")


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


@pytest.mark.parametrize("stage", ["image-tokenizer", "retriever", "generator"])
def test_every_key_of_a_recipe_is_explained(run, stage):
    code, shown, _ = run("train", "keys", stage, "--json")
    keys = json.loads(shown)
    assert code == 0 and {"[data]", "[model]", "[trainer]"} <= {key["table"] for key in keys}
    assert [key["key"] for key in keys if not key["meaning"]] == []
    rate = next(key for key in keys if key["key"] == "learning_rate")
    assert rate["default"] == ("that of its size" if stage == "generator" else "needed")


def test_keys_of_no_stage_are_told(run):
    code, _, said = run("train", "keys", "generatr")
    assert code == 1 and "Did you mean 'generator'?" in said


def test_a_run_that_cannot_be_written_is_said_at_once(run, tmp_path):
    recipe = Path(__file__).parents[1] / "examples" / "recipes" / "generator.toml"
    (tmp_path / "file").write_text("")
    for folder in ("/proc/x", str(tmp_path / "file")):
        code, _, err = run("train", "generator", str(recipe), "--run", folder)
        assert code == 1 and f"{folder} cannot be written" in err.replace("\n", "") and "Give another --run." in err
