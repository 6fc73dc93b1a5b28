"""Pipeline files: what may stand in them, and what is said when it does not fit."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent
from typing import Self

import pytest
from pydantic import BaseModel, model_validator

from racm3 import MemoryStore, Options, Pipeline
from racm3.config import load_config
from racm3.errors import ConfigError, PluginNotFound
from racm3.settings import settings_model, validate

GOOD = """
[retriever]
name = "hashing"
dim = 32
[memory]
name = "faiss"
path = "./memory"
[generator]
name = "painting"
"""


@pytest.fixture
def write(toy: Path):
    def write(text: str) -> Path:
        file = toy / "files" / "pipeline.toml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(dedent(text), encoding="utf-8")
        return file

    return write


def test_a_file_names_its_components_and_their_settings(write):
    config = load_config(write(GOOD))
    assert (config.retriever.name, dict(config.retriever.settings)) == ("hashing", {"dim": 32})
    assert config.generator is not None and config.generator.name == "painting"
    assert config.sampler.name == "diverse", "the default"
    assert config.memory.interface is MemoryStore


def test_a_pipeline_without_a_generator_only_searches(write):
    assert load_config(write(GOOD.split("[generator]")[0])).generator is None


def test_paths_belong_to_the_folder_of_the_file(write, toy: Path):
    assert load_config(write(GOOD)).memory.settings["path"] == toy / "files" / "memory"
    assert load_config(Path("files/pipeline.toml")).memory.settings["path"] == toy / "files" / "memory"


def test_paths_of_mappings_and_overrides_belong_to_the_current_folder(write, toy: Path):
    mapping = {"retriever": {"name": "hashing"}, "memory": {"name": "faiss", "path": "here"}}
    assert load_config(mapping).memory.settings["path"] == toy / "here"
    config = load_config(write(GOOD), overrides={"memory": {"path": "there"}})
    assert config.memory.settings["path"] == toy / "there"


def test_absolute_paths_and_home_are_kept(write, toy: Path, monkeypatch):
    monkeypatch.setenv("HOME", str(toy))
    assert load_config(write(GOOD.replace("./memory", "/srv/memory"))).memory.settings["path"] == Path("/srv/memory")
    assert load_config(write(GOOD.replace("./memory", "~/memory"))).memory.settings["path"] == toy / "memory"


def test_overrides_win_replace_and_leave_out(write):
    config = load_config(
        write(GOOD),
        overrides={"retriever": {"dim": 8}, "sampler": {"name": "topk"}, "generator": None},
    )
    assert dict(config.retriever.settings) == {"dim": 8}
    assert config.sampler.name == "topk"
    assert config.generator is None
    replaced = load_config(write(GOOD), overrides={"retriever": {"name": "clip"}})
    assert dict(replaced.retriever.settings) == {}, "settings of another component do not carry over"


def test_options_of_every_answer(write):
    text = GOOD + "[options]\ntop_p = 0.9\nseed = 3\n"
    assert load_config(write(GOOD)).options == {}
    assert load_config(write(text)).options == {"top_p": 0.9, "seed": 3}
    assert load_config(write(text), overrides={"options": {"seed": 1}}).options == {"top_p": 0.9, "seed": 1}
    assert load_config(write(text), overrides={"options": None}).options == {}
    with pytest.raises(
        ConfigError, match=r"pipeline.toml: \[options\]: .* has no setting 'topp'.*Did you mean 'top_p'"
    ):
        load_config(write(text.replace("top_p", "topp")))
    with pytest.raises(ConfigError, match=r"\[options\]: .*top_p = 9.0 is not valid"):
        load_config(write(text.replace("0.9", "9.0")))
    with Pipeline.from_config(write(text), options=Options(top_p=0.8)) as pipeline:
        assert dict(pipeline.options) == {"top_p": 0.8, "seed": 3}
    with pytest.raises(ConfigError, match="have no n: each call says how many"):
        load_config(write(text.replace("seed", "n")))
    with pytest.raises(ConfigError, match=r"options = 3 is not a table. Write \[options\] with its settings in it"):
        load_config(write(f"options = 3\n{GOOD}"))
    with pytest.raises(ConfigError, match=r"memory = './m' is not a table. Give its settings as a mapping: memory={"):
        Pipeline.from_config(write(GOOD), memory="./m")


def test_a_setting_that_is_a_name_or_a_path(install, own_registry, tmp_path: Path):
    source = """
    from pathlib import Path
    from racm3.testing import HashingRetriever
    @hookimpl
    def racm3_components():
        yield Component(Retriever, "either", "racm3_either:Either")
    class Either(HashingRetriever):
        def __init__(self, model: str | Path = "ViT"): super().__init__()
    """
    install("racm3-either", source)
    (tmp_path / "weights").mkdir()
    file = tmp_path / "p.toml"

    def model(value: str) -> object:
        file.write_text(f'[retriever]\nname = "either"\nmodel = "{value}"\n[memory]\nname = "faiss"')
        return load_config(file).retriever.settings["model"]

    assert model("ViT-B-32") == "ViT-B-32"
    assert model("weights") == tmp_path / "weights"
    assert model("./absent") == tmp_path / "absent"


def test_secrets_come_from_the_environment_and_are_never_shown(write, monkeypatch):
    monkeypatch.setenv("DIM", "16")
    text = GOOD.replace("dim = 32", 'dim = { env = "DIM" }')
    config = load_config(write(text))
    assert config.retriever.create().dim == 16
    monkeypatch.setenv("DIM", "s3cret")
    with pytest.raises(ConfigError) as raised:
        load_config(write(text))
    assert "s3cret" not in repr(config)
    error: BaseException | None = raised.value
    while error is not None:
        assert "s3cret" not in str(error)
        error = error.__cause__ or error.__context__
    monkeypatch.delenv("DIM")
    with pytest.raises(ConfigError, match=r"retriever.dim: the environment variable 'DIM' is not set"):
        load_config(write(text))


def test_what_is_wrong_inside_a_table_is_told_without_the_rest_of_it():
    class Caller:
        def __init__(self, headers: dict[str, str]) -> None: ...

    model = settings_model(Caller)
    with pytest.raises(ConfigError, match=r"headers\.X-N = 3 is not valid") as raised:
        validate(model, {"headers": {"Authorization": "s3cret", "X-N": 3}}, "Caller")
    assert "s3cret" not in str(raised.value)


def test_settings_that_do_not_go_together_are_told():
    class Range(BaseModel):
        low: int = 0
        high: int = 1

        @model_validator(mode="after")
        def ordered(self) -> Self:
            if self.low > self.high:
                raise ValueError("low is above high")
            return self

    with pytest.raises(ConfigError, match=r"^A range: low is above high\.$"):
        validate(Range, {"low": 3}, "A range")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "[memory]",
            "[memroy]",
            "No table 'memroy'. Tables: retriever, memory, sampler, generator, options. Did you mean 'memory'?",
        ),
        (
            "path =",
            "pth =",
            "Memory 'faiss' has no setting 'pth'. Settings: path, read_only, precision, images, durable. Did you mean 'path'?",
        ),
        ("dim = 32", "dim = 'wide'", "Retriever 'hashing': dim = 'wide' is not valid: Input should be a valid integer"),
        ('name = "painting"', "", "The table [generator] needs a name"),
        ('name = "painting"', "name = 3", "The table [generator] needs a name"),
        ("[retriever]", "retriever = 3\n[sampler]", "retriever = 3 is not a table"),
        ("[retriever]", "[retriever", "is not valid TOML"),
    ],
)
def test_what_does_not_fit_is_said_with_the_name_of_the_file(write, old, new, message):
    with pytest.raises(ConfigError) as raised:
        load_config(write(GOOD.replace(old, new)))
    assert message in str(raised.value)
    assert "pipeline.toml" in str(raised.value)


@pytest.mark.parametrize("table", ["retriever", "memory"])
def test_a_pipeline_needs_a_retriever_and_a_memory(table):
    tables = {"retriever": {"name": "clip"}, "memory": {"name": "faiss"}}
    del tables[table]
    with pytest.raises(ConfigError, match=rf"The table \[{table}\] is missing"):
        load_config(tables)


def test_an_unknown_component_suggests_one(write):
    with pytest.raises(PluginNotFound, match=r"pipeline.toml: No memory named 'fais'.*Did you mean 'faiss'"):
        load_config(write(GOOD.replace('"faiss"', '"fais"')))


def test_a_file_that_is_not_there(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"There is no pipeline file .*nope\.toml"):
        load_config(tmp_path / "nope.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)


def test_a_file_that_is_not_text(tmp_path: Path):
    (tmp_path / "p.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"p\.toml is not valid TOML"):
        load_config(tmp_path / "p.toml")
