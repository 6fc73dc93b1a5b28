"""racm3 search: the nearest documents to a text, a picture, or both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import MemoryCorrupt, nearest
from ..interfaces import Hit, MemoryStore, Where
from . import output
from .options import ConfigOption, JsonOption, MemoryOption, PresetOption, WhereOption, chosen_pipeline, given_text


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
    if image is None:
        query = given_text(query, "give a text, or a picture with --image", option="QUERY")
    from ..document import Document, Image, Part
    from ..document_json import hit_to_json
    from ..pipeline import Pipeline
    from ..retrieval import why_nothing

    parts: list[Part | str] = [query] if query else []
    if image is not None:
        parts.append(shown := Image(image))
        _ = shown.picture  # a broken file is found out before any weights are loaded
    with Pipeline.from_config(chosen_pipeline(config, preset, memory, generates=False)) as pipeline:
        with output.working("Searching"):
            hits = pipeline.search(Document(parts), k=k, where=where)
        if not hits:
            why = _unknown_field(pipeline.memory, where or {}) or why_nothing(pipeline.memory, where)
            output.note(f"Nothing was found: {why}.")
        found = _readable(hits)
        if as_json:
            output.print_json([hit_to_json(hit) for hit in found])
        elif found:
            output.table(["score", "id", "text", "picture"], [_row(hit) for hit in found])
        if hits and not found:
            raise typer.Exit(1)


def _unknown_field(memory: MemoryStore, where: Where) -> str:
    """What is said of a filter on a field that no document has, as far as the memory knows its fields."""
    from ..memories.where import fields_in

    stats: Callable[[], Mapping[str, Any]] = getattr(memory, "stats", dict)  # others need not have it
    known: Mapping[str, int] = stats().get("fields", {}) if where else {}
    unknown = sorted(fields_in(where) - set(known)) if known else []
    if not unknown:
        return ""
    meant = nearest(unknown[0], known)
    return f"no document has the field {unknown[0]!r}. {f'{meant} ' if meant else ''}Known: {', '.join(known)}"


def _row(hit: Hit) -> list[str]:
    document = hit.document
    return [f"{hit.score:.3f}", hit.id, output.shortened(document.text, 200), "yes" if document.images else ""]


def _readable(hits: list[Hit]) -> list[Hit]:
    """The hits whose documents can be read: one that is damaged, or whose picture is gone, does not hide the others."""
    found = []
    for hit in hits:
        try:
            _ = hit.document
        except MemoryCorrupt as error:
            output.note(f"{hit.id} is left out: {error.message} {error.hint}")
        else:
            found.append(hit)
    return found
