"""The command line: `racm3 --help`."""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> None:
    """Run `racm3` with the given arguments (default: those of the process), and exit.

    Exit codes: 0; 1 for an error that racm3 names; 2 for wrong usage; 130 when interrupted.
    """
    from .app import run

    run(argv)
