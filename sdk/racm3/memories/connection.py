"""Connections to the SQLite database of a memory, and what fails in them as errors of ours."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import MemoryCorrupt, MemoryLocked, MemoryStoreError
from .folder import log_of

BUSY_SECONDS = 5.0  # how long a writer waits for another one of its own process
DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def connected(path: Path | None, read_only: bool) -> Connection:
    place, uri = (":memory:" if path is None else str(path)), False
    if path is not None and read_only:
        # `immutable` needs no lock files, hence no write access.
        fixed = is_taken_to_be_fixed(path, read_only)
        place, uri = f"{path.resolve().as_uri()}?mode=ro{'&immutable=1' * fixed}", True
    connection = sqlite3.connect(
        place, uri=uri, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False, factory=Connection
    )
    # Damaged text must reach the checksum, which names the document, instead of failing to decode.
    connection.text_factory = lambda data: data.decode("utf-8", "replace")
    return connection


def is_taken_to_be_fixed(path: Path, read_only: bool) -> bool:
    """Whether a database is opened as one that never changes: where this process cannot write, and nobody else has it open."""
    return read_only and not (os.access(path.parent, os.W_OK) or log_of(path).exists())


class Stamp(NamedTuple):
    """What changes when somebody writes to a database: when its file was, its size, and that of its log; 0 of what is gone."""

    path: Path
    modified: int
    size: int
    logged: int


def stamp_of(path: Path) -> Stamp:
    modified, size = _time_and_size(path)
    return Stamp(path, modified, size, _time_and_size(log_of(path))[1])


def file_of(path: Path) -> tuple[int, int] | None:
    """Which file has that name; None: there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _time_and_size(path: Path) -> tuple[int, int]:
    try:
        found = os.stat(path)
    except OSError:
        return 0, 0
    return found.st_mtime_ns, found.st_size


def _told(method: Callable[..., Any]) -> Callable[..., Any]:
    """Damage can make SQLite's messages undecodable, its sizes exceed memory, and its numbers overflow: each is told as an
    error of the database."""

    def call(*arguments: Any) -> Any:
        try:
            return method(*arguments)
        except (UnicodeDecodeError, MemoryError, OverflowError) as error:
            raise _damage(error) from error

    return call


class _Cursor(sqlite3.Cursor):
    execute = _told(sqlite3.Cursor.execute)
    executemany = _told(sqlite3.Cursor.executemany)
    fetchone = _told(sqlite3.Cursor.fetchone)
    fetchall = _told(sqlite3.Cursor.fetchall)
    __next__ = _told(sqlite3.Cursor.__next__)


class Connection(sqlite3.Connection):
    run = _told(sqlite3.Connection.execute)  # what gives no rows

    def execute(self, *arguments: Any) -> sqlite3.Cursor:
        return self.cursor(_Cursor).execute(*arguments)

    def executemany(self, *arguments: Any) -> sqlite3.Cursor:
        return self.cursor(_Cursor).executemany(*arguments)


def _damage(error: Exception) -> sqlite3.DatabaseError:
    if isinstance(error, MemoryError):
        found, code = "it asks for more memory than there is", sqlite3.SQLITE_NOMEM
    elif isinstance(error, OverflowError):
        found, code = "its numbers are higher than they can be", sqlite3.SQLITE_CORRUPT
    else:
        found, code = "its tables are not described by text", sqlite3.SQLITE_CORRUPT
    damage = sqlite3.DatabaseError(found)
    damage.sqlite_errorcode = code
    return damage


@contextmanager
def translated(place: str, *, written: str = "") -> Iterator[None]:
    """SQLite's errors as ours. place: what is read; written: what is written meanwhile, where that is something else."""
    try:
        yield
    except sqlite3.Error as error:
        damaged = _code_of(error) in DAMAGED
        raise as_ours(place if damaged or not written else written, error) from error


def as_ours(place: str, error: sqlite3.Error) -> MemoryStoreError:
    code = _code_of(error)
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return MemoryLocked(f"{place} is being written.", "Try again when that is done, or write from one place.")
    if code == sqlite3.SQLITE_FULL:
        return MemoryStoreError(
            f"{place} cannot grow: {error}.", "What was being written is not stored. Make room, and do it again."
        )
    if code == sqlite3.SQLITE_READONLY:
        return MemoryLocked(f"{place} cannot be written: {error}.", "Open it with read_only=True.")
    if code in DAMAGED:
        return _damaged(place, error)
    if code == sqlite3.SQLITE_CANTOPEN:
        return MemoryStoreError(
            f"{place} cannot be opened: {error}.",
            "A memory for a read-only folder is made with FaissMemory.export_read_only.",
        )
    return MemoryStoreError(f"{place} failed: {error}.")


def _code_of(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _damaged(place: str, why: object) -> MemoryCorrupt:
    return MemoryCorrupt(f"{place} is damaged, or not a memory: {why}.", "Restore it from a backup.")
