"""Every way in which we know a package to be broken, and what holds for each of them.

The host starts, and all other components work; `racm3 plugins` names the culprit with its distribution, its version and
the cause; asking for its component by name is a typed error that says what to do. What a component does wrong when it
is used stands in test_crossing.py, and packages that pip has installed in test_installed_plugins.py.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from racm3 import Document, Generator, Pipeline, Retriever, Sampler
from racm3.cli import main
from racm3.discovery import PluginWarning
from racm3.errors import PluginConflict, PluginError, PluginIncompatible, PluginLoadFailed, PluginNotFound
from racm3.memories.faiss import FaissMemory
from racm3.registry import registry

pytestmark = [pytest.mark.usefixtures("toy"), pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning")]


@dataclass(frozen=True)
class Package:
    """The distribution racm3-bad 1.0, and what is said of it."""

    source: str
    cause: str
    modules: Mapping[str, str] = field(default_factory=dict)
    entry_points: Mapping[str, str] | None = None
    requires: Sequence[str] = ()
    spoil: Callable[[Path], object] = lambda site: None
    version: str = "1.0"
    status: str = "broken"
    error: type[PluginError] = PluginLoadFailed

    def install(self, install: Callable[..., None], site: Path) -> None:
        install("racm3-bad", self.source, modules=self.modules, entry_points=self.entry_points, requires=self.requires)
        self.spoil(site)


def hook(body: str, *, name: str = "components", arguments: str = "", before: str = "") -> str:
    return f"{before}\n@hookimpl\ndef racm3_{name}({arguments}):\n    {body}"


def points_to(value: str) -> dict[str, str]:
    return {"bad": value}


def info(site: Path) -> Path:
    return site / "racm3_bad-1.0.dist-info"


GOOD = hook('yield Component(Retriever, "bad", "racm3.testing:HashingRetriever")')
ENDLESS = "def again(): return again()\nagain()"
UNPRINTABLE = "class Shy(Exception):\n    def __str__(self): raise ValueError('no')\nraise Shy"

# The package as a whole cannot be used.
PACKAGES = {
    # its import
    "a missing dependency": Package("import no_such_package", "ModuleNotFoundError: No module named 'no_such_package'"),
    "a name that racm3 lacks": Package("from racm3 import Rtriever", "ImportError: cannot import name 'Rtriever'"),
    "a syntax error": Package("def (", "SyntaxError: invalid syntax"),
    "a wrong indentation": Package("if True:\npass", "IndentationError"),
    "null bytes": Package("x = '\0'", "null bytes"),
    "not UTF-8": Package("", "SyntaxError", spoil=lambda site: (site / "racm3_bad.py").write_bytes(b"x = '\xff'")),
    "SystemExit": Package("import sys; sys.exit(3)", "SystemExit: 3"),
    "a BaseException": Package("class Panic(BaseException): pass\nraise Panic('rust')", "Panic: rust"),
    "an endless recursion": Package(ENDLESS, "RecursionError"),
    "an error that cannot be printed": Package(UNPRINTABLE, "cannot be imported: Shy"),
    "an import of itself": Package("from racm3_bad import late", "cannot import name 'late'"),
    "a dir() that raises": Package("def __dir__(): raise OSError('no list')", "OSError: no list"),
    # its entry point
    "an entry point to no module": Package("", "'no_such_module' cannot", entry_points=points_to("no_such_module")),
    "an entry point to no attribute": Package("", "AttributeError", entry_points=points_to("racm3_bad:nothing")),
    "an entry point that is cut off": Package("", "'racm3_bad:' cannot", entry_points=points_to("racm3_bad:")),
    "an entry point that is prose": Package("", "'not a module!' cannot", entry_points=points_to("not a module!")),
    "an entry point to a number": Package("x = 3", "no function marked", entry_points=points_to("racm3_bad:x")),
    "an entry point to a class": Package(
        "class Plugin:\n    @hookimpl\n    def racm3_components(self): yield 1",
        "TypeError",
        entry_points=points_to("racm3_bad:Plugin"),
    ),
    "an editable folder that is gone": Package(
        GOOD, "No module named 'racm3_bad'", spoil=lambda site: (site / "racm3_bad.py").unlink()
    ),
    "entry points without a value": Package(
        GOOD, "cannot be read", spoil=lambda site: (info(site) / "entry_points.txt").write_text("[racm3]\nbad")
    ),
    "entry points that are no text": Package(
        GOOD, "cannot be read", spoil=lambda site: (info(site) / "entry_points.txt").write_bytes(b"[racm3]\n\xff=a")
    ),
    # its metadata
    "made for a later racm3": Package(
        "raise RuntimeError('imported')",
        "it requires racm3>=99, and this is racm3",
        requires=["racm3>=99"],
        status="incompatible",
        error=PluginIncompatible,
    ),
    "made for an earlier racm3": Package(
        "raise RuntimeError('imported')",
        "it requires racm3<0.1, and this is racm3",
        requires=["pillow", "RACM3 <0.1"],
        status="incompatible",
        error=PluginIncompatible,
    ),
    "a requirement that nobody can read": Package(
        "raise RuntimeError('imported')",
        "'racm3 >>> 2' cannot be read",
        requires=["racm3 >>> 2"],
        status="incompatible",
        error=PluginIncompatible,
    ),
    "no METADATA, and broken": Package(
        "import no_such_package", "no_such_package", spoil=lambda site: (info(site) / "METADATA").unlink(), version=""
    ),
    # its hooks
    "a misspelled hook": Package("@hookimpl\ndef racm3_component(): return []", "Did you mean 'racm3_components'?"),
    "a misspelled hook, unmarked": Package("def racm3_preset(): return []", "Did you mean 'racm3_presets'?"),
    "a hook without the marker": Package("def racm3_components(): return []", "not marked with @hookimpl"),
    "the marker on another function": Package("@hookimpl\ndef components(): return []", "unknown hook 'components'"),
    "a wrong signature": Package(hook("pass", name="retrieved", arguments="qury"), "qury"),
    "no hooks at all": Package("x = 1", "has no function marked @hookimpl"),
    # what its hooks do
    "a hook that raises": Package(hook("raise RuntimeError('boom')"), "racm3_components failed: RuntimeError: boom"),
    "a hook that raises late": Package(hook("yield from ()\n    raise RuntimeError('late')"), "RuntimeError: late"),
    "a hook that exits": Package(hook("raise SystemExit(1)", name="presets"), "racm3_presets failed: SystemExit"),
    "a hook that yields rubbish": Package(hook("yield 'faiss'"), "expected Component records, not 'faiss'"),
    "a hook that returns a number": Package(hook("return 5"), "expected Component records, not 5"),
    "a hook that returns a str": Package(hook("return 'emoji'", name="presets"), "expected Preset records"),
    "a hook that returns nothing": Package(hook("Preset('a', {})", name="presets"), "is a yield missing?"),
    "an async hook": Package(hook("return []").replace("def ", "async def "), "expected Component records"),
    "a component of no interface": Package(hook("yield Component(dict, 'a', 'a:b')"), "one of the interfaces"),
    "a component with a bad name": Package(hook("yield Component(Sampler, 'A b', 'a:b')"), "'A b' is not a name"),
    "a component with a bad target": Package(hook("yield Component(Sampler, 'a', 'a.b')"), "not a target"),
    "a summary that is no text": Package(hook("yield Component(Sampler, 'a', 'a:b', 3)"), "summary 3 is not a str"),
    "a component that is given twice": Package(
        hook("return [Component(Sampler, 'a', 'a:b'), Component(Sampler, 'a', 'a:c')]"), "'a' is given twice"
    ),
}

PARTS = """
from typing import TYPE_CHECKING, Callable
if TYPE_CHECKING:
    from decimal import Decimal
from racm3.testing import HashingRetriever

class Abstract(Retriever):
    def encode_document(self, documents, *, batch_size=None): ...
class Sampling(Sampler):
    def sample(self, query, hits, *, k, rng): ...
class Unrelated: ...
class Open(HashingRetriever):
    def __init__(self, **anything): ...
class Positional(HashingRetriever):
    def __init__(self, dim: int, /): ...
class Unannotated(HashingRetriever):
    def __init__(self, dim): ...
class Hidden(HashingRetriever):
    def __init__(self, dim: 'Decimal'): ...
class Opaque(HashingRetriever):
    def __init__(self, dim: Unrelated): ...
class Unwritable(HashingRetriever):
    def __init__(self, dim: Callable[[int], int]): ...
class Nameless(HashingRetriever):
    def __init__(self, name: str): ...
class Failing(HashingRetriever):
    def __init__(self, dim: int = 3): raise OSError("no such device")
class Exiting(HashingRetriever):
    def __init__(self, dim: int = 3): raise SystemExit(4)
def factory(): return HashingRetriever()
instance = HashingRetriever()
"""

# The package is sound, and a component of it cannot be had: the target of the Retriever "bad", and why.
COMPONENTS = {
    "no such module": ("no_such_parts:Mine", "ModuleNotFoundError: No module named 'no_such_parts'"),
    "no such class": ("parts:Missing", "AttributeError: module 'parts' has no attribute 'Missing'"),
    "a module with a missing dependency": ("needy:Mine", "No module named 'no_such_package'"),
    "a module with a syntax error": ("torn:Mine", "SyntaxError"),
    "a module that exits": ("exits:Mine", "SystemExit: 4"),
    "a function": ("parts:factory", "not a subclass of Retriever"),
    "an instance": ("parts:instance", "not a subclass of Retriever"),
    "an unrelated class": ("parts:Unrelated", "not a subclass of Retriever"),
    "a class of another interface": ("parts:Sampling", "not a subclass of Retriever"),
    "abstract methods missing": ("parts:Abstract", "does not implement encode_query, encoder"),
    "settings of any name": ("parts:Open", "every setting is a keyword argument"),
    "settings without a name": ("parts:Positional", "every setting is a keyword argument"),
    "a setting without annotation": ("parts:Unannotated", "the setting 'dim' has no annotation"),
    "an annotation that is not imported": ("parts:Hidden", "cannot be evaluated: name 'Decimal' is not defined"),
    "a setting of an opaque type": ("parts:Opaque", "cannot be described"),
    "a setting that no file can hold": ("parts:Unwritable", "cannot be described"),
    "a setting that a file gives to racm3": ("parts:Nameless", "the setting 'name' cannot be given"),
}
MODULES = {"parts": PARTS, "needy": "import no_such_package", "torn": "def (", "exits": "raise SystemExit(4)"}

PRESETS = {
    "a preset that raises": ("racm3_bad:fails", "KeyError: 'token'"),
    "a preset that exits": ("racm3_bad:leaves", "SystemExit: 2"),
    "a preset of the wrong type": ("racm3_bad:wrong", "gave int, not a mapping or Path"),
    "a preset from nowhere": ("racm3_bad:nowhere", "AttributeError"),
}
PRESET_SOURCE = """
def fails(): raise KeyError("token")
def leaves(): raise SystemExit(2)
def wrong(): return 3
"""


def listed(capsys: pytest.CaptureFixture[str], distribution: str = "racm3-bad") -> list[dict[str, Any]]:
    """What `racm3 plugins --json` says of a distribution."""
    return [one for one in json.loads(said(capsys, "--json")) if one["distribution"] == distribution]


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What `racm3 plugins` says."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["plugins", *arguments])
    assert not ended.value.code
    return capsys.readouterr().out


def everything_else_works() -> None:
    """Another plugin's components and the built-in ones make a pipeline that finds and draws."""
    made = registry()
    with Pipeline(
        made.create(Retriever, "hashing"),
        FaissMemory(),
        made.create(Sampler, "topk"),
        made.create(Generator, "painting", {"size": 8}),
    ) as pipeline:
        pipeline.add([Document("a red kite", id="kite"), Document("a grey whale", id="whale")])
        answer = pipeline.imagine("the whale", k=1, seed=1)
    assert [hit.id for hit in answer.hits] == ["whale"] and answer.image.size == (8, 8)


@pytest.mark.parametrize("kind", PACKAGES)
def test_a_broken_package(install, tmp_path: Path, capsys, kind):
    package = PACKAGES[kind]
    package.install(install, tmp_path / "site")
    who = f"racm3-bad {package.version}".strip()
    with pytest.warns(PluginWarning, match=f"{who} is {package.status}") as warned:
        registry()
    assert len([one for one in warned if one.category is PluginWarning]) == 1
    everything_else_works()

    (shown,) = listed(capsys)
    assert (shown["version"], shown["status"]) == (package.version, package.status)
    assert package.cause in shown["error"]

    for name in ("racm3-bad:any", "bad", "RACM3_Bad:any"):
        with pytest.raises(package.error) as raised:
            registry().create(Sampler, name)
        assert who in str(raised.value) and package.cause in str(raised.value)
        assert raised.value.hint == "Update or remove it: pip install -U racm3-bad"
    # A name that nothing here can connect with it: what it would have provided is not known.
    with pytest.raises(PluginNotFound, match="No sampler named 'spread'") as raised:
        registry().create(Sampler, "spread")
    assert f"Not usable, as `racm3 plugins` explains: {who} ({package.status})." in raised.value.hint


@pytest.mark.parametrize("kind", COMPONENTS)
def test_a_component_that_cannot_be_had(install, capsys, monkeypatch, kind):
    target, cause = COMPONENTS[kind]
    install("racm3-bad", hook(f'yield Component(Retriever, "bad", "{target}")'), modules=MODULES)
    with pytest.raises(PluginLoadFailed, match=r"Retriever 'bad' of racm3-bad 1\.0 cannot be loaded") as raised:
        registry().create(Retriever, "bad", {})
    assert cause in str(raised.value)
    assert raised.value.hint == "Update or remove it: pip install -U racm3-bad. Other choices: clip, hashing."
    everything_else_works()

    (shown,) = listed(capsys)
    (component,) = shown["components"]
    assert (shown["version"], shown["status"], component["status"]) == ("1.0", "ok", "broken")
    assert "racm3-bad 1.0" in component["error"] and cause in component["error"]
    monkeypatch.setenv("COLUMNS", "200")
    assert cause in said(capsys)


@pytest.mark.parametrize(
    ("target", "cause"), [("Failing", "raised OSError: no such device"), ("Exiting", "raised SystemExit: 4")]
)
def test_a_component_that_cannot_be_made(install, target, cause):
    install("racm3-bad", hook(f'yield Component(Retriever, "bad", "parts:{target}")'), modules=MODULES)
    with pytest.raises(PluginLoadFailed, match=rf"'bad' of racm3-bad 1\.0 .* its constructor {cause}") as raised:
        registry().create(Retriever, "bad")
    assert "pip install -U racm3-bad" in raised.value.hint
    everything_else_works()


@pytest.mark.parametrize("kind", PRESETS)
def test_a_preset_that_cannot_be_had(install, capsys, kind):
    target, cause = PRESETS[kind]
    install("racm3-bad", hook(f'yield Preset("bad", "{target}")', name="presets") + PRESET_SOURCE)
    with pytest.raises(PluginLoadFailed, match=r"The preset 'bad' of racm3-bad 1\.0") as raised:
        Pipeline.from_preset("bad")
    assert cause in str(raised.value) and raised.value.hint
    everything_else_works()
    (shown,) = listed(capsys)
    assert shown["presets"][0]["status"] == "broken" and cause in shown["presets"][0]["error"]


# Names that are taken: all go on working, under names that tell them apart


def states(capsys: pytest.CaptureFixture[str], *distributions: str) -> list[str]:
    return [
        record["status"]
        for distribution in distributions
        for one in listed(capsys, distribution)
        for record in one["components"] + one["presets"]
    ]


def test_two_plugins_with_one_short_name(install, capsys):
    install("racm3-one", GOOD)
    install("racm3-two", GOOD.replace("testing", "testing.fakes"))
    with pytest.raises(PluginConflict, match="racm3-one:bad, racm3-two:bad") as raised:
        registry().create(Retriever, "bad")
    assert raised.value.hint == "Ask for 'racm3-one:bad'."
    assert registry().create(Retriever, "racm3-one:bad").dim == registry().create(Retriever, "racm3-two:bad").dim == 64
    assert [name for name in registry().names(Retriever) if "bad" in name] == ["racm3-one:bad", "racm3-two:bad"]
    everything_else_works()
    assert states(capsys, "racm3-one", "racm3-two") == ["name taken", "name taken"]
    assert "Several plugins provide a retriever named 'bad': racm3-one:bad, racm3-two:bad" in said(capsys)


def test_a_builtin_keeps_its_short_name(install, capsys):
    source = hook('yield Component(Sampler, "topk", "racm3.samplers.random:RandomSampler")')
    install("racm3-rival", source)
    assert registry().component(Sampler, "topk").target == "racm3.samplers.topk:TopKSampler"
    assert type(registry().create(Sampler, "racm3-rival:topk")).__name__ == "RandomSampler"
    assert registry().names(Sampler) == ["diverse", "racm3-rival:topk", "random", "topk"]
    everything_else_works()
    assert states(capsys, "racm3-rival") == ["name taken"]
    assert "that of racm3-rival 1.0 goes by its full name. Ask for 'racm3-rival:topk'." in said(capsys)


def test_two_presets_with_one_name(install, capsys):
    for name in ("racm3-one", "racm3-two"):
        install(name, hook('yield Preset("bad", {"memory": {"name": "faiss"}})', name="presets"))
    with pytest.raises(PluginConflict, match="racm3-one:bad, racm3-two:bad"):
        Pipeline.from_preset("bad")
    assert registry().preset("racm3-two:bad") == {"memory": {"name": "faiss"}}
    assert states(capsys, "racm3-one", "racm3-two") == ["name taken", "name taken"]


def test_two_distributions_with_one_entry_point_name_both_load(install, capsys):
    install("racm3-one", GOOD, entry_points={"same": "racm3_one"})
    install("racm3-two", GOOD.replace('"bad"', '"other"'), entry_points={"same": "racm3_two"})
    assert {"bad", "other"} <= set(registry().names(Retriever))
    assert states(capsys, "racm3-one", "racm3-two") == ["ok", "ok"]


def test_two_distributions_that_name_one_module_are_told_apart(install, capsys):
    install("racm3-one", hook('yield Component(Retriever, "bad", "no_such_parts:Mine")'))
    install("racm3-two", entry_points={"two": "racm3_one"})
    for name in ("racm3-one", "racm3-two"):
        with pytest.raises(PluginLoadFailed, match=rf"of {name} 1\.0 cannot be loaded"):
            registry().create(Retriever, f"{name}:bad")
    everything_else_works()
    assert states(capsys, "racm3-one", "racm3-two") == ["broken", "broken"]


def test_two_entry_points_of_one_distribution_may_not_claim_one_name(install, capsys):
    install("racm3-bad", GOOD, entry_points={"a": "racm3_bad", "b": "second"}, modules={"second": GOOD})
    with pytest.warns(PluginWarning, match="Retriever 'bad' is given by two entry points of racm3-bad"):
        assert registry().create(Retriever, "bad").dim == 64
    everything_else_works()
    assert [one["status"] for one in listed(capsys)] == ["ok", "broken"]


def test_of_two_copies_of_a_distribution_the_first_on_the_path_counts(install, capsys, tmp_path: Path, monkeypatch):
    install("racm3-bad", GOOD, version="2.0")
    shadowed = tmp_path / "later" / "racm3_bad-1.0.dist-info"
    shadowed.mkdir(parents=True)
    (shadowed / "METADATA").write_text("Name: racm3-bad\nVersion: 1.0\n")
    (shadowed / "entry_points.txt").write_text("[racm3]\nold = no_such_module\n")
    monkeypatch.setattr("sys.path", [*sys.path, str(shadowed.parent)])
    everything_else_works()
    assert [(one["version"], one["status"]) for one in listed(capsys)] == [("2.0", "ok")]


# Plugins that misbehave while others work


def test_what_a_plugin_prints_is_kept_off_stdout(install, capsys):
    source = "print('loaded')\n" + hook('print("listed"); yield Component(Retriever, "bad", "parts:HashingRetriever")')
    install("racm3-bad", source, modules={"parts": "print('imported')" + PARTS})
    assert states(capsys, "racm3-bad") == ["ok"], "stdout is JSON and nothing else"


OBSERVERS = {
    "raises": "raise RuntimeError('observer')",
    "exits": "raise SystemExit(2)",
    "cannot even say why": UNPRINTABLE.replace("\n", "\n    "),
}


@pytest.mark.parametrize("kind", OBSERVERS)
@pytest.mark.parametrize("moment", ["retrieved", "generated"])
def test_an_observer_that_fails_while_a_picture_is_generated(install, caplog, moment, kind):
    arguments = {"retrieved": "selection", "generated": "generation"}[moment]
    install("racm3-bad", hook(OBSERVERS[kind], name=moment, arguments=arguments))
    install("racm3-zeal", hook(f"seen.append({arguments})", name=moment, arguments=arguments, before="seen = []"))
    everything_else_works()
    observers = {plugin.distribution: plugin.observer_errors for plugin in registry().plugins()}
    assert observers["racm3-bad"] == 1 and observers["racm3-zeal"] == 0
    assert f"racm3_{moment} of the plugin racm3-bad 1.0 failed; going on without it" in caplog.text
    assert len(import_module("racm3_zeal").seen) == 1, "the others are told all the same"


def test_an_observer_cannot_change_what_it_sees(install):
    source = hook("selection.hits.clear(); selection.skipped.clear()", name="retrieved", arguments="selection")
    source += hook("generation.hits.clear(); generation.outputs.clear()", name="generated", arguments="generation")
    install("racm3-bad", source)
    everything_else_works()
