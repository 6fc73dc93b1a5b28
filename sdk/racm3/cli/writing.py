"""Files that a command writes: whether they can be written is found out before any work is done."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError

if TYPE_CHECKING:
    from ..document import Image


def check_file(path: Path) -> None:
    """Raise `ConfigError` unless a file can be written at a path, whose folders may be missing. Leaves nothing behind."""
    _check(path, path.parent, is_folder=False)


def check_folder(path: Path, option: str = "--out") -> None:
    """The same for files in a folder, which may be missing."""
    _check(path, path, is_folder=True, option=option)


def cannot_write(path: Path, error: OSError | ValueError, option: str = "--out") -> ConfigError:
    """What to raise when writing failed after all."""
    return ConfigError(
        f"{path} cannot be written: {getattr(error, 'strerror', None) or error}.", f"Give another {option}."
    )


def save_picture(image: Image, path: Path) -> None:
    """Write a picture in the format of its suffix, whole or not at all."""
    unfinished = path.with_name(f".racm3-{os.getpid()}{path.suffix}")
    try:
        image.picture.save(unfinished)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _check(path: Path, folder: Path, *, is_folder: bool, option: str = "--out") -> None:
    try:
        if path.exists() and path.is_dir() != is_folder:
            code = errno.ENOTDIR if is_folder else errno.EISDIR
            raise OSError(code, os.strerror(code))
        if path.is_file() and not os.access(path, os.W_OK):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        while not folder.exists():
            folder = folder.parent
        # Tried, not asked for: permission bits do not tell of read-only and of virtual file systems.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise cannot_write(path, error, option) from error
