"""Where training documents come from: a folder, a JSONL file, COCO captions, webdataset shards, or a function.

Each source yields documents one by one, and reports what it could not read; nothing is held in memory but the document
at hand (and, of COCO, the captions).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from ..coco import coco_pictures, read_coco
from ..collection import BAD, OnSkip, document_from_line, image_in_folder, read_folder, read_shards
from ..document import Document
from ..errors import ConfigError, RACM3Error, nearest
from .data import Corpus

Reader = Callable[[Path, "Path | None", OnSkip], Iterator[Document]]


def read_source(source: str, path: Path, images: Path | None, on_skip: OnSkip) -> Iterator[Document]:
    """The documents of a source by its name, always in the same order, their pictures not decoded; on_skip is called with the
    place and the error of each bad sample."""
    if source not in SOURCES:
        raise ConfigError(
            f"No source named '{source}'. There are: {', '.join(SOURCES)}, or 'module:function'.",
            nearest(source, SOURCES),
        )
    return SOURCES[source](path, images, on_skip)


def _folder(path: Path, images: Path | None, on_skip: OnSkip) -> Iterator[Document]:
    return read_folder(path, on_skip=on_skip, decode=False)


def _jsonl(path: Path, images: Path | None, on_skip: OnSkip) -> Iterator[Document]:
    root = images or path.parent
    with _opened(path) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                yield document_from_line(root, line)
            except BAD as error:
                on_skip(f"{path.name}:{number}", error)


def _coco(path: Path, images: Path | None, on_skip: OnSkip) -> Iterator[Document]:
    """One document a caption; all captions of a picture are one entity, in the order of the pictures."""
    pictures = read_coco(path, on_skip)
    root = coco_pictures(path, images, [one.file for one in pictures], "Say where they are: [data] images.")
    for picture in pictures:
        try:
            image, name = image_in_folder(root, picture.file)
            for number, text in picture.captions:
                metadata = {"path": name, "entity": picture.id}
                yield Document([text, image], id=f"{picture.id}#{number}", metadata=metadata)
        except BAD as error:
            on_skip(picture.file, error)


def _webdataset(path: Path, images: Path | None, on_skip: OnSkip) -> Iterator[Document]:
    return read_shards(path, on_skip=on_skip, decode=False)


SOURCES: dict[str, Reader] = {"folder": _folder, "jsonl": _jsonl, "coco": _coco, "webdataset": _webdataset}


def corpus_of(target: str, stage: str) -> Corpus:
    """What a function of the user's own, "module:function", gives for a stage."""
    module, _, name = target.partition(":")
    try:
        function = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"The source '{target}' cannot be imported: {error}.", "Write 'module:function'.") from error
    try:
        corpus = function(stage)
    except RACM3Error:
        raise
    except Exception as error:
        raise ConfigError(
            f"The source '{target}' raised {type(error).__name__}: {error}",
            f"It is called with the name of a stage, here '{stage}', and gives a racm3.training.data.Corpus.",
        ) from error
    if not isinstance(corpus, Corpus):
        raise ConfigError(f"The source '{target}' gave {type(corpus).__name__}, not a racm3.training.data.Corpus.")
    return corpus


def _opened(path: Path) -> Any:
    try:
        return path.open(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror or error}.", "Is the path in [data] right?"
        ) from error
