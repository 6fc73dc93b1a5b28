"""The right to write to a memory: one process has it at a time, from its first change until it closes the memory or ends.

SQLite alone would let writers take turns, and keep others waiting in between. A claim refuses a second one at once, and
says who is writing. It is a lock that the system holds on a file, so that it ends with its process, however that ends; the
process id in the file is only for the message. Without such locks (Windows) writers take turns.
"""

from __future__ import annotations

import os
import threading
import weakref
from contextlib import suppress
from pathlib import Path

from ..errors import MemoryLocked, MemoryStoreError

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]

_File = tuple[int, int]  # device and inode

# Locks belong to processes, so memories of one process share them: file -> its descriptor, and how many claims there are.
_held: dict[_File, tuple[int, int]] = {}
_guard = threading.RLock()


class Claim:
    """A claim on a file, which is made when it is missing. `MemoryLocked` names the process that has one already.

    place: what is claimed, for the message. Released by `release()`, at the latest with the object or its process.
    """

    def __init__(self, path: Path, place: str) -> None:
        try:
            key = _take(path)
        except BlockingIOError as error:
            owner = _owner(path)
            raise MemoryLocked(
                f"{place} is being written by {f'process {owner}' if owner else 'another process'}.",
                "One process writes at a time, until it closes the memory or ends; any number can read.",
                owner=owner,
            ) from error
        except OSError as error:
            raise MemoryStoreError(f"{place} cannot be written: {error.strerror or error}.") from error
        self.release = weakref.finalize(self, _let_go, key, os.getpid())


def is_claimed(path: Path) -> bool:
    """Whether a process has a claim on a file; where there are no such locks, nobody seems to have."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _take(path: Path) -> _File:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    with _guard:
        try:
            found = os.fstat(descriptor)
            key = (found.st_dev, found.st_ino)
            if key in _held:
                kept, claims = _held[key]
                _held[key] = kept, claims + 1
                os.close(descriptor)
                return key
            if fcntl is not None:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            os.close(descriptor)
            raise
        _held[key] = descriptor, 1
        with suppress(OSError):  # on a full disk the lock holds all the same
            os.ftruncate(descriptor, 0)
            os.write(descriptor, str(os.getpid()).encode())
        return key


def _let_go(key: _File, owner: int) -> None:
    if owner != os.getpid():  # the claim of a parent process
        return
    with _guard:
        descriptor, claims = _held.pop(key)
        if claims > 1:
            _held[key] = descriptor, claims - 1
            return
        with suppress(OSError):
            os.ftruncate(descriptor, 0)
        os.close(descriptor)


def _owner(path: Path) -> int | None:
    try:
        return int(path.read_bytes())
    except (OSError, ValueError):  # it has taken the lock, and not said so yet
        return None


def _forget() -> None:
    """A forked process has its parent's descriptors, which would hold the lock when the parent is long dead."""
    global _guard
    _guard = threading.RLock()
    for descriptor, _ in _held.values():
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
