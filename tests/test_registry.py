"""Plugins: found, loaded each on its own, told apart by name, and isolated when broken."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from racm3 import (
    Blank,
    Component,
    Document,
    Generation,
    Generator,
    MemoryStore,
    Preset,
    Retriever,
    Sampler,
    hookimpl,
)
from racm3.discovery import PluginInfo, PluginWarning
from racm3.errors import ConfigError, PluginError, PluginLoadFailed, PluginNotFound
from racm3.interfaces import Output, Query, Selection
from racm3.registry import Registry, registry

pytestmark = pytest.mark.usefixtures("own_registry")

GOOD = """
@hookimpl
def racm3_components():
    yield Component(Retriever, "hash", "racm3.testing.fakes:HashingRetriever", summary="words")
"""


def discovered() -> Registry:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PluginWarning)
        return Registry().discover()


def plugin(found: Registry, distribution: str) -> PluginInfo:
    return next(info for info in found.plugins() if info.distribution == distribution)


# A healthy plugin


def test_a_plugin_is_found_listed_and_made(install):
    install("racm3-good", GOOD, version="2.3", requires=["racm3>=0.1"])
    found = discovered()
    info = plugin(found, "racm3-good")
    assert (info.name, info.version, info.status, info.error) == ("good", "2.3", "ok", "")
    assert [(record.kind, record.name, record.summary) for record in info.components] == [
        ("retriever", "hash", "words")
    ]
    assert "hash" in found.names(Retriever)
    assert found.create(Retriever, "hash", {"dim": 8}).dim == 8
    assert found.create(Retriever, "racm3-good:hash").dim == 64
    assert found.create(Retriever, "RACM3_Good:hash").dim == 64


def test_builtins_come_through_the_same_hook():
    found = Registry()
    assert found.plugins()[0].distribution == "racm3"
    assert found.names(Sampler) == ["diverse", "random", "topk"]
    assert [found.component(kind, name).target for kind, name in ((Retriever, "clip"), (MemoryStore, "faiss"))] == [
        "racm3.retrievers.clip:ClipRetriever",
        "racm3.memories.faiss:FaissMemory",
    ]
    assert found.component(Generator, "racm3:cm3") == found.component(Generator, "cm3")


def test_a_component_is_imported_when_it_is_first_used(install):
    source = 'open(__file__ + ".imported", "w")\nfrom racm3.testing import HashingRetriever as Mine'
    hooks = '@hookimpl\ndef racm3_components():\n    yield Component(Retriever, "late", "late_parts:Mine")'
    install("racm3-late", hooks, modules={"late_parts": source})
    found = discovered()
    component = found.component(Retriever, "late")
    assert "late_parts" not in sys.modules
    found.resolve(component)
    assert "late_parts" in sys.modules


def test_an_object_registers_without_being_installed():
    class Mine:
        @hookimpl
        def racm3_components(self):
            return [Component(Retriever, "mine", "racm3.testing:HashingRetriever")]

    found = Registry()
    found.register(Mine(), name="mine")
    assert found.create(Retriever, "local:mine").dim == 64


def test_registering_a_broken_object_raises():
    class Broken:
        @hookimpl
        def racm3_components(self):
            raise OSError("no disk")

    with pytest.raises(PluginLoadFailed, match="OSError: no disk"):
        Registry().register(Broken(), name="broken")


# What discovery never does


def test_a_keyboard_interrupt_is_never_swallowed(install):
    install("racm3-slow", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        discovered()


def test_a_plugin_whose_preset_hook_fails_still_says_so_when_its_component_is_asked_for(install):
    install("racm3-half", GOOD + "\n@hookimpl\ndef racm3_presets(): raise RuntimeError('half')")
    found = discovered()
    assert "hash" not in found.names(Retriever)
    with pytest.raises(PluginLoadFailed, match=r"Retriever 'hash' comes from racm3-half 1\.0, which is broken.*half"):
        found.component(Retriever, "hash")


def test_not_found_lists_what_is_installed_and_suggests(install):
    install("racm3-chroma", '@hookimpl\ndef racm3_components():\n    yield Component(MemoryStore, "chroma", "a:B")')
    with pytest.raises(PluginNotFound) as raised:
        discovered().component(MemoryStore, "chrom")
    assert str(raised.value) == "No memory named 'chrom'. Installed: chroma, faiss. Did you mean 'chroma'?"


# Which plugins are loaded


@pytest.mark.parametrize(
    "line",
    [
        "racm3>=0.1",
        "racm3 >= 0.1.0.0, <0.2",
        "racm3",
        "racm3~=0.1",
        "racm3[dev]>=0.1",
        "racm3>=99; extra == 'dev'",
        "racm3-emoji>=99",
        "?!",
    ],
)
def test_other_requirements_do_not_matter(install, line):
    install("racm3-fine", GOOD, requires=[line])
    assert plugin(discovered(), "racm3-fine").status == "ok"


@pytest.mark.parametrize(("allowed", "expected"), [("", []), ("racm3-good", ["ok"]), ("GOOD, x", ["ok"]), ("bad", [])])
def test_the_allow_list(install, monkeypatch, allowed, expected):
    install("racm3-good", GOOD)
    monkeypatch.setenv("RACM3_PLUGINS", allowed)
    infos = [info for info in registry().plugins() if info.distribution == "racm3-good"]
    assert [info.status for info in infos if info.status == "ok"] == expected
    assert "topk" in registry().names(Sampler)
    if not expected:
        assert "racm3_good" not in sys.modules
        with pytest.raises(PluginLoadFailed, match="RACM3_PLUGINS"):
            registry().component(Retriever, "racm3-good:hash")


def test_strict_raises_at_once(install, monkeypatch):
    install("racm3-bad", "import no_such_package")
    monkeypatch.setenv("RACM3_STRICT", "1")
    for _ in range(2):
        with pytest.raises(PluginLoadFailed, match="racm3-bad"):
            registry()


def test_a_plugin_that_asks_for_the_registry_at_import(install):
    install("racm3-eager", "from racm3.registry import registry\nregistry().names(Sampler)\n" + GOOD)
    assert registry() is registry()
    assert plugin(registry(), "racm3-eager").status == "ok"


# Settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"pth": "x"},
            "Memory 'faiss' has no setting 'pth'. Settings: path, read_only, precision, images, durable. Did you mean 'path'?",
        ),
        ({"path": 12}, "Memory 'faiss': path = 12 is not valid"),
        ({"path": "x", "read_only": "perhaps"}, "read_only = 'perhaps' is not valid"),
    ],
)
def test_settings_are_checked_against_the_constructor(settings, message):
    with pytest.raises(ConfigError) as raised:
        Registry().create(MemoryStore, "faiss", settings)
    assert message in str(raised.value)


def test_a_setting_without_default_is_required():
    with pytest.raises(ConfigError, match="Generator 'cm3' needs the setting 'checkpoint'"):
        Registry().create(Generator, "cm3", {})


def test_the_settings_are_a_pydantic_model_with_a_schema():
    found = Registry()
    schema = found.settings_model(found.component(Sampler, "diverse")).model_json_schema()
    assert schema["additionalProperties"] is False
    assert schema["properties"]["threshold"]["default"] == 0.9


# Presets


def test_presets_are_mappings_files_or_functions(install, tmp_path: Path):
    source = """
    from pathlib import Path
    @hookimpl
    def racm3_presets():
        yield Preset("table", {"memory": {"name": "faiss"}})
        yield Preset("file", Path("/nowhere/x.toml"))
        yield Preset("function", "racm3_pre:made")
        yield Preset("failing", "racm3_pre:fails")
        yield Preset("wrong", "racm3_pre:wrong")
    def made(): return {"memory": {"name": "chroma"}}
    def fails(): raise KeyError("token")
    def wrong(): return 3
    """
    install("racm3-pre", source)
    found = discovered()
    assert found.presets() == ["failing", "file", "function", "table", "wrong"]
    assert found.preset("table") == {"memory": {"name": "faiss"}}
    assert found.preset("file") == Path("/nowhere/x.toml")
    assert found.preset("racm3-pre:function") == {"memory": {"name": "chroma"}}
    with pytest.raises(PluginLoadFailed, match=r"'failing' of racm3-pre 1.0 failed: KeyError"):
        found.preset("failing")
    with pytest.raises(PluginLoadFailed, match="gave int"):
        found.preset("wrong")
    with pytest.raises(PluginNotFound, match="Did you mean 'table'"):
        found.preset("tabel")


def test_a_preset_needs_a_name_and_something_to_come_from():
    with pytest.raises(ValueError, match="is not a name"):
        Preset("", {})
    with pytest.raises(ValueError, match="not a target"):
        Preset("x", "file.toml")


# Observers


def test_observers_are_called_in_order_and_one_that_raises_is_counted(install, caplog):
    install("racm3-a", "seen = []\n@hookimpl\ndef racm3_retrieved(query, selection): seen.append(selection)")
    install("racm3-b", "@hookimpl\ndef racm3_retrieved(selection): raise SystemExit(2)")
    install("racm3-c", "seen = []\n@hookimpl\ndef racm3_retrieved(query): seen.append(query)")
    found = discovered()
    query, selection = Query(Document("x")), Selection([])
    found.notify_retrieved(query, selection)
    found.notify_retrieved(query, selection)
    import racm3_a
    import racm3_c

    assert racm3_a.seen == [selection, selection] and racm3_c.seen == [query, query]
    assert plugin(found, "racm3-b").observer_errors == 2
    assert "racm3_retrieved of the plugin racm3-b 1.0 failed" in caplog.text


def test_an_interrupted_observer_interrupts(install):
    install("racm3-a", "@hookimpl\ndef racm3_generated(generation): raise KeyboardInterrupt")
    prompt = Document(["x", Blank("text")])
    with pytest.raises(KeyboardInterrupt):
        discovered().notify_generated(Generation(prompt, [Output(Document(["x", "y"]), -1.0, 1)]))


def test_a_plugin_can_be_taken_out_later(install):
    install("racm3-good", GOOD)
    found = discovered()
    with pytest.warns(PluginWarning, match="racm3_commands failed: ValueError: no"):
        found.disable(plugin(found, "racm3-good"), "racm3_commands failed", ValueError("no"))
    with pytest.raises(PluginError, match="racm3_commands failed"):
        found.component(Retriever, "hash")


def test_fifty_plugins_import_nothing_heavy(install):
    """How long it takes is measured by tests/bench/discovery.py."""
    for number in range(50):
        install(f"racm3-p{number}", GOOD.replace('"hash"', f'"hash{number}"'), requires=["racm3>=0.1,<0.2"])
    code = (
        "import sys\n"
        f"sys.path.insert(0, {sys.path[0]!r})\n"
        "from racm3.registry import registry\n"
        "assert len([info for info in registry().plugins() if info.status == 'ok']) > 50\n"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "faiss", "transformers", "open_clip", "diffusers", "numpy", "PIL", "pydantic", "packaging"}
    assert not heavy & set(done.stdout.split())
