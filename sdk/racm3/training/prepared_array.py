"""Arrays that are prepared once, on disk, block by block: a preparation that was killed goes on where it was.

NAME.npy, NAME.json              the array, memory-mapped when it is opened, and what it was made from
NAME.part.npy, NAME.part.json    the same of one that is not finished yet, with the number of rows that are done
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CheckpointError
from ..interfaces import Progress
from .run_files import read_json, reading, write_json

AGAIN = "Delete it to prepare it again."


def prepared_array(
    path: Path,
    shape: tuple[int, ...],
    dtype: Any,
    made_from: Mapping[str, str],
    compute: Callable[[int, int], np.ndarray],
    *,
    block: int,
    what: str,
    progress: Progress | None = None,
) -> np.ndarray:
    """The array at `path` (.npy), opened read-only; what is missing of it is computed first.

    compute(start, stop) gives rows start:stop. made_from: fingerprints of whatever the array depends on, by name. An
    array that was made from something else, finished or not, is refused with `CheckpointError`; what its record does not
    name is not compared.
    """
    if not path.is_file():
        _fill(path, shape, dtype, made_from, compute, block, what, progress)
    with reading(path, AGAIN):
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    _check(path, made_from, _record(path))
    if array.shape != tuple(shape):
        raise CheckpointError(
            f"{path} has the shape {array.shape}; {tuple(shape)} is needed: it was made for other documents or settings.",
            "Delete it to prepare it again, or give another --run.",
        )
    return array


def _fill(
    path: Path, shape: tuple[int, ...], dtype: Any, made_from: Mapping[str, str],
    compute: Callable[[int, int], np.ndarray], block: int, what: str, progress: Progress | None,
) -> None:  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part.npy")
    record = _record(part)
    done = int(record.pop("done", 0)) if part.is_file() else 0
    if done:
        _check(part, made_from, record)
        with reading(part, AGAIN):
            array = np.lib.format.open_memmap(part, mode="r+")
    if not done or array.shape != tuple(shape) or array.dtype != np.dtype(dtype):
        array, done = np.lib.format.open_memmap(part, mode="w+", dtype=dtype, shape=tuple(shape)), 0
    first, began = done, time.perf_counter()
    while done < len(array):
        stop = min(done + block, len(array))
        array[done:stop] = compute(done, stop)
        array.flush()  # before the record says so
        done = stop
        write_json(part.with_suffix(".json"), {**made_from, "done": done})
        if progress is not None:
            rate = (done - first) / (time.perf_counter() - began)
            progress(done, len(array), f"{what} ({rate:.0f} documents/s)")
    write_json(path.with_suffix(".json"), dict(made_from))
    os.replace(part, path)
    part.with_suffix(".json").unlink(missing_ok=True)


def _record(path: Path) -> dict[str, Any]:
    """What is written down about an array; nothing about one that an earlier version made."""
    file = path.with_suffix(".json")
    return read_json(file, f"Delete it and {path.name} to prepare them again.") if file.is_file() else {}


def _check(path: Path, made_from: Mapping[str, str], record: Mapping[str, Any]) -> None:
    changed = [name for name, value in made_from.items() if name in record and record[name] != value]
    if changed:
        raise CheckpointError(
            f"{path} was made from something else: the {' and the '.join(changed)} changed.",
            "Delete it to prepare it again, or give another --run.",
        )
