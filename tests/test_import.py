"""Importing racm3, and asking the command line for help, is quick: nothing heavy is loaded before it is used."""

from __future__ import annotations

import doctest
import importlib
import subprocess
import sys

import pytest

DOCUMENTED = (
    "blanks", "collection", "config", "generation", "hookspecs", "memories.predicate", "pipeline", "registry", "seeds",
    "settings", "testing.fakes",
)  # fmt: skip
HEAVY = ("torch", "faiss", "transformers", "open_clip", "diffusers", "accelerate", "torchvision")


def loaded(code: str) -> set[str]:
    """The modules that a fresh interpreter has loaded after running some code."""
    script = f"import sys\n{code}\nsys.stderr.write(chr(10) + ' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stderr.splitlines()[-1].split())


def test_importing_racm3_loads_none_of_its_parts():
    modules = loaded("import racm3")
    assert not modules & {*HEAVY, "typer", "rich", "pydantic", "numpy", "PIL", "pluggy"}


@pytest.mark.parametrize(
    "code",
    [
        "from racm3 import *",
        "import racm3.registry as r; r.Registry().discover()",
        "import racm3.builtin, racm3.config, racm3.collection, racm3.testing",
        "from racm3.registry import Registry\nr = Registry()\n"
        "for p in r.plugins():\n  for c in p.components: r.settings_model(c)",
        "import racm3.cli\ntry: racm3.cli.main(['--help'])\nexcept SystemExit: pass",
        "import racm3.cli\ntry: racm3.cli.main(['plugins', '--json'])\nexcept SystemExit: pass",
    ],
)
def test_nothing_heavy_is_loaded_before_it_is_used(code):
    assert not loaded(code) & set(HEAVY)


def test_the_public_names():
    import racm3

    assert len(racm3.__all__) <= 20
    assert racm3.__all__ == sorted(racm3.__all__)
    assert set(racm3.__all__) <= set(dir(racm3))
    for name in racm3.__all__:
        assert getattr(racm3, name).__doc__, f"{name} says what it is"
    assert racm3.__version__[0].isdigit()
    with pytest.raises(AttributeError, match="no attribute 'Pipelines'"):
        racm3.Pipelines  # noqa: B018


@pytest.mark.parametrize("module", DOCUMENTED)
def test_the_examples_in_docstrings_run(module):
    result = doctest.testmod(importlib.import_module(f"racm3.{module}"))
    assert result.attempted and not result.failed
