"""Calls to the system that a program makes, as strace writes them down: whatever any of its threads, libraries and child
processes ask for, in whatever language they are written."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

CALLS = (
    "open,openat,write,pwrite64,writev,pwritev,pwritev2,lseek,truncate,ftruncate,fallocate,sendfile,copy_file_range,"
    "read,close,dup,dup2,dup3,fcntl,mmap,mkdir,mkdirat,rmdir,link,linkat,unlink,unlinkat,rename,renameat,renameat2,"
    "fsync,fdatasync,sync,syncfs"
)
_STRACE = ["strace", "-f", "--seccomp-bpf", "-qqq", "-e", "signal=none"]


class NotRecorded(Exception):
    """Something was done that cannot be done again from a record of it."""


def record(command: Sequence[str | Path], log: Path, **options: object) -> subprocess.CompletedProcess:
    """Run a command under strace. What it does comes into `log`."""
    # Of what is read only the number of bytes matters: where the next write goes.
    strace = [*_STRACE, "-y", "-xx", "-s", str(2**26), "-e", f"trace={CALLS}", "-e", "raw=read", "-o", log]
    return subprocess.run([*strace, *command], check=False, **options)  # type: ignore[call-overload]


def possible() -> bool:
    """Whether strace is there and allowed to trace."""
    try:
        return subprocess.run([*_STRACE, "-o", os.devnull, "true"], capture_output=True).returncode == 0
    except OSError:
        return False


_STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"(\.\.\.)?')
_DESCRIPTOR = re.compile(r"(\d+|AT_FDCWD)<((?:\\x[0-9a-f]{2})*)>(\(deleted\))?")
_CALL = re.compile(r"(\w+)\((.*)\) += (-?\d+).*")
_READ = re.compile(r"read\((0x[0-9a-f]+|0), .*\) += (0x[0-9a-f]+|0)")
_HEXED = re.compile(r'"[^"]*"|<[^>]*>')


@dataclass(frozen=True)
class Call:
    began: int
    ended: int
    name: str
    arguments: str
    result: int

    @property
    def strings(self) -> list[bytes]:
        found = _STRING.findall(self.arguments)
        if any(cut for _, cut in found):
            raise NotRecorded(f"a {self.name} was cut short")
        return [_bytes(text) for text, _ in found]

    @property
    def descriptors(self) -> list[tuple[str, bytes, bool]]:
        """Each with what it is open as, and whether that has lost its name."""
        found = _DESCRIPTOR.findall(self.arguments)
        return [(number, _bytes(path), bool(deleted)) for number, path, deleted in found]

    @property
    def plain(self) -> list[str]:
        """The arguments, with neither strings nor paths."""
        return [one.strip() for one in _HEXED.sub("", self.arguments).split(",")]


def read(log: Path, places: Sequence[Path]) -> Iterator[Call]:
    """Those that succeeded and name one of the places, or everything, in the order in which they ended."""
    needles = ["".join(f"\\x{byte:02x}" for byte in os.fsencode(place)) for place in places]
    begun: dict[str, tuple[int, str]] = {}
    with log.open(encoding="ascii") as lines:
        for number, line in enumerate(lines):
            thread, _, text = line.rstrip("\n").partition(" ")
            text, began = text.strip(), number
            if text.endswith(" <unfinished ...>"):
                begun[thread] = number, text.removesuffix(" <unfinished ...>")
                continue
            if text.startswith("<... "):
                began, first = begun.pop(thread)
                text = first + text.partition(" resumed>")[2]
            if got := _READ.fullmatch(text):
                yield Call(began, number, "read", str(int(got[1], 16)), int(got[2], 16))
                continue
            if not any(needle in text for needle in needles) and not text.startswith("sync("):
                continue
            found = _CALL.fullmatch(text)
            if found is not None and int(found[3]) >= 0:
                yield Call(began, number, found[1], found[2], int(found[3]))
            elif found is None and not text.endswith("= ?"):
                raise NotRecorded(f"not understood: {text[:200]}")


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))
