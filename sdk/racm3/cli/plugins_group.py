"""racm3 plugins: the table of what is installed, and, for who writes a plugin, `check` and `new`."""

from __future__ import annotations

import typer

from .options import JsonOption
from .plugins import plugins
from .plugins_check import check
from .plugins_new import new

app = typer.Typer(invoke_without_command=True)
app.command(epilog="Example: racm3 plugins check faiss")(check)
app.command(epilog="Example: racm3 plugins new shelf --interface memory")(new)


@app.callback(epilog="Example: racm3 plugins --json")
def table(context: typer.Context, as_json: JsonOption = False) -> None:
    """List all that is installed, and why what is broken is broken; check a component, or begin a new plugin."""
    if context.invoked_subcommand is None:
        plugins(as_json)
