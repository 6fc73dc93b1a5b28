"""What several tests share: packages that look installed, and a registry of their own."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from textwrap import dedent

import pytest

# Here and in the programs that tests start, before any of them imports torch: models this small gain nothing from a second
# thread, and lose minutes where something else is using its core.
os.environ.setdefault("OMP_NUM_THREADS", "1")

Install = Callable[..., None]

HEADER = "from racm3 import Component, Generator, MemoryStore, Preset, Retriever, Sampler, hookimpl\n"


@pytest.fixture
def run(capsys):
    """Runs a command line of racm3 in this process; gives exit code, stdout and stderr."""
    from racm3.cli import main

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as raised:
            main([str(argument) for argument in arguments])
        shown = capsys.readouterr()
        return int(raised.value.code or 0), shown.out, shown.err

    return run


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Puts a distribution on the path, as pip leaves it: `install("racm3-x", "source of the module racm3_x")`."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))

    def install(
        name: str,
        source: str = "",
        *,
        entry_points: Mapping[str, str] | None = None,
        version: str = "1.0",
        requires: Sequence[str] = (),
        modules: Mapping[str, str] | None = None,
    ) -> None:
        module = name.replace("-", "_")
        info = site / f"{module}-{version}.dist-info"
        info.mkdir()
        needs = "".join(f"Requires-Dist: {line}\n" for line in requires)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}")
        points = {module.removeprefix("racm3_"): module} if entry_points is None else entry_points
        lines = "".join(f"{key} = {value}\n" for key, value in points.items())
        (info / "entry_points.txt").write_text(f"[racm3]\n{lines}")
        for file, content in {module: source, **(modules or {})}.items():
            (site / f"{file}.py").write_text(HEADER + dedent(content))
        importlib.invalidate_caches()

    yield install
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "") or "").startswith(str(site)):
            del sys.modules[name]


@pytest.fixture
def own_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process-wide registry, made anew for this test: of plugins it sees those that the test installs."""
    import racm3.registry

    def distributions() -> Iterator[metadata.Distribution]:
        for found in real():
            if Path(str(found.locate_file(""))).is_relative_to(tmp_path) or found.metadata["Name"] == "racm3":
                yield found

    real = metadata.distributions
    monkeypatch.setattr(metadata, "distributions", distributions)
    monkeypatch.setattr(racm3.registry, "_registry", None)
    monkeypatch.delenv("RACM3_PLUGINS", raising=False)
    monkeypatch.delenv("RACM3_STRICT", raising=False)


FAKES = """
@hookimpl
def racm3_components():
    yield Component(Retriever, "hashing", "racm3.testing.fakes:HashingRetriever", summary="words and colours")
    yield Component(Generator, "painting", "racm3.testing.fakes:PaintingGenerator")

@hookimpl
def racm3_presets():
    yield Preset("toy", "racm3_toy:tables", summary="no weights")

def tables():
    return {
        "retriever": {"name": "hashing"},
        "memory": {"name": "faiss", "path": "toy-memory"},
        "generator": {"name": "painting", "size": 16},
    }
"""


@pytest.fixture
def toy(install: Install, own_registry: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The plugin racm3-toy: light components and the preset "toy". Gives the current folder, which is empty."""
    install("racm3-toy", FAKES)
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder
