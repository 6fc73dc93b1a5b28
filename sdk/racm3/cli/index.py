"""racm3 index: put a folder of pictures into a memory."""

from __future__ import annotations

import shutil
import time
from contextlib import suppress
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ..config import ComponentConfig
from ..errors import ConfigError, MemoryStoreError
from ..interfaces import MemoryStore
from ..memories.claim import Claim
from ..memories.folder import LOCK
from . import output
from .memory_option import memory_path
from .options import ConfigOption, JsonOption, MemoryOption, PresetOption, chosen_pipeline
from .output import count

MOST_SKIPPED = 50  # bad samples are named, up to so many


class OnDuplicate(StrEnum):
    SKIP = "skip"
    REPLACE = "replace"
    ERROR = "error"


def index(
    folder: Annotated[
        Path,
        typer.Argument(
            help="Pictures, with captions in .txt files of the same name or in one .jsonl; or webdataset shards (.tar)."
        ),
    ],
    memory: MemoryOption = None,
    config: ConfigOption = None,
    preset: PresetOption = None,
    on_duplicate: Annotated[OnDuplicate, typer.Option(help="What to do with pictures that are indexed already.")] = (
        OnDuplicate.SKIP
    ),
    near_duplicates: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=63,
            metavar="BITS",
            help="Pass over pictures that are stored in another form: encoded anew, resized, slightly recoloured. Their "
            "hashes differ in at most so many of 64 bits; a good choice is 8.",
        ),
    ] = None,
    images_in_files: Annotated[
        bool,
        typer.Option(
            "--images-in-files",
            help="Keep the path and the hash of each picture, not its bytes. The files have to stay.",
        ),
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Documents encoded at a time.")] = 64,
    as_json: JsonOption = False,
) -> None:
    """Index a folder of pictures. Broken files are passed over, and listed at the end."""
    if memory is None and config is None:
        raise typer.BadParameter("say where to keep the documents", param_hint="--memory")
    from ..collection import read_folder
    from ..near_duplicates import NearDuplicates
    from ..pipeline import Pipeline

    chosen = chosen_pipeline(config, preset, memory, writes=True, generates=False)
    if images_in_files:
        settings = {**chosen.memory.settings, "images": "in-files"}
        chosen = replace(chosen, memory=replace(chosen.memory, settings=settings))
    skipped: list[tuple[str, Exception]] = []
    repeated: list[tuple[str, str]] = []
    repeats = None
    if near_duplicates is not None:
        repeats = NearDuplicates(near_duplicates, on_skip=lambda id, of: repeated.append((id, of)))
    started, stored = time.perf_counter(), 0
    new = _not_there_yet(memory_path(chosen))
    with output.interruptible(lambda: _interrupted(stored, on_duplicate)):
        try:
            with output.progress(f"Indexing {folder}") as progress:
                documents = read_folder(
                    folder, on_skip=lambda path, error: skipped.append((path, error)), progress=progress
                )
                with Pipeline.from_config(chosen) as pipeline:
                    before = len(pipeline.memory)
                    try:
                        ids = pipeline.add(
                            documents, batch_size=batch_size, on_duplicate=on_duplicate.value, near_duplicates=repeats
                        )
                        pipeline.memory.flush()
                    finally:
                        stored = len(pipeline.memory)
        finally:
            if not stored:
                _remove(new, chosen.memory)
    read = len(ids) + len(repeated)
    if not read and not skipped:
        raise ConfigError(f"There are no pictures in {folder}.", "PNG, JPEG, WebP, GIF and BMP files are read.")
    if as_json:
        output.print_json(
            {
                "read": read,
                "new": stored - before,
                "stored": stored,
                "skipped": [{"path": path, "error": str(error)} for path, error in skipped],
                "near_duplicates": [{"id": id, "of": of} for id, of in repeated],
                "seconds": round(time.perf_counter() - started, 3),
            }
        )
    else:
        holds = f"the memory holds {stored}" if stored else "none is stored"
        typer.echo(f"{count(read, 'document')} read, {stored - before} of them new; {holds}.")
    _tell("passed over", [f"{path}: {error}" for path, error in skipped])
    _tell("near-duplicates passed over", [f"{id} looks like {of}" for id, of in repeated])
    if not read:
        raise typer.Exit(1)


def _tell(what: str, lines: list[str]) -> None:
    if not lines:
        return
    output.note(f"{len(lines)} {what}:")
    for line in lines[:MOST_SKIPPED]:
        output.note(f"  {line}")
    if len(lines) > MOST_SKIPPED:
        output.note(f"  ... and {len(lines) - MOST_SKIPPED} more, which --json lists")


def _interrupted(stored: int, on_duplicate: OnDuplicate) -> str:
    if not stored:
        return "nothing is stored."
    again = "the same command" if on_duplicate == OnDuplicate.SKIP else "the same command with --on-duplicate skip"
    return f"the memory holds {count(stored, 'document')}, and {again} goes on from there."


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
