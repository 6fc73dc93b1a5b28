"""A user's data, read once: pictures at the size of training in one memory-mapped file, texts beside them.

    data/
      pixels.bin        uint8 [pictures, size, size, 3]
      documents.jsonl   one line a document: which picture and its hash, id, text, entity, source, name, keywords
      skipped.jsonl     one line a sample that could not be used: where, and why
      dataset.json      the settings that it was read with, and counts; written last

The source is streamed: no more than one picture at a time is in memory. It is read into data.new, where reading.json says from
time to time how far; who was killed goes on from there, if nothing that was read has changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from ..collection import check_characters
from ..document import Document, Metadata
from ..errors import ConfigError, InvalidDocument
from ..interfaces import Progress
from .data import Corpus, PixelRows, TrainingSet
from .run_files import read_json, reading, write_json
from .sources import BAD, read_source

FILES = ("pixels.bin", "documents.jsonl", "skipped.jsonl")
READING = "reading.json"
LOCK = ".reading.lock"
SAFE_AFTER = 1000  # documents: who is killed loses no more than these


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


@dataclass
class _Reading:
    """How far a source has been read. samples: looked at, bad ones included; chain: a hash over what they say, each with those
    before it; picture: hash of the last one; sizes: of the files, in bytes."""

    samples: int = 0
    documents: int = 0
    pictures: int = 0
    chain: str = ""
    picture: str = ""
    sizes: dict[str, int] = field(default_factory=dict)


class _SourceChanged(Exception):
    """Between the beginning of a reading and its end."""


def _read(settings: DataSettings, recorded: dict[str, Any], folder: Path, progress: Progress | None) -> None:
    from .processes import claimed

    if settings.path is None:
        raise ConfigError("The table [data] of the recipe has no path.", "Say where the documents are.")
    new = folder.with_name(folder.name + ".new")
    made = [place for place in folder.parents if not place.exists()]
    try:
        with claimed(folder.parent, LOCK):
            _read_or_go_on(settings, recorded, new, progress)
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(new, folder)
    except BaseException:
        with suppress(OSError):  # what is not empty stays
            if made and not new.exists():
                (folder.parent / LOCK).unlink()
            for place in made:
                place.rmdir()
        raise


def _read_or_go_on(settings: DataSettings, recorded: dict[str, Any], new: Path, progress: Progress | None) -> None:
    try:
        try:
            _read_into(new, settings, recorded, _begun(new, recorded), progress)
        except _SourceChanged:
            _read_into(new, settings, recorded, None, progress)
    except BaseException:
        if not (new / READING).is_file():  # there is nothing to go on from
            shutil.rmtree(new, ignore_errors=True)
        raise


def _begun(new: Path, recorded: dict[str, Any]) -> _Reading | None:
    """How far a reading with these settings came that was broken off."""
    try:
        found = json.loads((new / READING).read_text(encoding="utf-8"))
        begun = _Reading(**found["reading"])
        whole = all((new / name).stat().st_size >= begun.sizes[name] for name in FILES)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return begun if whole and found.get("settings") == recorded else None


def _read_into(
    new: Path, settings: DataSettings, recorded: dict[str, Any], begun: _Reading | None, progress: Progress | None
) -> None:
    assert settings.path is not None
    if begun is None:
        shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True, exist_ok=True)
    known, done = begun or _Reading(), replace(begun or _Reading())
    samples, chain, began = 0, "", time.perf_counter()
    with ExitStack() as opened:
        pixels, lines, bad = (opened.enter_context(_continued(new / name, done.sizes.get(name, 0))) for name in FILES)

        def count(*said: object) -> None:
            nonlocal samples, chain
            samples, chain = samples + 1, hashlib.sha256(json.dumps([chain, *said]).encode()).hexdigest()
            if samples == known.samples and chain != known.chain:
                raise _SourceChanged

        def skip(where: str, error: Exception) -> None:
            count(where)
            if samples > known.samples:
                tell_of(where, error)

        def tell_of(where: str, error: Exception) -> None:
            bad.write(json.dumps({"where": where, "error": str(error)}).encode() + b"\n")

        def make_safe() -> None:
            for file in (pixels, lines, bad):
                file.flush()
                os.fsync(file.fileno())
            done.sizes = {name: (new / name).stat().st_size for name in FILES}
            write_json(new / READING, {"settings": recorded, "reading": asdict(done)})

        for document in read_source(settings.source, settings.path, settings.images, skip):
            count(document.id, document.content_hash, dict(document.metadata))
            if samples <= known.samples:
                if progress is not None and samples % SAFE_AFTER == 0:
                    progress(samples, known.samples, "documents that were read before")
                continue
            try:
                entry, image = _entry(document, settings), document.images[0]
                square = None if image.content_hash == done.picture else image.square(settings.size)
            except BAD as error:
                tell_of(document.id, error)
                continue
            if square is not None:  # or else another caption of the same picture, which shares its pixels
                pixels.write(np.ascontiguousarray(square).tobytes())
                done.pictures += 1
            done.samples, done.chain, done.picture = samples, chain, image.content_hash
            lines.write(
                json.dumps({"picture": done.pictures - 1, "sha256": image.content_hash, **entry}).encode() + b"\n"
            )
            done.documents += 1
            if progress is not None and done.documents % 100 == 0:
                rate = (done.documents - known.documents) / (time.perf_counter() - began)
                passed_over = samples - done.documents
                progress(
                    done.documents, settings.limit or 0, f"documents read ({rate:.0f}/s, {passed_over} passed over)"
                )
            if done.documents == settings.limit:
                break
            if done.documents % SAFE_AFTER == 0:
                make_safe()
        if samples < known.samples:
            raise _SourceChanged
    listed = skipped(new)
    if not done.documents:
        shown = "; ".join(f"{s['where']}: {s['error']}" for s in listed[:3])
        raise ConfigError(
            f"{settings.path} holds no document with a picture and a text. {len(listed)} samples were passed over. {shown}",
            "A picture's text is in a .txt file of the same name, or in a .jsonl file.",
        )
    counts = {"documents": done.documents, "pictures": done.pictures, "skipped": len(listed)}
    digest = hashlib.sha256((new / "documents.jsonl").read_bytes()).hexdigest()
    (new / READING).unlink(missing_ok=True)
    (new / "dataset.json").write_text(json.dumps({"settings": recorded, **counts, "digest": digest}, indent=2) + "\n")


def _continued(path: Path, size: int) -> BinaryIO:
    """A file to be written on from its first so many bytes."""
    path.touch()
    file = path.open("r+b")
    file.truncate(size)
    file.seek(size)
    return file


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
        "entity": _told(metadata, settings.entity) or document.images[0].content_hash,
        "source": _told(metadata, settings.hand),
        "name": _told(metadata, "name") or document.text,
        "keywords": [str(word) for word in keywords] if isinstance(keywords, (list, tuple)) else [],
    }
    check_characters(entry)
    return entry


def _told(metadata: Metadata, key: str) -> str:
    """A field as text, 0 and False too; "" where there is none."""
    value = metadata.get(key)
    return "" if value is None else str(value)


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
