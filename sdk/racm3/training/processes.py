"""Several processes, as `torchrun` or `accelerate launch` start them: the first one prepares, the others wait for it. Those
that were started apart keep out of each other's way."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from ..errors import ConfigError, MemoryLocked, MemoryStoreError
from ..memories.claim import Claim


def on_cpu(device: str) -> bool:
    """Whether to tell accelerate so. Several processes without an accelerator have to: else each takes itself for the only
    one, and all of them train the same."""
    import torch

    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return device == "cpu" or (several and (found is None or found.type == "mps"))  # for which it has no backend either


@contextmanager
def claimed(folder: Path, lock: str = ".lock") -> Iterator[None]:
    """The right to train in a folder, which is made; `ConfigError` while another process has it. lock: the file that says so."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        claim = Claim(folder / lock, str(folder))
    except MemoryLocked as error:
        raise ConfigError(
            f"{f'Process {error.owner}' if error.owner else 'Another process'} is training in {folder}.",
            "Wait until it has ended, or give another --name.",
        ) from error
    except MemoryStoreError:  # a file system without locks
        yield
        return
    try:
        yield
    finally:
        claim.release()


@contextmanager
def main_process_first(recipe: Mapping[str, Any]) -> Iterator[bool]:
    """Run a block in the main process, then in the others, which find what it left on disk; gives whether this is it."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield True
        return
    from accelerate import PartialState

    # Preparing may take hours; the others must not give up meanwhile.
    state = PartialState(cpu=on_cpu(recipe.get("trainer", {}).get("device", "auto")), timeout=timedelta(days=7))
    with state.main_process_first():
        yield bool(state.is_main_process)
