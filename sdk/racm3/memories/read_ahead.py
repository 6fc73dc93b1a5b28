"""Documents that lie on the disk, brought from it side by side.

SQLite reads one page, and only then the next: ten documents of a large memory wait for the disk some twenty times. So after two
readings that took long, other connections read what the next ones are going to, each a document, and bring it into the page
cache. What they read is thrown away; of their errors the reading itself will tell.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TypeVar

READERS, PAGES = 8, 8  # pages that each of them holds
LONG = 100e-6  # seconds for a document: from the page cache it takes 10, or 50 when readers bring it there for nothing
TURNS = 16  # readings, after which one without readers tells whether they are still worth it

T = TypeVar("T")


class ReadAhead:
    """connect: makes a connection for a reader; None: nothing lies on a disk."""

    def __init__(self, connect: Callable[[], sqlite3.Connection] | None) -> None:
        self._connect = connect
        self._long = 0  # how many readings without readers took long, one after the other
        self._turns = 0  # how many are to have readers
        self._readers: ThreadPoolExecutor | None = None
        self._own, self._connections = threading.local(), list[sqlite3.Connection]()

    def reading(self, read: Callable[[], T], statement: str, numbers: Sequence[int]) -> T:
        """What `read` reads of documents, by number. statement: with what readers bring one of them."""
        if self._connect is None or len(numbers) < 2:
            return read()
        if self._turns:
            self._turns -= 1
            with suppress(RuntimeError):  # no thread can be had, or not any more: the process is ending
                self._readers = self._readers or ThreadPoolExecutor(READERS, thread_name_prefix="racm3-read-ahead")
                list(self._readers.map(partial(self._bring, statement), numbers))
            return read()
        began = time.perf_counter()
        found = read()
        self._long = self._long + 1 if time.perf_counter() - began > LONG * len(numbers) else 0
        self._turns = TURNS if self._long > 1 else 0
        return found

    def close(self) -> None:
        if self._readers is not None:
            self._readers.shutdown()
        for connection in self._connections:
            connection.close()

    def _bring(self, statement: str, number: int) -> None:
        with suppress(sqlite3.Error):
            if not hasattr(self._own, "connection"):
                assert self._connect is not None
                self._own.connection = self._connect()
                self._connections.append(self._own.connection)
                self._own.connection.execute(f"PRAGMA cache_size = {PAGES}")
                # Who waits for readers may hold what another process waits for.
                self._own.connection.execute("PRAGMA busy_timeout = 0")
            self._own.connection.execute(statement, (number,)).fetchall()
