"""What of a file the system holds in memory: the rest is asked for side by side, where a mapping would wait for one page after
the other. What is there already needs no such care, and comes sooner without it."""

from __future__ import annotations

import os

SAMPLED = 64  # places of a file that are looked at
NOWAIT = getattr(os, "RWF_NOWAIT", 0)  # read what is in memory, and no more than that


def is_cached(descriptor: int, start: int, stop: int) -> bool:
    """Whether a file seems to be in memory between two places; said of all files where the system never tells."""
    if not NOWAIT:
        return True
    try:
        places = range(start, stop, max(1, (stop - start) // SAMPLED))
        return all(os.preadv(descriptor, [bytearray(1)], place, NOWAIT) == 1 for place in places)
    except OSError:
        return False


def want(descriptor: int, start: int, length: int) -> None:
    """Have the system bring a piece of a file into memory, without waiting for it."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, start, length, os.POSIX_FADV_WILLNEED)
