"""Files and folders that are there whole or not at all: what documents rest on even if the power fails."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
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


def replace_file(target: Path, text: str) -> None:
    """Write a text file, so that whoever is killed leaves the old one or the new one. It may be lost with the power."""
    part = target.with_name(part_of(target.name))
    part.write_text(text, encoding="utf-8")
    os.replace(part, target)


@contextmanager
def replaced_folder(target: Path) -> Iterator[Path]:
    """The name of a folder to be made in the block, which then takes the place of `target`; not if there is an error.

    Whoever is killed leaves the old one or the new one; between two renames the old one is called `target` + ".old".
    """
    new, old = target.with_name(target.name + ".new"), target.with_name(target.name + ".old")
    shutil.rmtree(new, ignore_errors=True)
    new.parent.mkdir(parents=True, exist_ok=True)
    yield new
    if target.exists():  # otherwise the old one may be all there is, until the new one stands in its place
        shutil.rmtree(old, ignore_errors=True)
        os.replace(target, old)
    os.replace(new, target)
    shutil.rmtree(old, ignore_errors=True)


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
