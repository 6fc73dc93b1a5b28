"""Broken packages as a user has them: built as wheels, installed by pip, and met on the command line.

They are all installed at once, beside one plugin that is sound. test_broken_plugins.py has the many other ways.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import PIL.Image
import pytest


@dataclass(frozen=True)
class Wheel:
    """A distribution of one module, whose entry point carries the name of the distribution."""

    name: str
    source: str | None
    version: str = "1.0"
    requires: str = "racm3>=0.1,<0.2"
    points: Mapping[str, str] = field(default_factory=dict)

    def write(self, folder: Path) -> Path:
        module = self.name.replace("-", "_")
        info = f"{module}-{self.version}.dist-info"
        points = self.points or {self.name.removeprefix("racm3-"): module}
        files = {
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {self.name}\nVersion: {self.version}\n"
            f"Requires-Dist: {self.requires}\n",
            f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: racm3-tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{info}/entry_points.txt": "[racm3]\n" + "".join(f"{key} = {value}\n" for key, value in points.items()),
        }
        if self.source is not None:
            files[f"{module}.py"] = f"from racm3 import *\n{self.source}"
        files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
        path = folder / f"{module}-{self.version}-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return path


def component(interface: str, name: str, target: str) -> str:
    return f"@hookimpl\ndef racm3_components():\n    yield Component({interface}, {name!r}, {target!r})\n"


SOUND = """
@hookimpl
def racm3_components():
    yield Component(Retriever, "hashing", "racm3.testing:HashingRetriever")
    yield Component(Generator, "painting", "racm3.testing:PaintingGenerator")
@hookimpl
def racm3_presets():
    tables = {"retriever": {"name": "hashing"}, "memory": {"name": "faiss"}, "generator": {"name": "painting"}}
    yield Preset("sound", tables)
"""
HALF = component("Sampler", "half", "racm3_half:Half") + "class Half(Sampler): pass\n"
NOISY = "@hookimpl\ndef racm3_generated(generation): raise RuntimeError('observer')\n"

WHEELS = [
    Wheel("racm3-sound", SOUND),
    # Of no use at all: with the status and the cause that `racm3 plugins` gives.
    Wheel("racm3-needy", "import no_such_package", requires="no-such-package"),
    Wheel("racm3-torn", "def (", version="0.3"),
    Wheel("racm3-exits", "raise SystemExit(3)"),
    Wheel("racm3-typo", "@hookimpl\ndef racm3_component(): return []"),
    Wheel("racm3-void", None),
    Wheel("racm3-future", "raise RuntimeError('imported')", version="9.1", requires="racm3>=99"),
    # With a component that cannot be had.
    Wheel("racm3-hollow", component("Sampler", "hollow", "racm3_hollow:Gone")),
    Wheel("racm3-half", HALF),
    # With a name that is taken.
    Wheel("racm3-rival", component("MemoryStore", "faiss", "racm3.memories.faiss:FaissMemory")),
    Wheel(
        "racm3-twin-a", component("Sampler", "twin", "racm3.samplers.topk:TopKSampler"), points={"twin": "racm3_twin_a"}
    ),
    Wheel(
        "racm3-twin-b", component("Sampler", "twin", "racm3.samplers.topk:TopKSampler"), points={"twin": "racm3_twin_b"}
    ),
    # With an observer that fails.
    Wheel("racm3-noisy", NOISY),
]
UNUSABLE = {
    "racm3-needy": ("1.0", "broken", "ModuleNotFoundError: No module named 'no_such_package'"),
    "racm3-torn": ("0.3", "broken", "SyntaxError"),
    "racm3-exits": ("1.0", "broken", "SystemExit: 3"),
    "racm3-typo": ("1.0", "broken", "Did you mean 'racm3_components'"),
    "racm3-void": ("1.0", "broken", "No module named 'racm3_void'"),
    "racm3-future": ("9.1", "incompatible", "it requires racm3>=99"),
}
PARTLY = {
    "racm3-hollow": ("broken", "has no attribute 'Gone'"),
    "racm3-half": ("broken", "does not implement sample"),
    "racm3-rival": ("name taken", "Ask for 'racm3-rival:faiss'."),
    "racm3-twin-a": ("name taken", "racm3-twin-a:twin, racm3-twin-b:twin"),
    "racm3-twin-b": ("name taken", "racm3-twin-a:twin, racm3-twin-b:twin"),
}

Python = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Python:
    """A Python that has all the wheels installed: `python("-c", code)`."""
    folder = tmp_path_factory.mktemp("installed")
    wheels = [str(wheel.write(folder)) for wheel in WHEELS]
    site = folder / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps"]
    subprocess.run([*pip, "--no-compile", "--target", str(site), *wheels], check=True)
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RACM3_")}

    def python(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=folder,
            env={**environment, "PYTHONPATH": path},
            capture_output=True,
            text=True,
        )

    return python


RACM3 = ("-c", "from racm3.cli import main; main()")


def test_plugins_names_every_culprit(python: Python):
    done = python(*RACM3, "plugins", "--json")
    assert done.returncode == 0, done.stderr
    listed = {info["distribution"]: info for info in json.loads(done.stdout)}
    for name, (version, status, cause) in UNUSABLE.items():
        assert (listed[name]["version"], listed[name]["status"]) == (version, status)
        assert cause in listed[name]["error"]
        assert done.stderr.count(f"The racm3 plugin {name} {version} is {status}") == 1
    for name, (status, cause) in PARTLY.items():
        (shown,) = listed[name]["components"]
        assert (listed[name]["status"], shown["status"]) == ("ok", status) and cause in shown["error"]
    assert [shown["status"] for shown in listed["racm3-sound"]["components"]] == ["ok", "ok"]


ASK = """
import json, sys, warnings
from racm3 import MemoryStore, Sampler
from racm3.errors import RACM3Error
from racm3.registry import registry
warnings.simplefilter("ignore")
told = {}
for name in sys.argv[1:]:
    try:
        registry().create(Sampler, name)
    except RACM3Error as error:
        told[name] = [type(error).__name__, error.message, error.hint]
told["rival"] = [type(registry().create(MemoryStore, name)).__name__ for name in ("faiss", "racm3-rival:faiss")]
told["twins"] = [type(registry().create(Sampler, f"racm3-twin-{it}:twin")).__name__ for it in "ab"]
print(json.dumps(told))
"""


def test_who_asks_by_name_is_told_the_way_out(python: Python):
    names = [name.removeprefix("racm3-") for name in [*UNUSABLE, "racm3-hollow", "racm3-half"]]
    done = python("-c", ASK, *names, "twin")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    for name in names:
        kind, message, hint = told[name]
        assert kind == ("PluginIncompatible" if name == "future" else "PluginLoadFailed")
        assert f"racm3-{name} " in message and f"pip install -U racm3-{name}" in hint
    assert told["twin"][0] == "PluginConflict" and told["twin"][2] == "Ask for 'racm3-twin-a:twin'."
    assert told["rival"] == ["FaissMemory", "FaissMemory"] and told["twins"] == ["TopKSampler", "TopKSampler"]


def test_the_sound_plugin_indexes_and_draws(python: Python, tmp_path: Path):
    photos = tmp_path / "photos"
    photos.mkdir()
    PIL.Image.new("RGB", (16, 16), "red").save(photos / "kite.png")
    (photos / "kite.txt").write_text("a kite")
    memory, out = str(tmp_path / "memory"), tmp_path / "drawn.png"
    indexed = python(*RACM3, "index", str(photos), "--memory", memory, "--preset", "sound")
    assert indexed.returncode == 0, indexed.stderr
    drawn = python(
        *RACM3, "generate", "a kite", "--memory", memory, "--preset", "sound", "--out", str(out), "--seed", "1"
    )
    assert drawn.returncode == 0, drawn.stderr
    assert PIL.Image.open(out).size == (32, 32)
