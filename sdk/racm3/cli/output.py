"""What is shown: answers on stdout; progress, notes and errors on stderr."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer

from ..interfaces import Progress


def console() -> Any:
    """Stderr. Nothing in a message is markup: captions and paths hold whatever they hold."""
    from rich.console import Console

    return Console(stderr=True, markup=False, highlight=False, emoji=False)


def answer_console() -> Any:
    """Stdout."""
    from rich.console import Console

    return Console(markup=False, highlight=False, emoji=False)


def print_json(value: Any) -> None:
    """One JSON value, alone on stdout. Escaped to ASCII: any terminal and any pipe takes it."""
    typer.echo(json.dumps(value, indent=2, allow_nan=False))


def note(message: str) -> None:
    console().print(message, style="dim", soft_wrap=True)


def error(message: str, hint: str = "") -> None:
    console().print(f"Error: {message}", style="red", soft_wrap=True)
    if hint:
        console().print(hint, soft_wrap=True)


def warn(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """In place of `warnings.showwarning`: what racm3 has to say, and nothing of what libraries tell programmers."""
    if category.__module__.startswith("racm3.") or category is UserWarning:
        console().print(f"Warning: {message}", style="yellow", soft_wrap=True)


def table(columns: list[str], rows: list[list[str]]) -> None:
    """A table on stdout that folds long cells: on a narrow terminal nothing is cut off."""
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column, overflow="fold")
    for row in rows:
        made.add_row(*(Text(cell) for cell in row))
    answer_console().print(made)


@contextmanager
def progress(label: str) -> Iterator[Progress]:
    """A bar on stderr, drawn on terminals only; gives the callback that moves it."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    drawn = console()
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=drawn, transient=True, disable=not drawn.is_terminal) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total, _: bar.update(task, completed=done, total=total or None)


@contextmanager
def working(label: str) -> Iterator[None]:
    """A spinner on stderr, on terminals only, for work that cannot say how far it is."""
    drawn = console()
    if not drawn.is_terminal:
        yield
        return
    with drawn.status(label):
        yield
