"""Where training documents come from: a folder, a JSONL file, COCO captions, webdataset shards, or a function.

Each source yields documents one by one, and reports what it could not read; nothing is held in memory but the document
at hand (and, of COCO, the captions).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from glob import glob
from importlib import import_module
from pathlib import Path
from typing import Any

from ..coco import coco_pictures, read_coco
from ..collection import OnSkip, document_from_line, image_in_folder, read_folder
from ..document import Document, Image
from ..errors import ConfigError, InvalidDocument, RACM3Error, nearest
from .data import Corpus

Reader = Callable[[Path, "Path | None", OnSkip], Iterator[Document]]

# What a sample may raise when it is bad. The rest is a mistake of ours, and must not pass for a bad sample.
BAD = (RACM3Error, OSError, ValueError, KeyError, RecursionError)


def read_source(source: str, path: Path, images: Path | None, on_skip: OnSkip) -> Iterator[Document]:
    """The documents of a source by its name; on_skip is called with the place and the error of each bad sample."""
    if source not in SOURCES:
        raise ConfigError(
            f"No source named '{source}'. There are: {', '.join(SOURCES)}, or 'module:function'.",
            nearest(source, SOURCES),
        )
    return SOURCES[source](path, images, on_skip)


def _folder(path: Path, images: Path | None, on_skip: OnSkip) -> Iterator[Document]:
    return read_folder(path, on_skip=on_skip)


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
    """Shards as img2dataset writes them: KEY.jpg (png, webp) with KEY.txt, or the caption in KEY.json."""
    try:
        import webdataset
    except ImportError as error:
        raise ConfigError("Shards are read with webdataset.", 'pip install "racm3[webdataset]"') from error

    pattern = str(path / "*.tar") if path.is_dir() else str(path)
    shards = sorted(glob(pattern))
    if not shards:
        raise ConfigError(
            f"There are no shards {pattern}.", "Give a folder of .tar files, or a pattern like 'shards/*.tar'."
        )

    def torn(error: Exception) -> bool:
        on_skip(str(error.args[-1] if error.args else error), error)
        return True  # go on with the next shard

    everything: Any = lambda shards: shards  # noqa: E731 (only one process reads)
    samples = webdataset.WebDataset(
        shards, handler=torn, shardshuffle=False, empty_check=False, nodesplitter=everything, workersplitter=everything
    )
    for sample in samples:
        key = f"{Path(sample['__url__']).name}/{sample['__key__']}"
        try:
            yield _sample(key, sample)
        except BAD as error:
            on_skip(key, error)


def _sample(key: str, sample: Mapping[str, Any]) -> Document:
    picture = next((sample[kind] for kind in ("jpg", "jpeg", "png", "webp") if sample.get(kind)), None)
    if picture is None:
        raise InvalidDocument("The sample has no jpg, png or webp.")
    if "txt" in sample:
        text = sample["txt"].decode("utf-8")
    else:
        described = json.loads(sample.get("json", b"{}"))
        if not isinstance(described, dict):
            raise InvalidDocument(f"Its json is no object, but {described!r:.60}.")
        text = described.get("caption")
    image = Image(picture)
    _ = image.picture  # a truncated one is found out here
    return Document([str(text or "").strip(), image] if text else [image], id=key)


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
