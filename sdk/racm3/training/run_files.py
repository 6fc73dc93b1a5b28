"""The small files of a training run: replaced at once when they are written, and named when they cannot be read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..durable import replace_file
from ..errors import CheckpointError, InvalidImage


@contextmanager
def reading(path: Path, mend: str) -> Iterator[None]:
    """Whatever shows that a file is damaged while it is read, as `CheckpointError` that names it. mend: what helps then."""
    from safetensors import SafetensorError

    try:
        yield
    except (CheckpointError, InvalidImage) as error:  # of whoever reads it, who knows of no run
        raise CheckpointError(error.message, mend) from error
    except PermissionError as error:  # which nothing helps against that mends a file
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.", "Let this user read it.") from error
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise CheckpointError(f"{path} is damaged, and cannot be read: {error}", mend) from error


def read_json(path: Path, mend: str) -> dict[str, Any]:
    """The object in a file. Raises `CheckpointError`."""
    with reading(path, mend):
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise TypeError(f"it holds no object, but {found!r:.40}.")
    return found


def check_model(folder: Path, mend: str) -> None:
    """Raise `CheckpointError` when a file of a model is cut short or no JSON. Of weights no more than the header is read."""
    from safetensors import safe_open

    for path in sorted(folder.rglob("*")):
        if path.suffix == ".json":
            read_json(path, mend)
        elif path.suffix == ".safetensors":
            with reading(path, mend), safe_open(path, "np"):
                pass


def write_json(path: Path, value: Any, *, indent: int | None = None) -> None:
    """Written whole or not at all."""
    replace_file(path, json.dumps(value, indent=indent, default=str) + "\n")
