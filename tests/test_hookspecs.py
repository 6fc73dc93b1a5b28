"""Hooks: the example in each docstring is a plugin as it stands, and does what it says."""

from __future__ import annotations

import inspect

import pytest

from racm3 import Document, Pipeline, Sampler, hookspecs
from racm3.cli import main
from racm3.config import load_config
from racm3.discovery import HOOKS
from racm3.memories.faiss import FaissMemory
from racm3.registry import registry
from racm3.testing import HashingRetriever, PaintingGenerator

pytestmark = pytest.mark.usefixtures("toy")


@pytest.fixture
def paste(install):
    """Installs the example of a hook, copied out of its docstring, as the only code of the plugin racm3-pasted."""

    def paste(hook: str) -> None:
        _, example = inspect.getdoc(getattr(hookspecs, hook)).split("\n\n", 1)
        install("racm3-pasted", example)
        (info,) = [info for info in registry().plugins() if info.distribution == "racm3-pasted"]
        assert (info.status, info.error) == ("ok", "")
        assert [one for one in HOOKS if getattr(info.hooks, one).get_hookimpls()] == [hook]
        assert registry().faults(info) == []

    return paste


def test_there_are_five_hooks_and_each_has_an_example():
    assert HOOKS == ("racm3_commands", "racm3_components", "racm3_generated", "racm3_presets", "racm3_retrieved")


def drawn() -> Pipeline:
    made = Pipeline(HashingRetriever(), FaissMemory(), registry().create(Sampler, "topk"), PaintingGenerator(size=8))
    made.add([Document("a red kite", id="kite"), Document("a grey whale", id="whale")])
    return made


def test_racm3_components(paste):
    paste("racm3_components")
    sampler = registry().create(Sampler, "first")
    with drawn() as pipeline:
        pipeline.sampler = sampler
        assert [hit.id for hit in pipeline.imagine("a whale", k=1, seed=1).hits] == ["whale"]


def test_racm3_presets(paste):
    paste("racm3_presets")
    config = load_config(registry().preset("birds"))
    assert (config.retriever.name, config.memory.name, config.generator) == ("clip", "faiss", None)
    assert config.sampler.create().threshold == 0.8


def test_racm3_commands(paste, capsys):
    paste("racm3_commands")
    with pytest.raises(SystemExit) as ended:
        main(["hello", "--name", "Ada"])
    assert not ended.value.code and capsys.readouterr().out == "Hello, Ada!\n"


def test_racm3_retrieved(paste, capsys):
    paste("racm3_retrieved")
    with drawn() as pipeline:
        pipeline.imagine("a whale", k=1, seed=1)
    assert capsys.readouterr().out == "a whale -> ['whale']\n"


def test_racm3_generated(paste, capsys):
    paste("racm3_generated")
    with drawn() as pipeline:
        answer = pipeline.imagine("a whale", k=1, seed=17)
    assert capsys.readouterr().out == f"17 {answer.log_probability}\n"
