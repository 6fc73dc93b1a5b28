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
from typing import NamedTuple

from .errors import ConfigError

BLOCK = 512  # bytes; a tar file ends with two that are empty


class Sample(NamedTuple):
    """files: by what their names end in, lower case. fault: what is wrong with one of them, which is left out then."""

    key: str
    files: dict[str, bytes]
    fault: str = ""


def shards_of(path: Path) -> list[Path]:
    """The shards of a folder, or of a pattern such as shards/*.tar, by name. Raises `ConfigError` where there are none."""
    if path.is_dir():
        found = [shard for shard in path.glob("*.tar") if not shard.name.startswith(".")]
    else:
        found = [path] if path.exists() else [Path(name) for name in glob(str(path))]
    shards = sorted(shard for shard in found if shard.is_file())  # a pipe would be waited for
    if not shards:
        raise ConfigError(
            f"There are no shards {path}.", "Give a folder of .tar files, or a pattern like 'shards/*.tar'."
        )
    return shards


def samples(shard: Path, *, largest: int | None = None) -> Iterator[Sample]:
    """The samples of a shard, in its order. largest: bytes of a file that is read.

    What is read is never larger than the shard. Raises `tarfile.TarError`, or whatever else tarfile raises, when it is
    damaged; of what comes before the damage, all but the last sample is given.
    """
    with _Bounded(shard) as file, tarfile.open(fileobj=file, mode="r:") as tar:
        sample = Sample("", {})
        for member in tar:
            tar.members = []  # type: ignore[attr-defined]  # or it remembers all of them
            if tar.offset <= member.offset:  # type: ignore[attr-defined]  # and would come by here again, for ever
                raise tarfile.TarError(f"{member.name} has a size below zero")
            folder, slash, name = member.name.rpartition("/")
            stem, _, suffix = name.partition(".")
            if member.isdir() or not stem:  # hidden
                continue
            if folder + slash + stem != sample.key:
                if sample.key:
                    yield sample
                sample = Sample(folder + slash + stem, {})
            if fault := _fault(member, suffix.lower() in sample.files, largest):
                sample = sample._replace(fault=fault)
                continue
            opened = tar.extractfile(member)
            assert opened is not None
            sample.files[suffix.lower()] = opened.read()
        # tarfile takes a damaged header for the end, and does without one.
        file.seek(tar.offset)  # type: ignore[attr-defined]
        if file.read(BLOCK) != bytes(BLOCK):
            raise tarfile.TarError(f"the file is cut short or damaged at byte {tar.offset}")  # type: ignore[attr-defined]
        if sample.key:
            yield sample


def _fault(member: tarfile.TarInfo, known: bool, largest: int | None) -> str:
    if not member.isreg() or member.issparse():
        return f"{member.name} is no plain file."
    if largest is not None and member.size > largest:
        return f"{member.name} has more than {largest:,} bytes, the limit."
    return f"{member.name} comes twice." if known else ""


class _Bounded(io.BufferedReader):
    """A file that is asked for no more than it has: Python makes room before it reads, for as much as a header says."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self._size = path.stat().st_size

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(0, self._size - self.tell())
        return super().read(left if size is None or size < 0 else min(size, left))
