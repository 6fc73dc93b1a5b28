"""racm3 index: put a folder of pictures into a memory."""

from __future__ import annotations

import shutil
import time
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ..config import ComponentConfig
from ..errors import ConfigError, MemoryStoreError
from ..interfaces import MemoryStore
from ..memories.claim import Claim
from ..memories.database import LOCK
from . import output
from .memory_option import memory_path
from .options import ConfigOption, JsonOption, MemoryOption, PresetOption, chosen_pipeline

MOST_SKIPPED = 50  # bad samples are named, up to so many


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
    from ..pipeline import Pipeline

    chosen = chosen_pipeline(config, preset, memory, writes=True, generates=False)
    skipped: list[tuple[str, Exception]] = []
    started, stored = time.perf_counter(), 0
    new = _not_there_yet(memory_path(chosen))
    try:
        with output.progress(f"Indexing {folder}") as progress:
            documents = read_folder(
                folder, on_skip=lambda path, error: skipped.append((path, error)), progress=progress
            )
            with Pipeline.from_config(chosen) as pipeline:
                before = len(pipeline.memory)
                try:
                    ids = pipeline.add(documents, batch_size=batch_size, on_duplicate=on_duplicate.value)
                    pipeline.memory.flush()
                finally:
                    stored = len(pipeline.memory)
    finally:
        if not stored:
            _remove(new, chosen.memory)
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
        for path, error in skipped[:MOST_SKIPPED]:
            output.note(f"  {path}: {error}")
        if len(skipped) > MOST_SKIPPED:
            output.note(f"  ... and {len(skipped) - MOST_SKIPPED} more, which --json lists")
    if not ids:
        raise typer.Exit(1)


def _not_there_yet(path: Path | None) -> list[Path]:
    """What would be made to have a memory at a path: the path itself, and those of its folders that are missing."""
    return [] if path is None else [place for place in (path, *path.parents) if not place.exists()]


def _remove(made: list[Path], memory: ComponentConfig) -> None:
    """Take back an empty memory, so that what failed leaves nothing behind; but not what another process has begun since."""
    if made and made[0].exists():
        try:
            claim = Claim(made[0] / LOCK, str(made[0]))
            if _count(memory) == 0:
                shutil.rmtree(made[0], ignore_errors=True)
            claim.release()
        except MemoryStoreError:  # another process is writing, or it is no folder
            return
    with suppress(OSError):  # missing, or no longer empty
        for folder in made[1:]:
            folder.rmdir()


def _count(memory: ComponentConfig) -> int:
    opened: MemoryStore = memory.create()
    try:
        return len(opened)
    finally:
        opened.close()
