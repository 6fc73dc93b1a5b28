"""A user's data, read once: pictures at the size of training in one memory-mapped file, texts beside them.

    data/
      pixels.bin        uint8 [pictures, size, size, 3]
      documents.jsonl   one line a document: which picture and its hash, id, text, entity, source, name, keywords
      skipped.jsonl     one line a sample that could not be used: where, and why
      dataset.json      the settings that it was read with, and counts; written last

The source is streamed: no more than one picture at a time is in memory.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from ..collection import check_characters
from ..document import Document
from ..errors import ConfigError, InvalidDocument
from ..interfaces import Progress
from .data import Corpus, PixelRows, TrainingSet
from .run_files import read_json, reading
from .sources import read_source


class DataSettings(BaseModel):
    """The `[data]` table of a recipe."""

    model_config = ConfigDict(extra="forbid")

    source: str = Field("folder", description="folder, jsonl, coco, webdataset, or module:function that gives a Corpus")
    path: Path | None = Field(None, description="the folder, the file, or the shards (a folder or a pattern)")
    images: Path | None = Field(
        None, description="folder of the pictures, for jsonl and coco; default: that of the file"
    )
    size: int = Field(64, ge=8, description="side of the pictures in pixels; padded to a square on white")
    held_out: float = Field(0.05, ge=0, lt=1, description="share of the entities that is never trained on, by a hash")
    entity: str = Field(
        "entity", description="metadata key: documents that share it show one thing; without it those of one picture do"
    )
    hand: str = Field(
        "source",
        description="metadata key: who drew or took it, none of whose pictures of one thing is retrieved for another",
    )
    limit: int | None = Field(None, ge=1, description="documents at most")


def open_dataset(settings: DataSettings, folder: Path, progress: Progress | None = None) -> Corpus:
    """The documents of a source: those read before, or else read now into `folder`, whole or not at all.

    A document needs a picture and a text; samples without, broken pictures and the like are passed over, and listed in
    `skipped.jsonl`. `ConfigError` if the folder was read with other settings, or if nothing is left.
    """
    summary = folder / "dataset.json"
    wanted = json.loads(settings.model_dump_json())
    if not summary.is_file():
        _read(settings, wanted, folder, progress)
    found = read_json(summary, _again(folder))
    before = found.get("settings") or {}
    if before != wanted:
        differing = ", ".join(key for key in wanted if wanted[key] != before.get(key))
        raise ConfigError(
            f"{folder} was read with another [data] table: {differing}.", "Give another --run, or delete the folder."
        )
    return _open(settings, folder, found)


def skipped(folder: Path) -> list[dict[str, str]]:
    """The samples that were passed over when `folder` was read: where, and error."""
    path = folder / "skipped.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def is_held_out(entity: str, share: float) -> bool:
    """By the entity's SHA-256 alone: the same on every machine, and whatever else there is."""
    return int.from_bytes(hashlib.sha256(entity.encode()).digest()[:8]) < share * 2**64


def _again(folder: Path) -> str:
    return f"Delete {folder}: the documents are read again."


def _read(settings: DataSettings, recorded: dict[str, Any], folder: Path, progress: Progress | None) -> None:
    if settings.path is None:
        raise ConfigError("The table [data] of the recipe has no path.", "Say where the documents are.")
    new = folder.with_name(folder.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    made = [place for place in (new, *new.parents) if not place.exists()]
    new.mkdir(parents=True)
    try:
        _read_into(new, settings, recorded, progress)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        with suppress(OSError):
            for place in made[1:]:
                place.rmdir()
        raise
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(new, folder)


def _read_into(new: Path, settings: DataSettings, recorded: dict[str, Any], progress: Progress | None) -> None:
    assert settings.path is not None
    documents = pictures = passed_over = 0
    last, began = "", time.perf_counter()
    with (
        (new / "pixels.bin").open("wb") as pixels,
        (new / "documents.jsonl").open("w", encoding="utf-8") as lines,
        (new / "skipped.jsonl").open("w", encoding="utf-8") as bad,
    ):

        def skip(where: str, error: Exception) -> None:
            nonlocal passed_over
            passed_over += 1
            bad.write(json.dumps({"where": where, "error": str(error)}) + "\n")

        for document in read_source(settings.source, settings.path, settings.images, skip):
            try:
                entry, image = _entry(document, settings), document.images[0]
            except InvalidDocument as error:
                skip(document.id, error)
                continue
            if image.content_hash != last:  # the next caption of the same picture shares its pixels
                pixels.write(np.ascontiguousarray(image.square(settings.size)).tobytes())
                last, pictures = image.content_hash, pictures + 1
            lines.write(json.dumps({"picture": pictures - 1, "sha256": last, **entry}) + "\n")
            documents += 1
            if progress is not None and documents % 100 == 0:
                rate = documents / (time.perf_counter() - began)
                progress(documents, settings.limit or 0, f"documents read ({rate:.0f}/s, {passed_over} passed over)")
            if documents == settings.limit:
                break
    if not documents:
        listed = "; ".join(f"{s['where']}: {s['error']}" for s in skipped(new)[:3])
        raise ConfigError(
            f"{settings.path} holds no document with a picture and a text. {passed_over} samples were passed over. {listed}",
            "A picture's text is in a .txt file of the same name, or in a .jsonl file.",
        )
    counts = {"documents": documents, "pictures": pictures, "skipped": passed_over}
    digest = hashlib.sha256((new / "documents.jsonl").read_bytes()).hexdigest()
    (new / "dataset.json").write_text(json.dumps({"settings": recorded, **counts, "digest": digest}, indent=2) + "\n")


def _entry(document: Document, settings: DataSettings) -> dict[str, Any]:
    if len(document.images) != 1 or not document.text:
        pictures = {0: "no picture", 1: "a picture"}.get(len(document.images), "several pictures")
        text = "a text" if document.text else "no text"
        raise InvalidDocument(f"A picture with a text is needed; it has {pictures} and {text}.")
    metadata = document.metadata
    keywords = metadata.get("keywords")
    entry = {
        "id": document.id,
        "text": document.text,
        "entity": str(metadata.get(settings.entity) or document.images[0].content_hash),
        "source": str(metadata.get(settings.hand) or ""),
        "name": str(metadata.get("name") or document.text),
        "keywords": [str(word) for word in keywords] if isinstance(keywords, (list, tuple)) else [],
    }
    check_characters(entry)
    return entry


def _open(settings: DataSettings, folder: Path, counts: dict[str, Any]) -> Corpus:
    listed, stored = folder / "documents.jsonl", folder / "pixels.bin"
    with reading(listed, _again(folder)), listed.open(encoding="utf-8") as lines:
        entries = [json.loads(line) for line in lines]
        if len(entries) != counts["documents"]:
            raise ValueError(f"it has {len(entries)} lines, not {counts['documents']}.")
    with reading(stored, _again(folder)):
        pixels = np.memmap(stored, np.uint8, "r", shape=(counts["pictures"], settings.size, settings.size, 3))
    data = TrainingSet(
        pixels=PixelRows(pixels, np.array([entry["picture"] for entry in entries])),
        ids=[entry["id"] for entry in entries], texts=[entry["text"] for entry in entries],
        entities=[entry["entity"] for entry in entries], names=[entry["name"] for entry in entries],
        # Where nobody says who drew what, the retriever learns from any two pictures of a thing; with one unnamed hand
        # for all it would have no pairs. For neighbours the two are the same.
        sources=[entry["source"] for entry in entries] if any(entry["source"] for entry in entries) else [],
        keywords=[entry["keywords"] for entry in entries],
    )  # fmt: skip
    held_out = [row for row, entity in enumerate(data.entities) if is_held_out(entity, settings.held_out)]
    if len(held_out) == len(data):
        raise ConfigError(
            f"All {len(data)} documents of {folder} are held out, and none is left to train on.",
            "Lower [data] held_out.",
        )
    return Corpus(data, np.array(held_out, np.int64), f"{counts['digest']}/{settings.held_out}")
