"""What is shown: answers on stdout; progress, notes and errors on stderr."""

from __future__ import annotations

import json
import logging
import time
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer

from ..interfaces import Progress

SECONDS_BETWEEN_LINES = 10.0  # of progress, where there is no terminal
READABLE = 12  # columns of a terminal that each column of a table has at least, on average
DIRECTIONS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


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


def printable(text: str) -> str:
    """Without control characters, or any that turn the direction of writing: a caption or a file name must not tell the
    terminal what to do."""

    def commands(c: str) -> bool:
        return (unicodedata.category(c) == "Cc" and c not in "\n\t") or c in DIRECTIONS

    return "".join("\ufffd" if commands(c) else c for c in text)


def shortened(text: str, width: int = 60) -> str:
    """A text on one line, cut to so many columns of a terminal."""
    from rich.text import Text

    line = Text(printable(" ".join(text.split())))
    line.truncate(width, overflow="ellipsis")
    return line.plain


def note(message: str) -> None:
    console().print(printable(message), style="dim", soft_wrap=True)


def error(message: str, hint: str = "") -> None:
    console().print(f"Error: {printable(message)}", style="red", soft_wrap=True)
    if hint:
        console().print(printable(hint), soft_wrap=True)


class _Warnings(logging.Handler):
    """What racm3 and its plugins have to say, each thing once, and nothing of what libraries tell programmers."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: set[str] = set()

    def say(self, message: str) -> None:
        if message not in self.said:
            self.said.add(message)
            console().print(f"Warning: {printable(message[:1].upper() + message[1:])}", style="yellow", soft_wrap=True)

    def emit(self, record: logging.LogRecord) -> None:
        self.say(record.getMessage())

    def show(self, message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        """In place of `warnings.showwarning`."""
        if category.__module__.startswith("racm3"):
            self.say(str(message))


@contextmanager
def warnings_shown() -> Iterator[None]:
    """Inside, warnings and the log are one: what matters of both is shown once, in one style."""
    shown, silent = _Warnings(), logging.NullHandler()
    # The root logger gets a handler that does nothing: libraries configure one that shows all where there is none.
    handlers = {logging.getLogger("racm3"): shown, logging.getLogger(): silent}
    with warnings.catch_warnings():
        warnings.showwarning = shown.show
        for logger, handler in handlers.items():
            logger.addHandler(handler)
        try:
            yield
        finally:
            for logger, handler in handlers.items():
                logger.removeHandler(handler)


def table(columns: list[str], rows: list[list[str]]) -> None:
    """A table on stdout that folds long cells: on a narrow terminal nothing is cut off. On one that leaves a column no
    room to be read in, the cells of a row stand below each other."""
    from rich.table import Table
    from rich.text import Text

    drawn = answer_console()
    if drawn.width < READABLE * len(columns):
        for row in rows:
            for column, cell in zip(columns, row, strict=True):
                if cell:
                    drawn.print(Text(f"{column}: {printable(cell)}"))
            drawn.print()
        return
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column, overflow="fold")
    for row in rows:
        made.add_row(*(Text(printable(cell)) for cell in row))
    drawn.print(made)


def count(number: int, of: str) -> str:
    """ "1 shard", "2 shards"."""
    return f"{number} {of}" if number == 1 else f"{number} {of}s"


@contextmanager
def interruptible(outcome: Callable[[], str] = lambda: "nothing was written.") -> Iterator[None]:
    """Ctrl-C inside ends the command with status 130, and a line that says what has come of it so far."""
    try:
        yield
    except KeyboardInterrupt:
        note(f"Interrupted: {outcome()}")
        raise typer.Exit(130) from None


@contextmanager
def progress(label: str) -> Iterator[Progress]:
    """A bar with its rate on stderr, or a line now and then where that is no terminal; gives the callback that moves it."""
    drawn = console()
    if not drawn.is_terminal:
        note(f"{label} ...")
        yield _lines_now_and_then()
        return
    with _bar(drawn, rate=True) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total, _: bar.update(task, completed=done, total=total or None)


def _lines_now_and_then() -> Progress:
    began = last = time.monotonic()

    def line(done: int, total: int, _: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > SECONDS_BETWEEN_LINES:
            last = now
            note(f"{done}/{total or '?'} ({done / (now - began):.1f}/s)")

    return line


@contextmanager
def stages(label: str) -> Iterator[Progress]:
    """The same for a few stages, each of them named when it begins: off a terminal, a line for each."""
    drawn = console()
    if not drawn.is_terminal:
        note(f"{label} ...")
        yield lambda done, total, stage: note(f"{stage} ({done + 1} of {total}) ...") if done < total else None
        return
    with _bar(drawn) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total, stage: bar.update(task, completed=done, total=total, description=stage)


@contextmanager
def watched(label: str) -> Iterator[Progress]:
    """What is being done, with figures: a bar on a terminal, else a line on stderr now and then."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    drawn = console()
    note(label)
    if not drawn.is_terminal:
        last = 0.0

        def line(done: int, total: int, what: str) -> None:
            nonlocal last
            if time.monotonic() - last > SECONDS_BETWEEN_LINES or done == total:
                last = time.monotonic()
                note(f"{done}/{total or '?'} {what}")

        yield line
        return
    columns = (
        BarColumn(20),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}", markup=False),
    )
    with Progress(*columns, console=drawn, transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total, what: bar.update(task, completed=done, total=total or None, description=what)


def _bar(drawn: Any, *, rate: bool = False) -> Any:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:.1f}/s" if task.speed else "")

    columns = [TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn()]
    columns += [Rate()] if rate else []
    return Progress(*columns, TimeRemainingColumn(), console=drawn, transient=True)


@contextmanager
def working(label: str) -> Iterator[None]:
    """A spinner on stderr, on terminals only, for work that cannot say how far it is."""
    drawn = console()
    if not drawn.is_terminal:
        yield
        return
    with drawn.status(label):
        yield
