"""The application: racm3's own commands, those of plugins, and what becomes of errors."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Annotated, Any

import typer
import typer.main

from ..errors import ConfigError, PluginError, RACM3Error, sentence
from ..registry import registry
from . import output
from .ablate import ablate
from .caption import caption
from .config import app as config
from .evaluate import evaluate
from .generate import generate
from .index import index
from .memory import memory
from .plugins_group import app as plugins
from .search import search
from .train import train

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

app.command(epilog="Example: racm3 index ./photos --memory ./memory")(index)
app.command(epilog="Example: racm3 search 'a red kite' --memory ./memory -k 3")(search)
app.command(epilog="Example: racm3 generate 'a red kite' --out kite.png --seed 7")(generate)
app.command(epilog="Example: racm3 caption kite.png")(caption)
app.command(epilog="Example: racm3 evaluate ./photos --limit 50 --out ./evaluation")(evaluate)
app.command(epilog="Example: racm3 ablate generator.toml --run runs/mine --rows relevance,alpha --steps 500")(ablate)
app.add_typer(memory, name="memory")
app.add_typer(train, name="train")
app.add_typer(config, name="config")
app.add_typer(plugins, name="plugins")


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(version("racm3"))
        raise typer.Exit


@app.callback(epilog="Example: racm3 demo")
def racm3(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and the log (anywhere on the line).")] = False,
) -> None:
    """Retrieval-augmented generation of text and images."""


def demo() -> None:
    """See it work: needs the plugin racm3-emoji, which is not installed."""
    raise ConfigError(
        "The demo comes with the plugin racm3-emoji, which is not usable here.", "pip install racm3-emoji"
    )


def build() -> Any:
    """The whole command, with what plugins add. A plugin that fails here is taken out, and the others stay."""
    command = typer.main.get_group(app)
    own = set(command.commands)
    try:
        implementations = registry().implementations("racm3_commands")
    except PluginError:  # RACM3_STRICT: the command that needs the registry says so, and `plugins` lists it
        implementations = []
    for info, add_commands in implementations:
        try:
            added = _commands_of(add_commands)
            taken = sorted((own | set(command.commands)) & set(added))
            if taken:
                raise ValueError(f"there is a command {taken[0]!r} already")
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            registry().disable(info, "racm3_commands failed", error)
        else:
            for name, subcommand in added.items():
                command.add_command(subcommand, name)
    if "demo" not in command.commands:
        fallback = typer.Typer()
        fallback.command()(demo)
        command.add_command(typer.main.get_group(fallback).commands["demo"], "demo")
    return command


def _commands_of(add_commands: Any) -> dict[str, Any]:
    # An application of its own, so that a plugin can neither change ours nor leave half of its commands behind.
    theirs = typer.Typer()
    add_commands(app=theirs)
    if not theirs.registered_commands and not theirs.registered_groups:
        return {}
    return dict(typer.main.get_group(theirs).commands)


def run(argv: Sequence[str] | None = None) -> None:
    """See `racm3.cli.main`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    debug = "--debug" in options
    if debug:
        arguments.remove("--debug")
        logging.basicConfig(stream=sys.stderr)
        logging.getLogger("racm3").setLevel(logging.DEBUG)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that lacks a character still gets the rest
            stream.reconfigure(errors="backslashreplace")
    with nullcontext() if debug else output.warnings_shown():
        try:
            build().main(args=arguments, prog_name="racm3")
        except RACM3Error as error:
            if debug:
                raise
            output.error(error.message, error.hint)
        except Exception as error:
            if debug:
                raise
            if isinstance(error, OSError) and _answering(error):
                output.error(f"The answer cannot be written: {error.strerror or error}.")
                sys.exit(1)
            # A note says whose it is: see `racm3.crossing.calling`.
            said = " ".join([sentence(f"{type(error).__name__}: {error}"), *getattr(error, "__notes__", ())])
            output.error(said, "That was not foreseen: --debug shows where it happened.")
        sys.exit(1)


def _answering(error: OSError) -> bool:
    """Whether it comes from what writes to stdout: the files of commands have errors of their own."""
    *_, (innermost, _) = traceback.walk_tb(error.__traceback__)
    return innermost.f_globals.get("__name__", "").partition(".")[0] in ("click", "rich", "typer")
