"""racm3 memory: look after a memory of the default kind, a folder; move one of any kind."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..config import ComponentConfig
from ..errors import ConfigError
from ..interfaces import MemoryStore
from ..registry import registry
from . import output
from .index import OnDuplicate
from .memory_option import is_missing, only_read
from .options import JsonOption
from .output import count

if TYPE_CHECKING:
    from ..memories.faiss import FaissMemory

memory = typer.Typer(
    no_args_is_help=True,
    help="Look after a memory: stats, verify, compact, reindex, index-field, delete, export, import.",
)

FolderArgument = Annotated[Path, typer.Argument(metavar="PATH", help="The folder of the memory.")]
ShardsArgument = Annotated[Path, typer.Argument(metavar="SHARDS", help="The folder of the export.")]
KindOption = Annotated[str, typer.Option("--kind", metavar="NAME", help="The kind of memory that lies at PATH.")]

UNCHANGED = "no document was changed."


@memory.command(epilog="Example: racm3 memory stats ./memory")
def stats(path: FolderArgument, as_json: JsonOption = False) -> None:
    """Say what a memory holds, and how large it is on disk."""
    with _opened(path) as opened:
        found = opened.stats()
    if as_json:
        output.print_json(found)
        return
    rows = [["documents", f"{found['documents']:,}"]]
    rows += [[f"different {name}", f"{found[name]:,}"] for name in ("texts", "images")]
    if found["images_in_files"]:
        rows.append(["of these in files", f"{found['images_in_files']:,}"])
    recall = "" if found["recall"] is None else f", which finds {found['recall']:.1%} of the nearest documents"
    rows.append(["index", found["index"] + recall])
    encoder = found["encoder"]
    rows.append(["encoder", f"{encoder['fingerprint']} (width {encoder['dim']})" if encoder else "none yet"])
    rows += [[f"field {name}", f"{count:,} documents"] for name, count in found["fields"].items()]
    rows += [[name, f"{size:,} bytes"] for name, size in found["bytes"].items()]
    output.table(["what", "how much"], rows)


@memory.command(epilog="Example: racm3 memory verify ./memory")
def verify(path: FolderArgument, as_json: JsonOption = False) -> None:
    """Read everything in a memory and check it. Exit status 1 when something is damaged."""
    with output.interruptible(lambda: UNCHANGED), _opened(path) as opened, output.progress("Verifying") as progress:
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
    with (
        output.interruptible(lambda: UNCHANGED),
        _opened(path, read_only=False) as opened,
        output.working("Compacting"),
    ):
        before = sum(opened.stats()["bytes"].values())
        opened.compact()
        after = sum(opened.stats()["bytes"].values())
    if as_json:
        output.print_json({"bytes_before": before, "bytes_after": after})
    else:
        typer.echo(f"{path}: {before:,} bytes before, {after:,} after.")


@memory.command(epilog="Example: racm3 memory reindex ./memory --index ivf")
def reindex(
    path: FolderArgument,
    index: Annotated[
        str, typer.Option(metavar="NAME", help="exact, hnsw, ivf, ivf-pq, auto, or a factory string of FAISS.")
    ] = "auto",
    as_json: JsonOption = False,
) -> None:
    """Make another kind of index. Others can search meanwhile."""
    from ..memories.approximate import chosen

    with (
        output.interruptible(lambda: UNCHANGED),
        _opened(path, read_only=False) as opened,
        output.progress("Indexing") as progress,
    ):
        opened.reindex(index, progress)
        documents = len(opened)
    kind = chosen(index, documents)
    if as_json:
        output.print_json({"index": index, "kind": kind, "documents": documents})
    else:
        by_size = "" if kind == index else f", which of so many documents is {kind}"
        typer.echo(f"{path}: the index of {count(documents, 'document')} is now {index}{by_size}.")


@memory.command(epilog="Example: racm3 memory index-field ./memory style")
def index_field(
    path: FolderArgument,
    field: Annotated[str, typer.Argument(metavar="FIELD", help="A metadata field.")],
    as_json: JsonOption = False,
) -> None:
    """Make the index of a metadata field anew. Fields are indexed as documents come; this mends what verify says of filters."""
    with (
        output.interruptible(lambda: UNCHANGED),
        _opened(path, read_only=False) as opened,
        output.progress("Indexing") as progress,
    ):
        documents = opened.index_field(field, progress)
    if as_json:
        output.print_json({"field": field, "documents": documents})
    else:
        typer.echo(f"{path}: filters by {field} find {count(documents, 'document')}.")


@memory.command(epilog="Example: racm3 memory delete ./memory kite.png")
def delete(
    path: FolderArgument,
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Of documents, as search shows them.")],
    kind: KindOption = "faiss",
    as_json: JsonOption = False,
) -> None:
    """Remove documents, damaged ones as well. Exit status 1 when none of them is there."""
    _check_there(path)
    with _of_kind(kind, path) as opened:
        removed, left = opened.delete(ids), len(opened)
    if as_json:
        output.print_json({"removed": removed, "left": left})
    else:
        typer.echo(f"{count(removed, 'document')} removed; the memory holds {left}.")
    if not removed:
        raise typer.Exit(1)


@memory.command(name="export", epilog="Example: racm3 memory export ./memory ./shards")
def export(
    path: FolderArgument,
    shards: ShardsArgument,
    kind: KindOption = "faiss",
    shard_mb: Annotated[int, typer.Option(min=1, help="A shard ends at so many megabytes.")] = 256,
    as_json: JsonOption = False,
) -> None:
    """Write all documents of a memory, with their vectors, as webdataset shards: pictures and JSON."""
    from ..memories.shards import export_memory

    _check_there(path)
    if shards.expanduser().resolve().is_relative_to(path.expanduser().resolve()):
        raise ConfigError(f"{shards} lies inside the memory.", "Give a folder outside of it.")
    with (
        output.interruptible(lambda: "the export is not finished, and the same command begins it anew."),
        _of_kind(kind, path, read_only=True) as opened,
        output.progress(f"Exporting {path}") as progress,
    ):
        made = export_memory(opened, shards.expanduser(), shard_bytes=shard_mb * 2**20, progress=progress)
    if as_json:
        output.print_json({"documents": len(made), "shards": [shard._asdict() for shard in made.shards]})
    else:
        typer.echo(f"{count(len(made), 'document')} in {count(len(made.shards), 'shard')} at {shards}.")


@memory.command(name="import", epilog="Example: racm3 memory import ./shards ./chroma --kind chroma")
def import_(
    shards: ShardsArgument,
    path: FolderArgument,
    kind: KindOption = "faiss",
    on_duplicate: Annotated[OnDuplicate, typer.Option(help="What to do with documents that are stored already.")] = (
        OnDuplicate.SKIP
    ),
    skip_broken: Annotated[bool, typer.Option("--skip-broken", help="Pass over broken shards, and name them.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Add the documents of an export to a memory, which may be new. Begun again, it goes on where it stopped."""
    from ..memories.shards import Export, import_memory

    export = Export(shards.expanduser())
    with output.progress(f"Checking {shards}") as progress:
        bad = export.check(skip_broken=skip_broken, progress=progress)  # before a memory is made
    if bad and len(bad) == len(export.shards):
        raise ConfigError(
            f"All {len(bad)} shards of {shards} are broken: {next(iter(bad.values()))}", "Copy them again."
        )
    with (
        output.interruptible(lambda: "what was stored stays, and the same command with --on-duplicate skip goes on."),
        _of_kind(kind, path) as opened,
        output.progress(f"Importing {shards}") as progress,
    ):
        before = len(opened)
        broken = import_memory(
            export, opened, on_duplicate=on_duplicate.value, skip_broken=skip_broken, progress=progress
        )
        stored = len(opened)
    if as_json:
        output.print_json({"read": len(export), "new": stored - before, "stored": stored, "broken": broken})
    else:
        typer.echo(f"{count(stored - before, 'new document')}; the memory holds {stored}.")
    for name, why in broken.items():
        output.note(f"{name} was passed over: {why}")


def _check_there(path: Path) -> None:
    if is_missing(path.expanduser()):
        raise ConfigError(f"There is no memory at {path}.", f"Make one: racm3 index FOLDER --memory {path}")


def _of_kind(kind: str, path: Path, *, read_only: bool = False) -> MemoryStore:
    chosen = ComponentConfig(MemoryStore, kind, {"path": path.expanduser()})
    if read_only:
        chosen = only_read(chosen)
    opened: MemoryStore = registry().create(MemoryStore, kind, chosen.settings)
    return opened


def _opened(path: Path, *, read_only: bool = True) -> FaissMemory:
    from ..memories.faiss import DATABASE, FaissMemory

    _check_there(path)
    folder = path.expanduser()
    is_there = (folder / DATABASE).exists()  # to look after what is not there, no memory is made; opening it says why
    return FaissMemory(folder, read_only=read_only or not is_there)
