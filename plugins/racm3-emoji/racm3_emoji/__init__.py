"""The emoji world: a plugin of racm3 with data, trained models, a ready memory, a demo, and the commands that make them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from racm3 import Preset, hookimpl

if TYPE_CHECKING:
    import typer


@hookimpl
def racm3_presets() -> Iterator[Preset]:
    yield Preset(
        "emoji", "racm3_emoji.bundle:pipeline_tables", summary="Emoji of five vendors and six flag sets, 64x64"
    )


@hookimpl
def racm3_commands(app: typer.Typer) -> None:
    from . import commands

    commands.add_to(app)
