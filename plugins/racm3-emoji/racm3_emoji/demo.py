"""The demo: unseen things drawn and captioned, with and without looking them up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from racm3 import Blank, Document, Generation, Options, Pipeline

from .bundle import held_out_documents

if TYPE_CHECKING:
    from racm3.interfaces import Progress

FLAGS = 3
CAPTION = Options(temperature=0.0, max_text_tokens=32)


@dataclass(frozen=True)
class Comparison:
    """One unseen drawing, and what was made of its text and of its picture, with documents and without."""

    truth: Document
    drawn: Generation
    drawn_alone: Generation
    captioned: Generation
    captioned_alone: Generation


def choose(truths: Sequence[Document], count: int) -> list[Document]:
    """One drawing for each test entity in turn over the groups, flags first: fixed, and picked by nobody.

    >>> from racm3 import Document
    >>> made = [Document(str(i), metadata={"group": g, "entity": str(i)}) for i, g in enumerate(["objects", "flags"])]
    >>> [d.text for d in choose(made, 2)]
    ['1', '0']
    """
    groups: dict[str, list[Document]] = {"flags": []}
    seen = set()
    for truth in truths:
        if truth.metadata["entity"] not in seen:
            seen.add(truth.metadata["entity"])
            groups.setdefault(str(truth.metadata["group"]), []).append(truth)
    chosen = groups["flags"][: min(FLAGS, count)]
    others = [members for name, members in sorted(groups.items()) if name != "flags"]
    place = 0
    while len(chosen) < count and any(place < len(members) for members in others):
        chosen += [members[place] for members in others if place < len(members)]
        place += 1
    return chosen[:count]


def compare(pipeline: Pipeline, count: int, seed: int, progress: Progress) -> list[Comparison]:
    """Draw and caption `count` unseen things; the same seed gives the same answers."""
    truths = choose(list(held_out_documents()), count)
    drawing = [Document([truth.texts[0], Blank("image")]) for truth in truths]
    captioning = [Document([Blank("text"), truth.images[0]]) for truth in truths]
    answers = []
    for done, (what, prompts, k, options) in enumerate(
        [
            ("Drawing, with documents", drawing, 2, None),
            ("Drawing, without", drawing, 0, None),
            ("Captioning, with documents", captioning, 2, CAPTION),
            ("Captioning, without", captioning, 0, CAPTION),
        ]
    ):
        progress(done, 4, what)
        answers.append(pipeline.generate(prompts, k=k, seed=seed, options=options))
    progress(4, 4, "Done")
    return [Comparison(*row) for row in zip(truths, *answers, strict=True)]


def write_pictures(comparisons: Sequence[Comparison], folder: Path) -> list[Path]:
    """The drawings as PNG files: with documents, without, and the true one."""
    written = []
    for comparison in comparisons:
        stem = comparison.truth.id.replace("/", "-")
        pictures = {
            "with-documents": comparison.drawn.image,
            "without": comparison.drawn_alone.image,
            "true": comparison.truth.image,
        }
        for name, image in pictures.items():
            assert image is not None
            path = folder / f"{stem}-{name}.png"
            image.picture.save(path)
            written.append(path)
    return written
