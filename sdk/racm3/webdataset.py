"""The webdataset format: tar files, called shards, in which the files of one sample follow each other under one key.

    00000.tar:  000000012.jpg  000000012.txt  000000012.json  000000047.jpg  ...

They are read with the standard library alone. The package of that name runs a file that is called "pipe:..." as a command of
the shell, and holds what is compressed or sparse in memory, however large it becomes.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from glob import glob
from pathlib import Path

from .errors import ConfigError

BLOCK = 512  # bytes; a tar file ends with two that are empty


def shards_of(path: Path) -> list[Path]:
    """The shards of a folder, or of a pattern such as shards/*.tar, by name. Raises `ConfigError` where there are none."""
    found = [path] if path.is_file() else sorted(map(Path, glob(str(path / "*.tar" if path.is_dir() else path))))
    if not found:
        raise ConfigError(
            f"There are no shards {path}.", "Give a folder of .tar files, or a pattern like 'shards/*.tar'."
        )
    return found


class _Bounded(io.BufferedReader):
    """A file that is asked for no more than it has: Python makes room before it reads, for as much as a header says."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self._size = path.stat().st_size

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(0, self._size - self.tell())
        return super().read(left if size is None or size < 0 else min(size, left))


def samples(shard: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """The key of each sample, with its files by what their names end in, lower case.

    What is read is never larger than the file. Raises `tarfile.TarError`, or whatever else tarfile raises, when the file is
    damaged; before it, all samples that come first are given.
    """
    with _Bounded(shard) as file, tarfile.open(fileobj=file, mode="r:") as tar:
        key, files = "", dict[str, bytes]()
        for member in tar:
            tar.members = []  # type: ignore[attr-defined]  # or it remembers all of them
            if member.isdir():
                continue
            folder, slash, name = member.name.rpartition("/")
            stem, _, suffix = name.partition(".")
            if not stem:  # hidden
                continue
            if folder + slash + stem != key and files:
                yield key, files
                files = {}
            key = folder + slash + stem
            opened = tar.extractfile(member) if member.isreg() and not member.issparse() else None
            if opened is None:
                raise tarfile.TarError(f"{member.name} is no plain file")
            files[suffix.lower()] = opened.read()
        if files:
            yield key, files
        # tarfile takes a damaged header for the end, and does without one.
        file.seek(tar.offset)  # type: ignore[attr-defined]
        if file.read(BLOCK) != bytes(BLOCK):
            raise tarfile.TarError(f"the file is cut short or damaged at byte {tar.offset}")  # type: ignore[attr-defined]
