"""racm3 plugins new: begin a plugin with a package that works."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ..discovery import canonical
from ..errors import ConfigError
from ..hookspecs import INTERFACES, PROJECT
from ..registry import registry
from . import output


class Interface(StrEnum):
    MEMORY = "memory"
    SAMPLER = "sampler"
    RETRIEVER = "retriever"
    GENERATOR = "generator"


def new(
    name: Annotated[str, typer.Argument(help="Of the component; the package is called racm3-NAME.")],
    interface: Annotated[Interface, typer.Option("--interface", "-i", help="What the component is.")],
    out: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Where to. Default: ./racm3-NAME")] = None,
) -> None:
    """Write a complete package: a component that works, its contract as a test, and what pip needs. Its tests pass."""
    from ..scaffold import write_package

    if name in registry().names(INTERFACES[interface.value]):
        raise ConfigError(f"A {interface.value} named {name!r} is installed already.", "Choose another name.")
    for info in registry().plugins():
        if info.distribution == canonical(f"{PROJECT}-{name}"):  # whose place the new package would take
            raise ConfigError(f"A package {PROJECT}-{name} is installed already: {info}.", "Choose another name.")
    folder = Path(f"racm3-{name}") if out is None else out.expanduser()
    for file in write_package(name, interface.value, folder):
        typer.echo(file)
    output.note(f"Install it: pip install -e {folder}")
    output.note(f"Check it:   racm3 plugins check {name}")
