"""The command line: `racm3 --help`."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> None:
    """Run `racm3` with the given arguments (default: those of the process), and exit.

    Exit codes: 0; 1 for what is wrong with files, memories, models and pipelines; 2 for what can be seen to be wrong on
    the command line alone (an empty text, a number out of range, a filter that is not well formed); 130 when interrupted.
    """
    try:
        from .app import run

        run(argv)
    except KeyboardInterrupt:  # as the command line itself is being loaded
        sys.exit(130)
