"""racm3 memory: look after a memory of the default kind, a folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import ConfigError
from . import output
from .options import JsonOption

if TYPE_CHECKING:
    from ..memories.faiss import FaissMemory

memory = typer.Typer(no_args_is_help=True, help="Look after a memory: stats, verify, compact.")

FolderArgument = Annotated[Path, typer.Argument(metavar="PATH", help="The folder of the memory.")]


@memory.command(epilog="Example: racm3 memory stats ./memory")
def stats(path: FolderArgument, as_json: JsonOption = False) -> None:
    """Say what a memory holds, and how large it is on disk."""
    with _opened(path) as opened:
        found = opened.stats()
    if as_json:
        output.print_json(found)
        return
    rows = [[name, f"{found[name]:,}"] for name in ("documents", "texts", "images")]
    encoder = found["encoder"]
    rows.append(["encoder", f"{encoder['fingerprint']} (width {encoder['dim']})" if encoder else "none yet"])
    rows += [[f"field {name}", f"{count:,} documents"] for name, count in found["fields"].items()]
    rows += [[name, f"{size:,} bytes"] for name, size in found["bytes"].items()]
    output.table(["what", "how much"], rows)


@memory.command(epilog="Example: racm3 memory verify ./memory")
def verify(path: FolderArgument, as_json: JsonOption = False) -> None:
    """Read everything in a memory and check it. Exit status 1 when something is damaged."""
    with _opened(path) as opened, output.progress("Verifying") as progress:
        problems = opened.verify(progress)
    if as_json:
        output.print_json({"sound": not problems, "problems": problems})
    else:
        for problem in problems:
            typer.echo(problem)
        if not problems:
            typer.echo(f"{path} is sound.")
    if problems:
        raise typer.Exit(1)


@memory.command(epilog="Example: racm3 memory compact ./memory")
def compact(path: FolderArgument, as_json: JsonOption = False) -> None:
    """Give the room of what was removed back to the disk."""
    with _opened(path, read_only=False) as opened, output.working("Compacting"):
        before = sum(opened.stats()["bytes"].values())
        opened.compact()
        after = sum(opened.stats()["bytes"].values())
    if as_json:
        output.print_json({"bytes_before": before, "bytes_after": after})
    else:
        typer.echo(f"{path}: {before:,} bytes before, {after:,} after.")


def _opened(path: Path, *, read_only: bool = True) -> FaissMemory:
    from ..memories.faiss import DATABASE, FaissMemory

    if not (path.expanduser() / DATABASE).exists():
        raise ConfigError(f"There is no memory at {path}.", f"Make one: racm3 index FOLDER --memory {path}")
    return FaissMemory(path.expanduser(), read_only=read_only)
