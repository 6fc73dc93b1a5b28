"""Files and folders that are there whole or not at all, even if the power fails."""

from __future__ import annotations

import os
from pathlib import Path


def part_of(name: str) -> str:
    """What a file is called while it is being written, so that half of it is never taken for the whole."""
    return f".{name}.part"


def publish(part: Path, target: Path) -> None:
    """Rename a written file into place: its bytes are on disk before its name is, and its name when this returns."""
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(part, target)
    sync_folder(target.parent)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it that are missing. What is stored in one that has no name on disk yet is lost."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for place in missing:
        sync_folder(place.parent)


def sync_folder(folder: Path) -> None:
    """Bring the names of a folder to the disk; elsewhere than on POSIX the system does so of itself."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
