"""The guide in plugins/README.md, block by block, in an environment where pip really installs what it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest

GUIDE = Path(__file__).parents[1] / "plugins" / "README.md"
INTERFACES = ("memory", "retriever", "sampler", "generator")


class Environment:
    """A virtual environment that sees what is installed here, too, and a folder to work in."""

    def __init__(self, place: Path) -> None:
        self.folder = place / "work"
        self.folder.mkdir()
        venv.create(place / "env", with_pip=False, symlinks=True)
        (library,) = (place / "env" / "lib").glob("python*/site-packages")
        outer = next(path for path in sys.path if path.endswith("site-packages"))
        # addsitedir, not a plain path: editable installs there are files that only it reads.
        (library / "outer.pth").write_text(f"import site; site.addsitedir({outer!r})\n")
        commands = place / "env" / "bin"
        python = commands / "python"
        # The same pip, which must neither fetch a build backend nor anything else.
        self._script(
            commands / "pip",
            f'#!/bin/sh\nshift\nexec {python} -m pip install -q --no-build-isolation --no-index "$@"\n',
        )
        self._script(commands / "racm3", f"#!{python}\nfrom racm3.cli import main\nmain()\n")
        self._variables = {**os.environ, "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "500"}
        self._variables.pop("VIRTUAL_ENV", None)

    def _script(self, path: Path, text: str) -> None:
        path.unlink(missing_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def run(self, commands: str) -> str:
        """Run shell commands, each of which has to succeed; gives what they print."""
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", commands], cwd=self.folder, env=self._variables, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert done.returncode == 0, f"{commands}\n{done.stdout}"
        return done.stdout


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(tmp_path)


@pytest.mark.slow
def test_every_block_of_the_guide(environment: Environment):
    printed, blocks = (
        "",
        re.findall(r"^```(\w+)\n(.*?)^```$", GUIDE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE),
    )
    assert {language for language, _ in blocks} == {"bash", "python", "text", "toml"}
    for language, block in blocks:
        if language == "bash":
            printed = environment.run(block)
        elif language == "text":
            for line in block.splitlines():
                assert line in printed
        else:
            first, _, rest = block.partition("\n")
            file = environment.folder / first.removeprefix("# ")
            assert first.startswith("# ") and file.suffix == {"python": ".py", "toml": ".toml"}[language]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(rest, encoding="utf-8")
    assert (environment.folder / "kite.png").stat().st_size > 0


@pytest.mark.slow
def test_a_new_package_of_each_interface_passes_its_tests_as_generated(environment: Environment):
    environment.run("\n".join(f"racm3 plugins new my-{kind} --interface {kind}" for kind in INTERFACES))
    environment.run(f"pip install {' '.join(f'-e racm3-my-{kind}' for kind in INTERFACES)}")
    folders = " ".join(f"racm3-my-{kind}/tests" for kind in INTERFACES)
    passed = environment.run(f"python -m pytest -q --import-mode=importlib -p no:cacheprovider {folders}")
    assert re.search(r"^\d\d passed in|\[100%\]", passed, re.MULTILINE) and "failed" not in passed
    listed = environment.run("racm3 plugins")
    for kind in INTERFACES:
        assert f"racm3-my-{kind}" in listed
