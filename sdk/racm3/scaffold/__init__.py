"""New plugins: a complete package, with a small component that works, to be changed bit by bit into one's own.

The components are the modules beside this one, which racm3's own tests hold to their contracts; in the copy, "Example"
becomes the plugin's name.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from string import Template

from ..errors import ConfigError
from ..hookspecs import INTERFACES, PROJECT

HERE = Path(__file__).parent
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


@dataclass(frozen=True)
class _Kind:
    """What is special about the package of one interface. imports, body: of the contract."""

    summary: str
    imports: str
    body: str
    usage: str


_CREATE = "    def create(self) -> $class:\n        return $class(**self.settings)"
_KINDS: Mapping[str, _Kind] = {
    "memory": _Kind(
        "All documents in one file",
        "from pathlib import Path\n\nfrom racm3.testing import $base_contract\n\nfrom .memory import $class",
        "    def open(self, path: Path) -> $class:\n        return $class(path, **self.settings)",
        "```bash\nracm3 index ./photos --memory $name\nracm3 generate 'a red kite' --memory $name\n```",
    ),
    "sampler": _Kind(
        "No document below a score",
        "from racm3.testing import $base_contract\n\nfrom .sampler import $class",
        _CREATE,
        'In a pipeline file:\n\n```toml\n[sampler]\nname = "$name"\n```',
    ),
    "retriever": _Kind(
        "Hashed words of texts",
        "from racm3.testing import $base_contract\n\nfrom .retriever import $class",
        f'    modalities = frozenset({{"text"}})  # pictures are refused\n\n{_CREATE}',
        'In a pipeline file:\n\n```toml\n[retriever]\nname = "$name"\n```',
    ),
    "generator": _Kind(
        "Words of the documents, drawn by frequency",
        "from racm3.testing import $base_contract\n\nfrom .generator import $class",
        _CREATE,
        'In a pipeline file:\n\n```toml\n[generator]\nname = "$name"\n```',
    ),
}


def write_package(name: str, interface: str, folder: Path) -> list[Path]:
    """Write the package racm3-NAME into a folder that is missing or empty, and give its files.

    interface: retriever, memory, sampler or generator. All is written or nothing. Raises `ConfigError`.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} is no name for a plugin.", "Use lower-case letters, digits and '-', a letter first: my-memory."
        )
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ConfigError(f"{folder} is there already.", "Give another folder, or remove it.")
    files = _files(name, interface)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{PROJECT}-") as place:
            for path, text in files.items():
                file = Path(place, folder.name, path)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text, encoding="utf-8")
            if folder.exists():
                folder.rmdir()
            shutil.move(Path(place, folder.name), folder)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error.strerror or error}.") from error
    return [folder / path for path in files]


def _files(name: str, interface: str) -> dict[str, str]:
    """The text of every file of a package, by its path."""
    kind = _KINDS[interface]
    words = "".join(word.capitalize() for word in name.split("-"))
    own, base = f"{words}{interface.capitalize()}", INTERFACES[interface].__name__
    major, minor = metadata.version(PROJECT).split(".")[:2]
    module = f"{PROJECT}_{name.replace('-', '_')}"
    values = {
        "name": name,
        "interface": interface,
        "module": module,
        "base": base,
        "class": own,
        "contract": f"{words}Contract",
        "base_contract": f"{base}Contract",
        "summary": kind.summary,
        "version": f"{major}.{minor}",
        "next_version": f"{major}.{int(minor) + 1}" if major == "0" else str(int(major) + 1),
    }
    for part in ("imports", "body", "usage"):
        values[part] = Template(getattr(kind, part)).substitute(values)

    def filled(file: str) -> str:
        return Template((HERE / "templates" / f"{file}.template").read_text(encoding="utf-8")).substitute(values)

    component = (HERE / f"{interface}.py").read_text(encoding="utf-8")
    return {
        "pyproject.toml": filled("pyproject.toml"),
        "README.md": filled("README.md"),
        f"{module}/__init__.py": filled("plugin.py"),
        f"{module}/{interface}.py": component.replace("Example", words).replace("example", name),
        f"{module}/contract.py": filled("contract.py"),
        "tests/test_contract.py": filled("test_contract.py"),
    }
