"""racm3 index: put a folder of pictures into a memory."""

from __future__ import annotations

import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ..errors import ConfigError
from . import output
from .options import ConfigOption, JsonOption, MemoryOption, PresetOption, open_pipeline


class OnDuplicate(StrEnum):
    SKIP = "skip"
    REPLACE = "replace"
    ERROR = "error"


def index(
    folder: Annotated[
        Path, typer.Argument(help="Pictures, with captions in .txt files of the same name or in one .jsonl.")
    ],
    memory: MemoryOption = None,
    config: ConfigOption = None,
    preset: PresetOption = None,
    on_duplicate: Annotated[OnDuplicate, typer.Option(help="What to do with pictures that are indexed already.")] = (
        OnDuplicate.SKIP
    ),
    batch_size: Annotated[int, typer.Option(min=1, help="Documents encoded at a time.")] = 64,
    as_json: JsonOption = False,
) -> None:
    """Index a folder of pictures. Broken files are passed over, and listed at the end."""
    if memory is None and config is None:
        raise typer.BadParameter("say where to keep the documents", param_hint="--memory")
    from ..collection import read_folder

    skipped: list[tuple[str, Exception]] = []
    started = time.perf_counter()
    with (
        open_pipeline(config, preset, memory, writes=True, generates=False) as pipeline,
        output.progress("Indexing") as progress,
    ):
        before = len(pipeline.memory)
        documents = read_folder(folder, on_skip=lambda path, error: skipped.append((path, error)), progress=progress)
        ids = pipeline.add(documents, batch_size=batch_size, on_duplicate=on_duplicate.value)
        pipeline.memory.flush()
        stored = len(pipeline.memory)
    if not ids and not skipped:
        raise ConfigError(f"There are no pictures in {folder}.", "PNG, JPEG, WebP, GIF and BMP files are read.")
    if as_json:
        output.print_json(
            {
                "read": len(ids),
                "new": stored - before,
                "stored": stored,
                "skipped": [{"path": path, "error": str(error)} for path, error in skipped],
                "seconds": round(time.perf_counter() - started, 3),
            }
        )
    else:
        typer.echo(f"{len(ids)} documents read, {stored - before} of them new; the memory holds {stored}.")
    if skipped:
        output.note(f"{len(skipped)} passed over:")
        for path, error in skipped:
            output.note(f"  {path}: {error}")
    if not ids:
        raise typer.Exit(1)
