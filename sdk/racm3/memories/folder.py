"""The folder of a memory: its files, and whether there is a memory in it that can be opened."""

from __future__ import annotations

import os
from pathlib import Path

from ..durable import make_folder
from ..errors import MemoryCorrupt, MemoryStoreError

DATABASE = "memory.db"
LOCK = ".lock"  # beside the database: the claim of the process that writes


def database_of(folder: Path, read_only: bool) -> tuple[Path, bool]:
    """The database of a folder, which is made when it is missing, and whether it can only be read."""
    database = folder / DATABASE
    try:
        if folder.exists() and not folder.is_dir():
            raise MemoryStoreError(f"{folder} is a file; a memory is a folder.", "Give another path.")
        if database.exists():
            _check_not_emptied(database)
            return database, read_only or not (os.access(folder, os.W_OK) and os.access(database, os.W_OK))
        if _has_index(folder):
            raise _lost(f"{folder} holds the index of a memory, but its database, {DATABASE}, is gone.")
        if folder.exists() and any(not found.name.startswith(".") for found in folder.iterdir()):
            raise MemoryCorrupt(
                f"{folder} holds files, but no memory of this kind.",
                "Give the path of a memory, or an empty folder. One of another kind is named in [memory] of a pipeline file "
                "(racm3 config show prints one to begin with), and by --kind where a command of racm3 memory has it.",
            )
        if read_only:
            raise MemoryStoreError(
                f"There is no memory at {folder}.",
                "Make one: racm3 index FOLDER --memory PATH, or FaissMemory(PATH), which makes it.",
            )
        make_folder(folder)
    except (OSError, ValueError) as error:  # a path that is none
        why = getattr(error, "strerror", None) or error
        raise MemoryStoreError(f"No memory can be opened at {str(folder)!r}: {why}.", "Give another path.") from error
    return database, False


def _check_not_emptied(database: Path) -> None:
    """An empty file is what a process leaves that was killed as it made a memory; but not beside a log of what was written, which
    SQLite would remove."""
    if database.stat().st_size:
        return
    log = log_of(database)
    if log.exists() and log.stat().st_size:
        raise _lost(f"{database} is empty, although there is a log of what was written to it beside it, {log.name}.")
    check_has_no_index(database)


def check_has_no_index(database: Path) -> None:
    """Raise `MemoryCorrupt` when there are vectors of documents beside a database that holds nothing."""
    if _has_index(database.parent):
        raise _lost(f"{database} is empty, although there is an index of its documents beside it.")


def _has_index(folder: Path) -> bool:
    """Whether the vectors of documents lie in a folder; what else is named index may be somebody else's."""
    return folder.is_dir() and any(folder.glob("vectors-*.rows"))


def _lost(what: str) -> MemoryCorrupt:
    return MemoryCorrupt(what, "Restore it from a backup; or remove the folder, to begin anew.")


def log_of(database: Path) -> Path:
    """What was written since the database file was: SQLite keeps it until the last process that has it open closes it."""
    return database.with_name(f"{database.name}-wal")
