"""What a disk can hold after the power has failed, made from a recording of what a program did.

Two file systems, of which the second is kinder:

- "posix": what the standard promises. The bytes of a file are there when it was synced after they were written, and a
  name when its folder was synced after it was given; of everything else any part may be there and any other not, whichever
  came first. A rename is all or nothing.
- "ext4": as ext4 does it by default (data=ordered, delayed allocation). Changes of names and truncations come to the disk
  in their order, and a sync of a file or a folder brings with it those before its own last change. Bytes are as above, but
  those of a file that was renamed over another one are there when that name is.

What was written a moment ago has not come to the disk by itself: a program that is recorded does all of it within seconds.
Unsynced bytes are kept or lost by the sector (512), the page (4096) or the whole call; what is lost at the end of a file may
leave zeros, as with space that was set aside, or nothing. A disk that loses what it was told to sync is outside of this.
"""

from __future__ import annotations

import hashlib
import random
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from recording import ROOT, Event, Name, Recording, Resize, Sync, Write

Model = Literal["posix", "ext4"]
MODELS: tuple[Model, ...] = ("posix", "ext4")
Tree = dict[str, bytes | None]  # by path; None for a folder

_NEVER = 2**62
_SHARES = (0.0, 0.1, 0.5, 0.9, 1.0)  # of what is not synced, that is there


class Disk:
    """The states that a recording can leave behind."""

    def __init__(self, recording: Recording) -> None:
        self._folders = recording.folders
        self._events = [event for event in recording.events if not isinstance(event, Sync)]
        self._syncs = [event for event in recording.events if isinstance(event, Sync)]
        self._order = [event for event in self._events if isinstance(event, Name | Resize)]  # as ext4 journals them
        by_inode: dict[int, list[Sync]] = defaultdict(list)
        every = {inode for event in self._events for inode in _touched(event)}
        for sync in self._syncs:
            for inode in every if sync.inode is None else [sync.inode]:
                by_inode[inode].append(sync)
        self._safe = [max(_first_after(event, by_inode[inode]) for inode in _holders(event)) for event in self._events]
        self._commits = self._journal_commits()
        self.moments = sorted({moment for event in recording.events for moment in (event.began, event.ended)})
        self.said = [said.began for said in recording.said]
        self.syncs, self.changes = len(self._syncs), len(self._events)

    def acknowledged(self, moment: int) -> int:
        """How many things had been said."""
        return sum(began <= moment for began in self.said)

    def after(self, moment: int, model: Model, draw: random.Random) -> Tree:
        """One of the states after a power failure right after a moment of the recording."""
        happened = [
            (event, since) for event, since in zip(self._events, self._safe, strict=True) if event.began <= moment
        ]
        there, gone = (self._in_any_order if model == "posix" else self._in_order)(happened, moment, draw)
        names: dict[int, dict[str, int]] = defaultdict(dict)
        changes: dict[int, list[Write | Resize]] = defaultdict(list)
        for event, _ in happened:
            if isinstance(event, Name) and id(event) in there:
                for (folder, name), inode in event.entries.items():
                    names[folder].pop(name, None)
                    if inode is not None:
                        names[folder][name] = inode
            elif isinstance(event, Write | Resize):
                changes[event.inode].append(event)
        damage = _Damage(draw)

        def walk(folder: int, path: str) -> Iterator[tuple[str, bytes | None]]:
            for name, inode in sorted(names[folder].items()):
                if inode in self._folders:
                    yield path + name, None
                    yield from walk(inode, f"{path}{name}/")
                else:
                    yield path + name, damage.content(changes[inode], there, gone)

        return dict(walk(ROOT, ""))

    # Each of the two tells what is there and what is gone for sure; a change of names or sizes is one of them, and of a
    # write that is neither some is there.

    def _in_any_order(
        self, happened: list[tuple[Event, int]], moment: int, draw: random.Random
    ) -> tuple[set[int], set[int]]:
        there, share = {id(event) for event, since in happened if since <= moment}, draw.choice(_SHARES)
        there |= {id(event) for event, _ in happened if not isinstance(event, Write) and draw.random() < share}
        return there, {id(event) for event, _ in happened if not isinstance(event, Write)} - there

    def _in_order(
        self, happened: list[tuple[Event, int]], moment: int, draw: random.Random
    ) -> tuple[set[int], set[int]]:
        least = max((through for ended, through in self._commits if ended <= moment), default=0)
        most = sum(event.began <= moment for event in self._order)
        through = draw.choice([least, most, draw.randint(least, max(least, most))])
        there = {id(event) for event in self._order[:through]}
        gone = {id(event) for event in self._order[through:]}
        cut = {event.inode: event.began for event in reversed(self._order[through:]) if isinstance(event, Resize)}
        renamed = {
            event.inode: event.began for event in self._order[:through] if isinstance(event, Name) and event.replaces
        }
        for event, since in happened:
            if isinstance(event, Write):
                if since <= moment or event.ended < renamed.get(event.inode, -1):
                    there.add(id(event))
                elif event.began > cut.get(event.inode, _NEVER):  # room that the file did not have yet
                    gone.add(id(event))
        return there, gone

    def _journal_commits(self) -> list[tuple[int, int]]:
        """(when a sync had ended, how many changes of names and sizes it has brought to the disk) under "ext4"."""
        ended = [event.ended for event in self._order]
        last: dict[tuple[int, bool], int] = {}  # (inode, whether of its names and size) -> the end of its last change
        grown: set[int] = set()
        commits = []
        events: list[Event] = sorted([*self._events, *self._syncs], key=lambda event: event.ended)
        for event in events:
            if not isinstance(event, Sync):
                overwrites = isinstance(event, Write) and not event.grows
                last.update({(inode, False): event.ended for inode in _touched(event)})
                if not overwrites:
                    last.update({(inode, True): event.ended for inode in _touched(event)})
                if isinstance(event, Write) and event.grows:
                    grown.add(event.inode)
            elif event.inode is None or event.inode in grown:  # room for its bytes is found in the newest transaction
                commits.append((event.ended, bisect_left(ended, event.began)))
                grown = grown - {event.inode} if event.inode is not None else set()
            else:
                until = last.get((event.inode, event.data_only), -1) + 1
                commits.append((event.ended, bisect_left(ended, min(until, event.began))))
        return commits


class _Damage:
    """How unsynced bytes come to a disk, in one state."""

    def __init__(self, draw: random.Random) -> None:
        self._draw, self._share = draw, draw.choice([*_SHARES, *[None] * len(_SHARES)])  # None: another for each file
        self._piece, self._sets_aside = draw.choice([512, 4096, None]), draw.random() < 0.5

    def content(self, changes: list[Write | Resize], there: set[int], gone: set[int]) -> bytes:
        content, share = bytearray(), self._draw.choice(_SHARES) if self._share is None else self._share
        for change in changes:
            if id(change) in gone:
                continue
            if isinstance(change, Resize):
                del content[change.size :]
                content.extend(bytes(change.size - len(content)))
            elif id(change) in there:
                _put(content, change.offset, change.data)
            else:
                self._put_some(content, change, share)
        return bytes(content)

    def _put_some(self, content: bytearray, write: Write, share: float) -> None:
        start, end = write.offset, write.offset + len(write.data)
        while start < end:
            stop = end if self._piece is None else min(end, (start // self._piece + 1) * self._piece)
            if self._draw.random() < share:
                _put(content, start, write.data[start - write.offset : stop - write.offset])
            elif self._sets_aside:
                content.extend(bytes(max(0, stop - len(content))))
            start = stop


def _put(content: bytearray, offset: int, data: bytes) -> None:
    content.extend(bytes(max(0, offset - len(content))))
    content[offset : offset + len(data)] = data


def _holders(event: Event) -> set[int]:
    """What has to be synced for a change to be on disk."""
    if isinstance(event, Name):
        return {folder for folder, _ in event.entries}
    assert isinstance(event, Write | Resize)
    return {event.inode}


def _touched(event: Event) -> set[int]:
    return _holders(event) | {event.inode}  # type: ignore[attr-defined]


def _first_after(event: Event, syncs: list[Sync]) -> int:
    """When the first sync has ended that began after a change was made; they are in the order of their ends."""
    return next((sync.ended for sync in syncs if sync.began > event.ended), _NEVER)


def write_tree(tree: Tree, folder: Path) -> None:
    folder.mkdir()
    for name, content in tree.items():
        if content is None:
            (folder / name).mkdir()
        else:
            (folder / name).write_bytes(content)


def key_of(tree: Tree) -> str:
    digest = hashlib.sha256()
    for name, content in sorted(tree.items()):
        digest.update(f"{name}\0{-1 if content is None else len(content)}\0".encode())
        digest.update(content or b"")
    return digest.hexdigest()
