"""What the command line has for who writes a plugin: check, new, schema, show, and a memory by its name."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import jsonschema
import pytest

from racm3.config import load_config

MEMORY = """
@hookimpl
def racm3_components():
    yield Component(MemoryStore, "shelf", "racm3.scaffold.memory:ExampleMemory", summary="one file")
    yield Component(Sampler, "twice", "racm3_shelf_parts:Twice", contract="racm3_shelf_parts:TwiceContract")
    yield Component(Sampler, "odd", "racm3.samplers.topk:TopKSampler", contract="racm3_shelf_parts:Twice")
"""
COMPONENT = """
@hookimpl
def racm3_components():
    yield Component(MemoryStore, "exits", "exits:Exits")
    yield Component(MemoryStore, "quits", "exits:Exits", contract="quits:Contract")
"""
PARTS = """
from racm3.interfaces import Selection
from racm3.testing import SamplerContract

class Twice(Sampler):
    def __init__(self, times: int = 2) -> None:
        self.times = times

    def sample(self, query, hits, *, k, rng):
        return Selection([hit for hit in hits for _ in range(self.times)][:k])

class TwiceContract(SamplerContract):
    skips = {"test_no_documents_can_be_asked_for": "nobody asks for none"}

    def create(self):
        return Twice(**self.settings)
"""


@pytest.fixture
def shelf(toy: Path, install) -> Path:
    """The plugins racm3-toy and racm3-shelf, which has a good memory and a bad sampler."""
    install("racm3-shelf", MEMORY, modules={"racm3_shelf_parts": PARTS})
    return toy


# Check


def test_check_names_each_rule_and_what_is_broken(shelf: Path, run):
    code, out, _ = run("plugins", "check", "twice")
    assert code == 1
    assert "  FAILED  it_chooses_k_of_the_candidates: At most k, none twice" in out
    assert "          how many different documents are chosen: expected 2, got 1" in out
    assert "  skipped no_documents_can_be_asked_for: k=0 chooses nothing" in out
    assert "          nobody asks for none" in out
    assert "  ok      its_settings_can_be_described" in out and ", 1 skipped, in " in out


def test_check_passes_settings_on_and_prints_json(shelf: Path, run):
    code, out, _ = run("plugins", "check", "racm3-shelf:twice", "--set", "times=1", "--json")
    (report,) = json.loads(out)
    assert {"name": "racm3-shelf:twice", "interface": "sampler", "skipped": 1}.items() <= report.items()
    broken = {check["check"]: check["why"] for check in report["checks"] if check["outcome"] == "failed"}
    assert code == bool(broken) and "test_it_chooses_k_of_the_candidates" not in broken


def test_check_takes_a_distribution_or_the_settings_of_a_pipeline(shelf: Path, run):
    code, out, _ = run("plugins", "check", "racm3", "--json", "--set", "bogus=1")
    assert code == 1 and out == ""
    code, out, _ = run("plugins", "check", "hashing", "--preset", "toy", "--json")
    assert code == 0 and json.loads(out)[0]["failed"] == 0
    Path("p.toml").write_text(
        '[retriever]\nname="hashing"\n[memory]\nname="shelf"\npath="kept"\n[sampler]\nname="topk"\n'
    )
    code, _, err = run("plugins", "check", "diverse", "--config", "p.toml")
    assert code == 1 and "That pipeline's sampler is 'topk', not 'diverse'." in err
    code, out, _ = run("plugins", "check", "topk", "--config", "p.toml")
    assert code == 0 and "0 failed" in out
    assert not Path("kept").exists()


def test_a_plugin_that_cannot_be_used_is_named(shelf: Path, run, install):
    install("acme-stuff", "import no_such_package")
    code, out, err = run("plugins", "check", "Acme_Stuff")
    assert code == 1 and out == "" and "Error: The plugin acme-stuff 1.0 is broken: " in err
    for command in (("plugins", "check", "vault"), ("search", "x", "--memory", "vault", "--preset", "toy")):
        code, out, err = run(*command)
        assert code == 1 and out == "" and "Not usable, as `racm3 plugins` explains: acme-stuff 1.0 (broken)." in err


def test_a_memory_that_exits_fails_its_checks_one_by_one(shelf: Path, run, install):
    source = """
    from racm3.scaffold.memory import ExampleMemory
    class Exits(ExampleMemory):
        def search(self, *arguments, **options): raise SystemExit(3)
    """
    install("racm3-exits", COMPONENT, modules={"exits": source, "quits": "raise SystemExit(4)"})
    code, out, _ = run("plugins", "check", "exits")
    assert code == 1 and "          SystemExit: 3 (exits.py, line 5)" in out
    assert "  ok      what_is_read_back_equals_what_was_stored" in out and " failed, 0 skipped, in " in out
    code, out, err = run("plugins", "check", "quits")
    assert code == 1 and "The contract of 'quits', quits:Contract, cannot be loaded: SystemExit: 4." in err
    code, out, err = run("index", ".", "--memory", "exits", "--preset", "toy")
    code, out, err = run("search", "x", "--memory", "exits", "--preset", "toy")
    assert code == 1 and "Error: Memory 'exits' of racm3-exits 1.0 raised SystemExit: 3." in err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("check", "shlef"), 1, "Did you mean 'shelf'?"),
        (("check", "odd"), 1, "The contract of 'odd', racm3_shelf_parts:Twice, is no SamplerContract."),
        (("check", "diverse", "--set", "treshold=1"), 1, "Did you mean 'threshold'?"),
        (("check", "diverse", "--set", "threshold"), 2, "KEY=VALUE is needed"),
        (("new", "shelf", "--interface", "memory"), 1, "A memory named 'shelf' is installed already."),
        (("new", "shelf", "--interface", "sampler"), 1, "A package racm3-shelf is installed already: racm3-shelf 1.0."),
        (("new", "My Shelf", "--interface", "memory"), 1, "is no name for a plugin"),
        (("new", "mine", "--interface", "shelf"), 2, "--interface"),
        (("new", "mine", "--interface", "memory", "--out", "full"), 1, "full is there already"),
    ],
)
def test_what_cannot_be_done_is_said(shelf: Path, run, arguments, code, message):
    Path("full").mkdir()
    Path("full", "file").touch()
    got, out, err = run("plugins", *arguments)
    assert got == code and out == "" and message in " ".join(err.split())
    assert sorted(path.name for path in shelf.iterdir()) == ["full"]


@pytest.mark.parametrize("command", ["plugins check", "plugins new", "config", "config schema", "config show"])
def test_help_has_an_example(shelf: Path, run, command):
    code, out, _ = run(*command.split(), "--help")
    assert code == 0 and "Example: racm3 " + command.split()[0] in out


# New


@pytest.mark.parametrize("interface", ["memory", "sampler", "retriever", "generator"])
def test_new_writes_a_whole_package(shelf: Path, run, interface):
    code, out, err = run("plugins", "new", "my-own", "--interface", interface)
    files = [Path(line) for line in out.splitlines()]
    assert code == 0 and "pip install -e racm3-my-own" in err
    assert sorted(files) == sorted(path for path in Path("racm3-my-own").rglob("*") if path.is_file())
    project = tomllib.loads(Path("racm3-my-own/pyproject.toml").read_text())["project"]
    assert project["entry-points"] == {"racm3": {"my-own": "racm3_my_own"}}
    assert project["dependencies"] == ["racm3>=0.1,<0.2"]
    for file in files:
        text = file.read_text()
        assert "$" not in text and "example" not in text.lower()
        if file.suffix == ".py":
            compile(text, file, "exec")
    assert not [path for path in shelf.iterdir() if path.name != "racm3-my-own"]


# Memories by name


def test_a_memory_is_chosen_by_its_name_or_its_path(shelf: Path, run):
    import PIL.Image

    Path("photos").mkdir()
    PIL.Image.new("RGB", (8, 8), "red").save("photos/kite.png")
    code, _, err = run("index", "photos", "--memory", "shelf", "--preset", "toy")
    assert code == 0, err
    assert Path("example-memory/documents.jsonl").exists()
    code, out, _ = run("search", "kite", "--memory", "shelf", "--preset", "toy", "--json")
    assert code == 0 and len(json.loads(out)) == 1
    code, _, err = run("search", "kite", "--memory", "./shelf", "--preset", "toy")
    assert code == 1 and "There is no memory at ./shelf" in err
    code, _, err = run("generate", "a kite", "--memory", "shelf", "--preset", "toy", "--out", "kite.png")
    assert code == 0 and "grounded on" in err


# Pipelines


def test_schema_describes_what_is_installed(shelf: Path, run, install):
    install(
        "racm3-bad", '@hookimpl\ndef racm3_components():\n    yield Component(Sampler, "bad", "no_such_module:Bad")'
    )
    code, out, err = run("config", "schema")
    schema = json.loads(out)
    assert code == 0 and "sampler bad is left out" in err
    jsonschema.Draft202012Validator.check_schema(schema)
    good = {
        "retriever": {"name": "clip", "model": "ViT-B-32", "dtype": "float16"},
        "memory": {"name": "shelf", "path": {"env": "SHELF"}},
        "sampler": {"name": "diverse", "threshold": 0.8},
    }
    jsonschema.validate(good, schema)
    jsonschema.validate({**good, "options": {"context_guidance": 3, "seed": 2}}, schema)
    for bad in (
        {**good, "options": {"context_guidence": 3}},
        {**good, "options": {"top_p": 2}},
        {**good, "memory": {"name": "no-such"}},
        {**good, "sampler": {"name": "diverse", "treshold": 0.8}},
        {**good, "retriever": {"name": "clip", "dtype": "float8"}},
        {"retriever": good["retriever"]},
        {**good, "generator": {"name": "cm3"}},  # the checkpoint is missing
        {**good, "generators": {}},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(bad, schema)


def test_show_hides_what_a_table_of_a_setting_has_from_the_environment(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOKEN", "a secret")
    Path("p.toml").write_text(
        '[retriever]\nname = "clip"\nmodel = "ViT-B-32"\n[memory]\nname = "chroma"\nhost = "localhost"\n'
        'headers = { Authorization = { env = "TOKEN" }, "X-N" = "3" }\n'
    )
    assert load_config(Path("p.toml")).memory.settings["headers"] == {"Authorization": "a secret", "X-N": "3"}
    for options in ((), ("--json",)):
        code, out, _ = run("config", "show", "--config", "p.toml", *options)
        assert code == 0 and "a secret" not in out and "***" in out and "X-N" in out


def test_show_prints_a_pipeline_file_with_everything_filled_in(shelf: Path, run, monkeypatch):
    monkeypatch.setenv("COUNT", "a secret")
    Path("p.toml").write_text(
        '[retriever]\nname = "clip"\nmodel = "./ü \\"x\\""\ncache_dir = "c"\ndevice = { env = "COUNT" }\n'
        '[memory]\nname = "shelf"\n[options]\ncontext_guidance = 3.0\ndecoding = "mixed"\n'
    )
    code, out, _ = run("config", "show", "--config", "p.toml")
    assert code == 0 and "a secret" not in out
    shown = tomllib.loads(out)
    assert shown["retriever"] | {"device": "***"} == shown["retriever"]
    assert shown["retriever"]["model"] == str(shelf / 'ü "x"') and shown["retriever"]["cache_dir"] == str(shelf / "c")
    assert shown["sampler"] == {"name": "diverse", "threshold": 0.9} and "generator" not in shown
    assert "# pretrained is not set" in out and 'dtype = "float32"  # default' in out and "# of racm3-shelf 1.0" in out
    assert shown["options"] == load_config(shown).options == {"context_guidance": 3.0, "decoding": "mixed"}
    assert load_config(shown).memory.settings == {"path": Path("example-memory").absolute()}
    code, out, _ = run("config", "show", "--preset", "toy", "--memory", "shelf", "--json")
    told = json.loads(out)
    assert code == 0 and told["memory"]["distribution"] == "racm3-shelf 1.0"
    assert told["generator"] == {"name": "painting", "distribution": "racm3-toy 1.0", "settings": {"size": 16}}


def test_a_component_that_needs_a_setting_says_so_once_and_keeps_no_others_from_being_checked(shelf: Path, run):
    code, out, err = run("plugins", "check", "clip")
    assert code == 1 and out == "" and err.count("pretrained must say") == 1
    code, out, err = run("plugins", "check", "racm3", "--json")
    assert "retriever racm3:clip is not checked" in err and "generator racm3:cm3 is not checked" in err
    assert {"racm3:diverse", "racm3:topk"} <= {one["name"] for one in json.loads(out)}
