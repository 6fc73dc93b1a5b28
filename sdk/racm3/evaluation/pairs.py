"""Paired data to evaluate on: pictures with their captions, from a folder, a JSONL file, COCO's captions JSON, or shards."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..coco import coco_documents
from ..collection import OnSkip, read_folder
from ..document import Document, Image
from ..errors import ConfigError, InvalidDocument, InvalidImage
from ..interfaces import Progress

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pair:
    """A picture, and what is true of it.

    document: a caption and the picture. references: all captions, the document's among them. entity: what is shown;
    drawings of one entity count as right for each other, and every entity weighs the same.
    """

    document: Document
    references: tuple[str, ...]
    entity: str

    @property
    def caption(self) -> str:
        return self.references[0]

    @property
    def image(self) -> Image:
        return self.document.images[0]


def read_pairs(
    path: str | Path,
    *,
    images: str | Path | None = None,
    entity: str | None = None,
    limit: int | None = None,
    on_skip: OnSkip | None = None,
    progress: Progress | None = None,
) -> list[Pair]:
    """The pairs of a data set, in its order.

    path: a folder or shards as `racm3 index` reads them; or COCO's captions JSON, whose pictures lie in `images`, by default
    beside it or where COCO has them (annotations/captions_val2017.json and val2017/). entity: the key of the metadata that
    says what is shown; by default every pair is an entity of its own. limit: so many, drawn once and for all.

    on_skip: called with the path and the error of each sample that is bad or not a pair. Raises `ConfigError` where
    there is nothing to evaluate on.
    """
    source, skip = Path(path).expanduser(), on_skip or _log
    if source.suffix.lower() == ".json":
        found: Iterable[Document] = coco_documents(
            source, images=images, on_skip=skip, progress=progress, choose=lambda count: _drawn(count, limit)
        )
    elif images is not None:
        raise ConfigError("The folder of the pictures is for COCO captions JSON.", f"Leave it out for {source}.")
    else:
        found = _folder(source, limit, skip, progress)
    pairs = []
    for document in found:
        if not _is_pair(document):
            skip(document.id, InvalidDocument("It is no pair: one picture with a caption is needed."))
            continue
        name = document.id if entity is None else _entity(document, entity)
        pairs.append(Pair(document.replace(parts=_first(document), id=document.id), document.texts, name))
    if not pairs:
        listings = sorted(str(file) for file in source.glob("*.json")) if source.is_dir() else []
        hint = f"Give the captions JSON itself: {listings[0]}." if listings else "Give a folder, or COCO captions JSON."
        raise ConfigError(f"There are no pictures with captions in {source}.", hint)
    return [pairs[i] for i in _drawn(len(pairs), limit)]


def _is_pair(document: Document) -> bool:
    return bool(document.texts) and len(document.images) == 1


def _folder(source: Path, limit: int | None, skip: OnSkip, progress: Progress | None) -> Iterator[Document]:
    """The documents of a folder; with a limit, of its pairs those that are drawn: no other picture is held or decoded."""
    if limit is None:
        yield from read_folder(source, on_skip=skip, progress=progress)
        return
    count = sum(map(_is_pair, read_folder(source, on_skip=lambda where, error: None, decode=False)))
    drawn, number = set(_drawn(count, limit)), -1
    for document in read_folder(source, on_skip=skip, progress=progress, decode=False):
        number += _is_pair(document)
        if not _is_pair(document):
            yield document
        elif number in drawn:
            try:
                _ = document.images[0].picture  # a broken one is passed over
            except InvalidImage as error:
                skip(document.id, error)
            else:
                yield document


def _first(document: Document) -> list[str | Image]:
    return [document.texts[0], document.images[0]]


def _entity(document: Document, key: str) -> str:
    if document.metadata.get(key) is None:
        known = ", ".join(sorted(name for name, value in document.metadata.items() if value is not None)) or "none"
        raise ConfigError(f"{document.id!r} has no metadata {key!r}. It has: {known}.", "Choose another --entity.")
    return str(document.metadata[key])


def _drawn(count: int, limit: int | None) -> list[int]:
    """Which of `count` are kept: the same ones every time."""
    if limit is None or limit >= count:
        return list(range(count))
    return sorted(np.random.default_rng(0).choice(count, limit, replace=False).tolist())


def _log(where: str, error: Exception) -> None:
    logger.warning("%s is passed over: %s", where, error)
