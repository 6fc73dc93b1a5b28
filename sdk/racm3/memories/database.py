"""The SQLite database of a memory: its format, and transactions over one connection behind one lock."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

from ..durable import part_of, publish
from ..errors import MemoryCorrupt, MemoryLocked, MemoryStoreError
from .claim import Claim
from .connection import as_ours, connected, file_of, is_taken_to_be_fixed, stamp_of, translated
from .folder import LOCK, check_has_no_index, log_of
from .log import check as check_log
from .read_ahead import ReadAhead

APPLICATION_ID = 0x7261636D  # "racm", in the header of the file
FORMAT = 2
PAGE = 8192  # bytes; three documents of 2 KB share one, where SQLite's default of 4096 takes one for each
PACKED_PAGE = 16384  # of what is not written to any more: larger ones waste less still, but log more for each addition
WRITER_CACHE = 16 * 2**20  # bytes; ids and hashes come in any order, so a writer touches its indexes all over
BATCH = 512  # rows read, or keys of one statement, at a time

SCHEMA = """
CREATE TABLE manifest (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE documents (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id BLOB NOT NULL UNIQUE,             -- UTF-8
    content_hash BLOB NOT NULL,          -- SHA-256
    metadata BLOB NOT NULL,              -- JSON, UTF-8
    vector BLOB NOT NULL,                -- float32 or float16, little-endian
    checksum BLOB NOT NULL               -- over the four columns above
);
CREATE TABLE contents (                  -- what parts show, shared between documents
    key INTEGER PRIMARY KEY,
    hash BLOB NOT NULL,                  -- SHA-256
    is_image INTEGER NOT NULL,           -- 0: a text; 1: an image; 2: the same, which lies in a file
    data BLOB NOT NULL,                  -- UTF-8; an encoded image; or its size in bytes, a space, and the path
    checksum BLOB NOT NULL               -- over the two columns above: an image's hash may be that of its pixels
);
-- The first bytes of a hash find it as well as all of them, in a quarter of the room.
CREATE INDEX documents_by_hash ON documents (substr(content_hash, 1, 8));
CREATE INDEX contents_by_hash ON contents (substr(hash, 1, 8));
CREATE TABLE parts (seq INTEGER, position INTEGER, content INTEGER, PRIMARY KEY (seq, position)) WITHOUT ROWID;
CREATE INDEX parts_by_content ON parts (content);
CREATE TABLE fields (                    -- each value of each metadata field once
    key INTEGER PRIMARY KEY, name BLOB NOT NULL, kind TEXT NOT NULL, value NOT NULL, UNIQUE (name, kind, value)
);
CREATE TABLE tags (                      -- which documents have it, each element of a list: what `where` reads
    field INTEGER, seq INTEGER, PRIMARY KEY (field, seq)
) WITHOUT ROWID;
INSERT INTO manifest VALUES ('generation', 0);
"""


class Database:
    """Everything happens inside `reading()` or `writing()`, which are transactions: what is read in one of them belongs
    together, and what is written in one is stored whole or not at all. `looking()` is for a single statement.

    path: the database file; None keeps it in memory. read_only: never writes, and opens in folders without write access.
    durable: a transaction is on disk when it ends; otherwise soon after, and whole in any case.
    """

    def __init__(self, path: Path | None, *, read_only: bool = False, durable: bool = True) -> None:
        self.path, self.read_only, self.durable = path, read_only, durable
        self.place = "The memory" if path is None else f"The memory at {path.parent}"
        self.shipped = False  # whether it is as `copy_to` wrote it, and nobody has changed it since
        self._claim: Claim | None = None
        self._lock = threading.RLock()
        self._process = os.getpid()
        self._closed = False
        self._fixed = stamp_of(path) if path is not None and is_taken_to_be_fixed(path, read_only) else None
        if path is not None:
            check_log(log_of(path), path.with_name(LOCK))
        with translated(self.place):
            self.connection = connected(path, read_only)
        try:
            with translated(self.place):
                self._open_or_create()
        except BaseException:
            self.connection.close()
            raise
        self._file = None if path is None else file_of(path)
        self.ahead = ReadAhead(None if path is None else partial(connected, path.resolve(), True))

    def _open_or_create(self) -> None:
        run = self.connection.execute
        if not self._is_ours():
            if self.path is not None:
                check_has_no_index(self.path)
            if self.read_only:
                raise MemoryStoreError(
                    f"{self.place} holds nothing yet.",
                    "Fill it: racm3 index FOLDER --memory PATH, or FaissMemory(PATH).add.",
                )
            run(f"PRAGMA page_size = {PAGE}")
            run("PRAGMA journal_mode = WAL")
            run("BEGIN IMMEDIATE")
            if not self._is_ours():  # another process may have been quicker
                for statement in SCHEMA.split(";\n"):
                    run(statement)
                run(f"PRAGMA application_id = {APPLICATION_ID}")
                run(f"PRAGMA user_version = {FORMAT}")
            run("COMMIT")
        self.shipped = run("PRAGMA journal_mode").fetchone()[0] == "delete"
        run(f"PRAGMA synchronous = {'FULL' if self.durable else 'NORMAL'}")

    def _is_ours(self) -> bool:
        """False for an empty database; an error for somebody else's or one of another format."""
        application = self.one("PRAGMA application_id")
        version = self.one("PRAGMA user_version")
        if application == APPLICATION_ID and version != FORMAT:
            raise MemoryStoreError(
                f"{self.place} has format {version}; this racm3 reads format {FORMAT}.",
                "Upgrade racm3." if version > FORMAT else "Add its documents to a new memory.",
            )
        if application == 0 and self.one("SELECT count(*) FROM sqlite_master") == 0:
            return False
        if application != APPLICATION_ID:
            raise MemoryCorrupt(f"{self.place} is another program's database.", "Give another path.")
        return True

    # Transactions

    def reading(self) -> AbstractContextManager[None]:
        """A consistent view of what is committed."""
        return _Transaction(self, "BEGIN")

    def looking(self) -> AbstractContextManager[None]:
        """The same for a single statement, which needs no transaction, and is over sooner without one."""
        return _Transaction(self, None)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """All or nothing; `MemoryLocked` when the memory is read-only or another process is the one that writes."""
        self._become_writer()
        with _Transaction(self, "BEGIN IMMEDIATE"):
            yield

    def _become_writer(self) -> None:
        self.check_process()
        with self._lock:
            self._check_open()
            self._check_place()
            if self.read_only:
                mine = self.path is not None and os.access(self.path.parent, os.W_OK) and os.access(self.path, os.W_OK)
                mend = "Open it with read_only=False, or copy" if mine else "Copy"
                raise MemoryLocked(f"{self.place} is read-only.", f"{mend} it to a folder of your own, to change it.")
            if self.path is None or self._claim is not None:
                return
            claim = Claim(self.path.with_name(LOCK), self.place)
            try:
                with translated(self.place):
                    self.connection.execute("PRAGMA journal_mode = WAL")
                    self.connection.execute(f"PRAGMA cache_size = {-WRITER_CACHE // 1024}")
            except BaseException:
                claim.release()
                raise
            self._claim, self.shipped = claim, False

    def _begin(self, statement: str | None) -> None:
        self._check_open()
        if self.connection.in_transaction:
            raise MemoryStoreError(
                "The memory was used by the documents that are being added to it.",
                "Make a list of the documents before adding them.",
            )
        if statement is not None:
            self.connection.run(statement)

    def _end(self, commit: bool) -> None:
        try:
            if commit:
                self.connection.run("COMMIT")
        finally:
            if self.connection.in_transaction:
                self.connection.run("ROLLBACK")

    def _check_open(self) -> None:
        if self._closed:
            raise MemoryStoreError(f"{self.place} is closed.", "Open it again.")
        if self._fixed is not None and stamp_of(self._fixed.path) != self._fixed:
            raise MemoryStoreError(f"{self.place} has been written to since it was opened.", "Open it again.")

    def _check_place(self) -> None:
        """What is written to a file that is not there any more, nobody would find."""
        if self.path is not None and file_of(self.path) != self._file:
            raise MemoryStoreError(
                f"{self.place} was removed, or replaced by another one, since it was opened.",
                "Nothing is written. Open it again.",
            )

    def check_process(self) -> None:
        """Before the lock is taken, which a thread of the parent may have held when it forked."""
        if self._process != os.getpid():  # SQLite connections do not survive a fork
            raise MemoryStoreError(f"{self.place} was opened by the parent process.", "Open it again in this process.")

    @property
    def closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        if self._process != os.getpid():  # it is the parent's, which goes on with it
            self._closed = True
            return
        with self._lock:
            if not self._closed:
                self.ahead.close()
                self.connection.close()
            self._closed = True
            if self._claim is not None:
                self._claim.release()

    def vacuum(self) -> None:
        """Give the room of what was removed back to the disk. SQLite does it in one transaction."""
        self._become_writer()
        with self._lock, translated(self.place):
            self.connection.execute("VACUUM")
            self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def copy_to(self, path: Path) -> None:
        """A compact copy that can be opened where nothing can be written, and needs no other files. There when this
        returns, or not at all."""
        part = path.with_name(part_of(path.name))
        self.check_process()
        try:
            with self._lock, translated(self.place, written=f"The copy at {path.parent}"):
                self._check_open()
                part.unlink(missing_ok=True)  # of a process that was killed
                self.connection.execute("VACUUM INTO ?", (str(part),))
                copy = sqlite3.connect(str(part))
                try:
                    with copy:
                        self._make_whole(copy)
                    copy.execute("PRAGMA journal_mode = DELETE")
                    copy.execute(f"PRAGMA page_size = {PACKED_PAGE}")
                    copy.execute("VACUUM")
                finally:
                    copy.close()
            publish(part, path)
        except OSError as error:
            raise MemoryStoreError(f"{path} cannot be written: {error.strerror or error}.") from error
        finally:
            with suppress(OSError):
                part.unlink(missing_ok=True)

    def _make_whole(self, copy: sqlite3.Connection) -> None:
        """Bring into a copy what lies elsewhere."""

    # Inside a transaction

    def one(self, sql: str, parameters: Sequence[Any] = ()) -> Any:
        return self.connection.execute(sql, parameters).fetchone()[0]

    def with_keys(self, sql: str, keys: Iterable[Any]) -> list[tuple[Any, ...]]:
        """Run a statement with `IN (?)` over any number of keys; the rows that it gives."""
        found, keys = [], iter(keys)
        while batch := list(islice(keys, BATCH)):
            found += self.connection.execute(_of_so_many(sql, len(batch)), batch).fetchall()
        return found


@lru_cache
def _of_so_many(sql: str, keys: int) -> str:
    return sql.replace("(?)", f"({','.join('?' * keys)})")


class _Transaction:
    """All or nothing, behind the database's lock. A class, not a generator: every search enters one, and this takes half the
    time."""

    __slots__ = ("_database", "_statement")

    def __init__(self, database: Database, statement: str | None) -> None:
        self._database, self._statement = database, statement

    def __enter__(self) -> None:
        database = self._database
        database.check_process()
        database._lock.acquire()
        try:
            database._begin(self._statement)
        except sqlite3.Error as error:
            database._lock.release()
            raise as_ours(database.place, error) from error
        except BaseException:
            database._lock.release()
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        database = self._database
        try:
            database._end(commit=error is None and self._statement is not None)
            if isinstance(error, sqlite3.Error):
                raise error
        except sqlite3.Error as raised:
            raise as_ours(database.place, raised) from raised
        finally:
            database._lock.release()
