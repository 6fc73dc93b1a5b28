"""What a program does to the files of a folder, change by change and sync by sync, read from a record of its system calls.

Each event has the places in that record at which its call began and ended, so that of calls which overlap none is taken to
have come before the other. What is missed here, as a write through a mapping or a name relative to where the program runs,
shows itself: `differences` compares what the events come to with what is in the folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from strace import Call, NotRecorded, read

ROOT = 0  # the inode of the folder


@dataclass(frozen=True)
class Event:
    began: int
    ended: int


@dataclass(frozen=True)
class Write(Event):
    inode: int
    offset: int
    data: bytes
    grows: bool


@dataclass(frozen=True)
class Resize(Event):
    inode: int
    size: int


@dataclass(frozen=True)
class Name(Event):
    """One change of folders, all or nothing. entries: what each (folder, name) shows from then on, None for nothing."""

    entries: dict[tuple[int, str], int | None]
    inode: int  # the file or folder that it is about
    replaces: bool = False  # whether it was renamed over another file


@dataclass(frozen=True)
class Sync(Event):
    inode: int | None  # None: everything
    data_only: bool


@dataclass(frozen=True)
class Said(Event):
    text: str


@dataclass
class Recording:
    """events: in the order in which they ended. folders: the inodes that are folders. mapped: files with a shared mapping
    that can be written."""

    events: list[Event] = field(default_factory=list)
    said: list[Said] = field(default_factory=list)
    folders: set[int] = field(default_factory=lambda: {ROOT})
    mapped: set[str] = field(default_factory=set)
    tree: dict[str, bytes | None] = field(default_factory=dict)  # what all of it comes to, by path; None for a folder


def parse(log: Path, folder: Path, words: Path) -> Recording:
    """Read a log. folder: an empty one when the recording began. words: a file elsewhere; what is written to it is said."""
    return _Parser(folder, words).run(read(log, [folder, words]))


def differences(recording: Recording, folder: Path) -> list[str]:
    """What is in a folder other than the record says, byte by byte."""
    there = {str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes() for path in folder.rglob("*")}
    return sorted(name for name in {*there, *recording.tree} if there.get(name, 0) != recording.tree.get(name, 0))


@dataclass
class _Open:
    inode: int
    at: int | None  # where the next write goes; None: to the end


class _Parser:
    def __init__(self, folder: Path, words: Path) -> None:
        self.folder, self.words = os.fsencode(folder), os.fsencode(words)
        self.recording = Recording()
        self.names: dict[tuple[int, str], int] = {}
        self.contents: dict[int, bytearray] = {}
        self.inodes = 1
        self.open: dict[str, _Open] = {}  # by descriptor; copies of one share it

    def run(self, calls: Iterator[Call]) -> Recording:
        for call in calls:
            if self.words in self._places(call):
                if call.name == "write":
                    text = call.strings[-1].decode()
                    self.recording.said.append(Said(call.began, call.ended, text))
                continue
            getattr(self, f"_{call.name}")(call)
        self.recording.tree = dict(self._walk(ROOT, ""))
        return self.recording

    # What a path or a descriptor is of

    def _places(self, call: Call) -> list[bytes]:
        return [path for _, path, _ in call.descriptors]

    def _below(self, path: bytes) -> list[str] | None:
        """The names on the way from the folder to a path; None when it is elsewhere."""
        path = os.path.normpath(path)
        if path == self.folder:
            return []
        return os.fsdecode(path[len(self.folder) + 1 :]).split("/") if path.startswith(self.folder + b"/") else None

    def _find(self, names: Sequence[str] | None) -> int | None:
        inode: int | None = ROOT
        for name in names if names is not None else [""]:
            inode = self.names.get((inode, name)) if inode is not None else None
        return inode

    def _paths(self, call: Call) -> list[list[str] | None]:
        """The paths of a call, those that are relative to a folder under it."""
        folders = [path for _, path, _ in call.descriptors]
        found = []
        for index, path in enumerate(call.strings):
            of = folders[min(index, len(folders) - 1)] if folders else b"/"
            found.append(self._below(os.path.join(of, path)))
        return found

    def _entry(self, names: list[str]) -> tuple[int, str]:
        parent = self._find(names[:-1])
        if parent is None:
            raise NotRecorded(f"the folder of {'/'.join(names)} is not known")
        return parent, names[-1]

    def _descriptors(self, call: Call) -> list[tuple[str, int | None]]:
        """The descriptors of a call and their inodes: None for what is elsewhere, or has no name any more: no crash that
        keeps its removal can show it, and one that does not may lack what came after."""
        return [
            (number, None if deleted else self._find(self._below(path))) for number, path, deleted in call.descriptors
        ]

    # Files

    def _openat(self, call: Call) -> None:
        names = self._paths(call)[0]
        if names is None:
            return
        flags = next(one for one in call.plain if "O_" in one).split("|")
        if "O_TMPFILE" in flags:
            raise NotRecorded("a file without a name was opened")
        inode = self._find(names)
        if inode is None:
            if "O_CREAT" not in flags:
                raise NotRecorded(f"{'/'.join(names)} was opened, and nobody had made it")
            inode = self._new(call, names)
            self.contents[inode] = bytearray()
        elif "O_TRUNC" in flags and inode in self.contents:
            self._resize(call, inode, 0)
        if {"O_SYNC", "O_DSYNC"} & set(flags):
            raise NotRecorded("a file was opened with O_SYNC")
        self.open[str(call.result)] = _Open(inode, None if "O_APPEND" in flags else 0)

    _open = _openat

    def _write(self, call: Call) -> None:
        ((number, inode),) = self._descriptors(call)
        if inode is not None:
            data, at = b"".join(call.strings)[: call.result], self._position(number, inode)
            self._put(call, inode, at, data)
            self._move(number, inode, at + len(data))

    _writev = _write

    def _pwrite64(self, call: Call) -> None:
        ((_, inode),) = self._descriptors(call)
        if inode is not None:
            offset = int(call.plain[-2 if call.name == "pwritev2" else -1])
            self._put(call, inode, offset, b"".join(call.strings)[: call.result])

    _pwritev = _pwritev2 = _pwrite64

    def _copy(self, call: Call, to: int, offsets: Sequence[str | None]) -> None:
        """to: which of the two descriptors is written. offsets: those that are said, in the order of the descriptors."""
        given = self._descriptors(call)
        places: list[int] = []
        for (number, inode), offset in zip(given, offsets, strict=True):
            if inode is None:
                if given[to][1] is None:
                    return
                raise NotRecorded("a file was filled from one elsewhere")
            places.append(self._position(number, inode) if offset is None else int(offset))
            if offset is None:
                self._move(number, inode, places[-1] + call.result)
        source, target = given[1 - to][1], given[to][1]
        assert source is not None and target is not None
        data = bytes(self.contents[source][places[1 - to] : places[1 - to] + call.result])
        if len(data) != call.result:
            raise NotRecorded("a file was filled from bytes that are not known")
        self._put(call, target, places[to], data)

    def _sendfile(self, call: Call) -> None:
        said = re.search(r"\[(\d+)\]", call.arguments)
        self._copy(call, 0, [None, said and said[1]])

    def _copy_file_range(self, call: Call) -> None:
        offsets = [re.search(r"\d+", one) for one in (call.plain[1], call.plain[3])]
        self._copy(call, 1, [said and said[0] for said in offsets])

    def _lseek(self, call: Call) -> None:
        ((number, inode),) = self._descriptors(call)
        if inode is not None:
            self._move(number, inode, call.result)

    def _read(self, call: Call) -> None:
        if opened := self.open.get(call.arguments):
            self._move(call.arguments, opened.inode, (opened.at or 0) + call.result)

    def _close(self, call: Call) -> None:
        ((number, _),) = self._descriptors(call)
        self.open.pop(number, None)

    def _dup(self, call: Call) -> None:
        number, _ = self._descriptors(call)[0]
        if number in self.open:
            self.open[str(call.result)] = self.open[number]

    _dup2 = _dup3 = _dup

    def _fcntl(self, call: Call) -> None:
        if "F_DUPFD" in call.arguments:
            self._dup(call)

    def _ftruncate(self, call: Call) -> None:
        ((_, inode),) = self._descriptors(call)
        if inode is not None:
            self._resize(call, inode, int(call.plain[-1]))

    def _truncate(self, call: Call) -> None:
        inode = self._find(self._paths(call)[0])
        if inode is not None:
            self._resize(call, inode, int(call.plain[-1]))

    def _fallocate(self, call: Call) -> None:
        ((_, inode),) = self._descriptors(call)
        mode, offset, length = call.plain[1:]
        if mode not in ("0", "FALLOC_FL_KEEP_SIZE"):
            raise NotRecorded(f"fallocate {mode}")
        if inode is not None and mode == "0" and int(offset) + int(length) > len(self.contents[inode]):
            self._resize(call, inode, int(offset) + int(length))

    def _mmap(self, call: Call) -> None:
        if "MAP_SHARED" not in call.arguments or "PROT_WRITE" not in call.arguments:
            return
        self.recording.mapped.update(
            "/".join(names) for path in self._places(call) if (names := self._below(path)) is not None
        )

    # Names

    def _mkdir(self, call: Call) -> None:
        if names := self._paths(call)[0]:
            self.recording.folders.add(self._new(call, names))

    _mkdirat = _mkdir

    def _unlink(self, call: Call) -> None:
        if names := self._paths(call)[0]:
            entry = self._entry(names)
            self._named(call, {entry: None}, self.names[entry])

    _unlinkat = _rmdir = _unlink

    def _link(self, call: Call) -> None:
        source, target = self._paths(call)
        if target is not None:
            inode = self._find(source)
            if inode is None:
                raise NotRecorded("a file from elsewhere got a name")
            self._named(call, {self._entry(target): inode}, inode)

    _linkat = _link

    def _rename(self, call: Call) -> None:
        source, target = self._paths(call)
        if source is None and target is None:
            return
        inode = self._find(source)
        if source is None or target is None or inode is None or "RENAME_EXCHANGE" in call.arguments:
            raise NotRecorded("a file was moved out of the folder, or into it")
        if source != target:
            entries = {self._entry(source): None, self._entry(target): inode}
            self._named(call, entries, inode, replaces=self._find(target) is not None)

    _renameat = _renameat2 = _rename

    # Bringing it to the disk

    def _fsync(self, call: Call) -> None:
        ((_, inode),) = self._descriptors(call)
        if inode is not None:
            self._happened(Sync(call.began, call.ended, inode, call.name == "fdatasync"))

    _fdatasync = _fsync

    def _sync(self, call: Call) -> None:
        self._happened(Sync(call.began, call.ended, None, False))

    _syncfs = _sync

    # What the files come to

    def _happened(self, event: Event) -> None:
        self.recording.events.append(event)

    def _new(self, call: Call, names: list[str]) -> int:
        inode, self.inodes = self.inodes, self.inodes + 1
        self._named(call, {self._entry(names): inode}, inode)
        return inode

    def _named(
        self, call: Call, entries: dict[tuple[int, str], int | None], inode: int, replaces: bool = False
    ) -> None:
        for entry, shown in entries.items():
            if shown is None:
                del self.names[entry]
            else:
                self.names[entry] = shown
        self._happened(Name(call.began, call.ended, entries, inode, replaces))

    def _position(self, number: str, inode: int) -> int:
        opened = self.open.get(number)
        if opened is None or opened.inode != inode:
            raise NotRecorded(f"where descriptor {number} writes is not known")
        return len(self.contents[inode]) if opened.at is None else opened.at

    def _move(self, number: str, inode: int, to: int) -> None:
        opened = self.open.get(number)
        if opened is not None and opened.inode == inode and opened.at is not None:
            opened.at = to

    def _put(self, call: Call, inode: int, offset: int, data: bytes) -> None:
        content = self.contents[inode]
        grows = offset + len(data) > len(content)
        content.extend(bytes(max(0, offset - len(content))))
        content[offset : offset + len(data)] = data
        self._happened(Write(call.began, call.ended, inode, offset, data, grows))

    def _resize(self, call: Call, inode: int, size: int) -> None:
        content = self.contents[inode]
        if len(content) != size:
            del content[size:]
            content.extend(bytes(size - len(content)))
            self._happened(Resize(call.began, call.ended, inode, size))

    def _walk(self, folder: int, path: str) -> Iterator[tuple[str, bytes | None]]:
        for (parent, name), inode in self.names.items():
            if parent == folder:
                if inode in self.recording.folders:
                    yield path + name, None
                    yield from self._walk(inode, f"{path}{name}/")
                else:
                    yield path + name, bytes(self.contents[inode])
