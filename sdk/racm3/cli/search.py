"""racm3 search: the nearest documents to a text, a picture, or both."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Annotated

import typer

from . import output
from .options import ConfigOption, JsonOption, MemoryOption, PresetOption, WhereOption, open_pipeline, parse_where


def search(
    query: Annotated[str | None, typer.Argument(help="What to look for.")] = None,
    image: Annotated[Path | None, typer.Option("--image", metavar="FILE", help="A picture to look for.")] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many documents.")] = 10,
    where: WhereOption = None,
    memory: MemoryOption = None,
    config: ConfigOption = None,
    preset: PresetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Search by text, by picture, or by both."""
    if not query and image is None:
        raise typer.BadParameter("give a text, or a picture with --image", param_hint="QUERY")
    from ..document import Document, Image, Part
    from ..generation import hit_to_json

    wanted = parse_where(where)
    parts: list[Part | str] = [query] if query else []
    if image is not None:
        parts.append(Image(image))
    with open_pipeline(config, preset, memory, generates=False) as pipeline:
        with output.working("Searching"):
            hits = pipeline.search(Document(parts), k=k, where=wanted)
        if as_json:
            output.print_json([hit_to_json(hit) for hit in hits])
            return
        if not hits:
            output.note("Nothing found.")
            return
        rows = [
            [f"{hit.score:.3f}", hit.id, textwrap.shorten(hit.document.text, 200), "yes" if hit.document.images else ""]
            for hit in hits
        ]
        output.table(["score", "id", "text", "picture"], rows)
