"""What is compared in one run: the same prompts, answered with and without documents (paper section 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..document import Image, Modality
from ..interfaces import Generator, Request
from .grounding import Context, Grounding

# Names as they stand in evaluation.json, and as a reader sees them.
CONDITIONS = {
    "ra_cm3": "RA-CM3",
    "no_documents": "the same model, no documents",
    "random_documents": "the same model, random documents",
    "vanilla": "vanilla CM3",
    "top_document": "retrieval baseline (the top document)",
}
BLANKS: tuple[Modality, ...] = ("image", "text")


@dataclass(frozen=True)
class Condition:
    """A model with the requests that it answers: for pictures, and for captions."""

    name: str
    generator: Generator
    requests: dict[Modality, list[Request]]


def conditions(grounding: Grounding, vanilla: Generator | None) -> list[Condition]:
    """Those that generate; the retrieval baseline is had from the first one's requests."""
    ours = grounding.pipeline.generator
    assert ours is not None
    asked: list[tuple[str, Generator, Context]] = [
        ("ra_cm3", ours, "retrieved"), ("no_documents", ours, "none"), ("random_documents", ours, "random")
    ]  # fmt: skip
    if vanilla is not None:
        asked.append(("vanilla", vanilla, "none"))
    return [
        Condition(name, generator, {blank: grounding.requests(blank, context) for blank in BLANKS})
        for name, generator, context in asked
    ]


def top_pictures(requests: Sequence[Request]) -> list[Image] | None:
    """What handing back the best document would draw; None where some prompt found no document with a picture."""
    found = [next((hit.document.images[0] for hit in one.context if hit.document.images), None) for one in requests]
    pictures = [picture for picture in found if picture is not None]
    return pictures if len(pictures) == len(found) else None


def top_texts(requests: Sequence[Request]) -> list[str] | None:
    """What handing back the best document would say; None where some prompt found no document with a text."""
    found = [next((hit.document.texts[0] for hit in one.context if hit.document.texts), None) for one in requests]
    texts = [text for text in found if text is not None]
    return texts if len(texts) == len(found) else None
