"""Several processes, as `torchrun` or `accelerate launch` start them: the first one prepares, the others wait for it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any


@contextmanager
def main_process_first(recipe: Mapping[str, Any]) -> Iterator[bool]:
    """Run a block in the main process, then in the others, which find what it left on disk; gives whether this is it."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield True
        return
    from accelerate import PartialState

    # Preparing may take hours; the others must not give up meanwhile.
    state = PartialState(cpu=recipe.get("trainer", {}).get("device") == "cpu", timeout=timedelta(days=7))
    with state.main_process_first():
        yield bool(state.is_main_process)
