"""The user's own documents: a folder of pictures, with captions beside them or in one JSONL file; webdataset shards; COCO's
captions JSON.

    kite.png  kite.txt                                   a picture and its caption
    captions.jsonl: {"image": "kite.png", "text": "a red kite", "metadata": {"year": 2021}}
    00000.tar: 0012.jpg 0012.txt 0012.json               as img2dataset writes them

A bad sample is reported and passed over, so that one broken file does not cost the rest.
"""

from __future__ import annotations

import json
import logging
import os
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

from . import webdataset
from .document import Document, Image, Part
from .errors import ConfigError, InvalidDocument, InvalidImage, RACM3Error, nearest
from .image import MAX_BYTES
from .interfaces import Progress

logger = logging.getLogger(__name__)

OnSkip: TypeAlias = Callable[[str, Exception], None]

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp"})
OTHER_SUFFIXES = frozenset({".tif", ".tiff", ".heic", ".heif", ".avif", ".jxl", ".svg", ".ico", ".psd"})
KEYS = ("image", "text", "id", "metadata")

# What a sample may raise when it is bad. The rest is a mistake of ours, and must not pass for a bad sample.
BAD = (RACM3Error, OSError, ValueError, KeyError, RecursionError)
PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "bmp")  # of a sample, the first of these
# What img2dataset says of how it came by a picture, and the caption, which is the document's text.
ASIDE = frozenset({"caption", "key", "status", "error_message", "exif", "sha256"}) | {
    f"{original}{side}" for original in ("", "original_") for side in ("width", "height")
}


def read_folder(
    path: str | Path, *, on_skip: OnSkip | None = None, progress: Progress | None = None, decode: bool = True
) -> Iterator[Document]:
    """The documents of a folder, one by one, each picture decoded and checked.

    Pictures (PNG, JPEG, WebP, GIF, BMP; in folders below too) with their captions from .txt files of the same name; one
    without a caption is a picture alone. A folder with captions.jsonl, or with any one .jsonl file, is read by that file
    instead; its lines have the keys image and text (one of them may be missing), id and metadata. path may be such a
    .jsonl file itself; its pictures lie in its folder. A folder of .tar files, or a pattern of their names, is read by
    `read_shards`; a .json file as COCO's captions, each picture with all of its own.

    The id is the picture's path in the folder, so that reading again gives the same ids; a further document on the same
    picture gets "#2", "#3" ... . Of two with one id that was given, or one text, the second is a bad sample. on_skip: called
    with the path (or file:line) and the error of each bad sample.
    progress: called with the number read, the number in all, and the path. decode: False for who decodes them anyway; a
    broken picture raises `InvalidImage` then when it is looked at. Raises `ConfigError` if there is no folder.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "bogus.png").write_bytes(b"no picture")
    >>> list(read_folder(folder, on_skip=lambda path, error: print("bad:", path)))
    bad: bogus.png
    []
    """
    root = Path(path).expanduser()
    on_skip = on_skip or _log
    if root.suffix.lower() == ".jsonl" and root.is_file():
        return _read(root.parent, _lines(root), _count(root), document_from_line, on_skip, progress, decode)
    if root.suffix.lower() == ".json" and root.is_file():
        from .coco import coco_documents

        return coco_documents(root, on_skip=on_skip, progress=progress, decode=decode)
    if root.suffix.lower() == ".tar" and not root.is_dir():
        return read_shards(root, on_skip=on_skip, progress=progress, decode=decode)
    if not root.is_dir():
        what = f"{root} is a file, not a folder." if root.is_file() else f"There is no folder {root}."
        raise ConfigError(what, "Give a folder of pictures, a .jsonl file, COCO's .json, or .tar files.")
    if listing := _jsonl(root):
        return _read(root, _lines(listing), _count(listing), document_from_line, on_skip, progress, decode)
    names = _pictures(root)
    if not names and any(root.glob("*.tar")):
        return read_shards(root, on_skip=on_skip, progress=progress, decode=decode)
    for name, why in _passed_over(root, set(names)):
        on_skip(name, InvalidDocument(why))
    return _read(root, ((name, name) for name in names), len(names), _captioned, on_skip, progress, decode)


def _read(
    root: Path,
    samples: Iterable[tuple[str, str]],
    total: int,
    read: Callable[[Path, str], Document],
    on_skip: OnSkip,
    progress: Progress | None,
    decode: bool,
) -> Iterator[Document]:
    """The documents of samples, each of which is where it stands, and what says how to `read` it."""
    seen: Counter[str] = Counter()
    for done, (where, said) in enumerate(samples, start=1):
        try:
            document = read(root, said)
            _check_shows_something(document)
            if decode:
                _check_pictures(document)
        except BAD as error:
            on_skip(where, error)
        else:
            seen[document.id] += 1
            again = seen[document.id] > 1
            if again and document.metadata.get("path") == document.id:
                document, again = document.replace(id=f"{document.id}#{seen[document.id]}"), False
            if again:
                on_skip(
                    where, InvalidDocument(f"Another one before it has its id, {document.id!r}.", "Give each its own.")
                )
            else:
                yield document
            del document  # whoever has it now may let its pictures go
        if progress is not None:
            progress(done, total, where)


def _check_shows_something(document: Document) -> None:
    if not document.images and not document.text.strip():
        raise InvalidDocument("It has no picture, and its text is blank.")


def read_shards(
    path: str | Path, *, on_skip: OnSkip | None = None, progress: Progress | None = None, decode: bool = True
) -> Iterator[Document]:
    """The documents of webdataset shards, one by one, as img2dataset or `racm3 memory export` writes them.

    Under each key a picture (jpg, png, webp, gif, bmp), and its caption as txt or in a json, of which the rest is metadata, as
    far as a document can hold it; or a document as it was exported. path: a folder of .tar files, one of them, or a pattern.
    The id of what was not exported is the folder's name, the shard's, and the key. on_skip, progress, decode: as of
    `read_folder`, the number in all being unknown. Of a damaged shard all samples before the damage are read but the last.
    Raises `ConfigError` if there are no shards.
    """
    return _sampled(webdataset.shards_of(Path(path).expanduser()), on_skip or _log, progress, decode)


def _sampled(shards: list[Path], on_skip: OnSkip, progress: Progress | None, decode: bool) -> Iterator[Document]:
    # With the folder's name: those of img2dataset are called 00000.tar, 00001.tar ... in every folder.
    base = Path(os.path.commonpath([shard.absolute().parent for shard in shards]))
    done = 0
    for shard in shards:
        name = shard.absolute().relative_to(base.parent).as_posix()
        read = webdataset.samples(shard, largest=MAX_BYTES)
        while True:
            try:
                sample = next(read, None)
            except (*BAD, tarfile.TarError, OverflowError, EOFError) as error:
                on_skip(name, error)
                break
            if sample is None:
                break
            where, done = f"{name}/{sample.key}", done + 1
            try:
                document = _document_of_sample(sample, where)
                _check_shows_something(document)
                if decode:
                    _check_pictures(document)
            except (*BAD, TypeError) as error:
                on_skip(where, error)
            else:
                yield document
                del document
            if progress is not None:
                progress(done, 0, where)


def _document_of_sample(sample: webdataset.Sample, id: str) -> Document:
    if sample.fault:
        raise InvalidDocument(sample.fault)
    said = json.loads(sample.files.get("json", b"{}"))
    if not isinstance(said, dict):
        raise InvalidDocument(f"Its json is no object, but {said!r:.60}.")
    if isinstance(said.get("parts"), list):
        from .memories.shards import exported_document

        return exported_document(sample.files)
    picture = next((data for kind in PICTURES if (data := sample.files.get(kind))), None)
    if picture is None:
        raise InvalidDocument(f"The sample has no picture ({', '.join(PICTURES)}).")
    caption = said.get("caption")
    text = sample.files["txt"].decode("utf-8-sig") if "txt" in sample.files else caption
    parts: list[Part | str] = [Image(picture)]
    if isinstance(text, str) and text.strip():
        check_characters(text)
        parts.insert(0, text.strip())
    return Document(parts, id=id, metadata={name: value for name, value in said.items() if _is_metadata(name, value)})


def _is_metadata(name: str, value: Any) -> bool:
    """What a document can hold; of the rest, such as boxes and NaN, nothing is said."""
    if name in ASIDE:
        return False
    try:
        check_characters([name, value])
        Document(["."], metadata={name: value})
    except InvalidDocument:
        return False
    return True


def _jsonl(root: Path) -> Path | None:
    files = sorted(file for file in root.glob("*.jsonl") if file.is_file() and not file.name.startswith("."))
    named = root / "captions.jsonl"
    if named in files:
        return named
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise ConfigError(f"{root} holds several JSONL files: {names}.", "Name the one to read captions.jsonl.")
    return files[0] if files else None


def _pictures(root: Path) -> list[str]:
    # What is named like a picture is tried, so that a broken link is told of.
    names = (
        file.relative_to(root) for file in root.rglob("*") if file.suffix.lower() in SUFFIXES and not file.is_dir()
    )
    return sorted(name.as_posix() for name in names if not any(step.startswith(".") for step in name.parts))


def _passed_over(root: Path, pictures: set[str]) -> Iterator[tuple[str, str]]:
    """What somebody may miss: captions without a picture or in a JSON, pictures of other formats, and shards; each with
    why."""
    told = {str(Path(name).with_suffix("")) for name in pictures}
    named = (
        file.relative_to(root)
        for file in root.rglob("*")
        if file.suffix.lower() in {".txt", ".tar", ".json", *OTHER_SUFFIXES}
    )
    files = sorted(file for file in named if not any(step.startswith(".") for step in file.parts))
    for file in files:
        if file.suffix.lower() in OTHER_SUFFIXES:
            told.add(str(file.with_suffix("")))
            yield file.as_posix(), f"Pictures are read from {', '.join(sorted(SUFFIXES))}."
        elif file.suffix.lower() == ".tar":
            yield file.as_posix(), "Shards are read from a folder of their own, or each by its name."
        elif (
            file.suffix.lower() == ".json" and str(file.with_suffix("")) not in told
        ):  # beside a picture it is some program's
            yield file.as_posix(), "It is not read here. COCO's captions JSON is read by its own name."
    for file in files:
        if file.suffix.lower() == ".txt" and str(file.with_suffix("")) not in told:
            yield file.as_posix(), "It is a caption without a picture of the same name."


def _captioned(root: Path, name: str) -> Document:
    image, path = image_in_folder(root, name)
    captions = [(root / name).with_suffix(suffix) for suffix in (".txt", ".TXT")]
    caption = next((one for one in captions if one.is_file()), captions[0])
    text = ""
    if caption.is_file():
        try:
            text = _inside(root, caption.relative_to(root).as_posix())[0].read_text(encoding="utf-8-sig").strip()
        except UnicodeDecodeError as error:
            raise InvalidDocument(f"{caption} is not UTF-8 text: {error.reason}.") from error
    return Document([text, image] if text else [image], id=path, metadata={"path": path})


def _lines(listing: Path) -> Iterator[tuple[str, str]]:
    """The lines that say something, with where they stand."""
    with listing.open(encoding="utf-8-sig", errors="surrogateescape") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield f"{listing.name}:{number}", line


def _count(listing: Path) -> int:
    try:
        return sum(1 for _ in _lines(listing))
    except OSError as error:
        raise ConfigError(f"{listing} cannot be read: {error.strerror or error}.") from error


def document_from_line(root: Path, line: str) -> Document:
    """The document of one line of a JSONL file whose pictures lie in `root`; `RACM3Error` says what is wrong with it."""
    try:
        line.encode("utf-8")
        entry: Any = json.loads(line)
    except UnicodeEncodeError as error:
        raise InvalidDocument("The line is not UTF-8 text.") from error
    except json.JSONDecodeError as error:
        raise InvalidDocument(f"The line is not valid JSON: {error}.") from error
    check_characters(entry)
    if not isinstance(entry, dict):
        raise InvalidDocument(f"The line holds {type(entry).__name__}, not an object with the keys {', '.join(KEYS)}.")
    for key in entry:
        if key not in KEYS:
            raise InvalidDocument(
                f"Unknown key {key!r}. Keys: {', '.join(KEYS)}.", nearest(key, KEYS) or "Other keys go under metadata."
            )
    text, name, metadata = entry.get("text") or "", entry.get("image"), entry.get("metadata") or {}
    if not isinstance(text, str) or not (name is None or isinstance(name, str)) or not isinstance(metadata, dict):
        raise InvalidDocument("image and text are strings, and metadata is an object.")
    if not text and name is None:
        raise InvalidDocument("The line has neither an image nor a text.")
    if name is None:
        return Document([text], id=entry.get("id"), metadata=metadata)
    image, path = image_in_folder(root, name)
    identity = entry.get("id")
    parts: list[Part | str] = [text, image] if text else [image]
    return Document(parts, id=path if identity is None else identity, metadata={**metadata, "path": path})


def check_characters(entry: Any) -> None:
    """Raise `InvalidDocument` for a str in what came from JSON that no file can hold: JSON can write half a character."""
    try:
        json.dumps(entry, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise InvalidDocument(f"It holds half of a character, {error.object[error.start]!a}.") from error


def image_in_folder(root: Path, name: str) -> tuple[Image, str]:
    """A picture of the folder, not decoded yet; and its path in the folder."""
    path, relative = _inside(root, name)
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise InvalidImage(f"{relative} is not a regular file.", "Put a picture there.")
    return Image(path), relative


def _check_pictures(document: Document) -> None:
    """Decode them, so that a truncated one is found out here."""
    for image in document.images:
        _ = image.picture


def _inside(root: Path, name: str) -> tuple[Path, str]:
    """A path in the folder. Links are followed first: a collection from elsewhere must not read what is beside it."""
    base = root.resolve()
    path = (base / name).resolve()
    if not path.is_relative_to(base):
        raise InvalidDocument(f"{name!r} leads out of the folder.", "Copy the file into the folder.")
    return path, Path(os.path.relpath(base / name, base)).as_posix()


def _log(where: str, error: Exception) -> None:
    logger.warning("%s is passed over: %s", where, error)
