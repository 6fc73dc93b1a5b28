"""What the parts of documents show, as a memory has it: texts, encoded images, and files that hold these."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from ..document import Document, Image, Text
from ..errors import InvalidImage, MemoryCorrupt
from ..image import MAX_BYTES
from .checksum import checksum
from .text_bytes import encoded

TEXT, IMAGE, FILE = range(3)  # of contents: what `is_image` says
KINDS = {TEXT: b"text", IMAGE: b"image", FILE: b"file"}  # as their checksum covers them


class Content(NamedTuple):
    """What a part shows, as the table `contents` has it."""

    kind: int
    data: bytes
    checksum: bytes


def shown_by(document: Document) -> list[Text | Image]:
    return [part for part in document.parts if isinstance(part, (Text, Image))]


def contents_of(parts: Iterable[Text | Image], refer: bool) -> dict[bytes, Content]:
    """What parts show, by its hash. refer: pictures by their files, as long as none of them comes otherwise as well."""
    found: dict[bytes, Content] = {}
    for part in parts:
        content, hash = _content(part, refer), bytes.fromhex(part.content_hash)
        if hash not in found or content.kind != FILE:
            found[hash] = content
    return found


def _content(part: Text | Image, refer: bool) -> Content:
    if isinstance(part, Text):
        kind, data = TEXT, encoded(part.text)
    elif refer and (place := _place_of(part)) is not None:
        kind, data = FILE, place
    else:
        kind, data = IMAGE, part.data
    return Content(kind, data, checksum(KINDS[kind], data))


def _place_of(image: Image) -> bytes | None:
    """Size and path of the file of an image; None where it has none, or that has another size by now."""
    if image.path is None or len(image.data) > MAX_BYTES:
        return None
    with suppress(OSError):
        if image.path.stat().st_size == len(image.data):
            return b"%d %s" % (len(image.data), os.fsencode(image.path))
    return None


def in_file(data: bytes, hash: str, what: str) -> Image:
    """The picture that `data` says the file of. Raises `MemoryCorrupt`, naming what it is for, when it is not there."""
    size, _, path = data.partition(b" ")
    length = int(size) if size.isdigit() and len(size) < 16 else 0  # which no file has that is read
    try:
        return Image.reread(Path(os.fsdecode(path)), length, hash)
    except InvalidImage as error:
        raise MemoryCorrupt(
            f"A picture of {what} lies in a file, and {error.message}",
            "Put it back, or add the document anew from where its picture is now: on_duplicate='replace', or racm3 index. Or "
            "delete the document: racm3 memory delete.",
        ) from error


def is_there(data: bytes, hash: str) -> bool:
    """Whether the file that `data` names still holds that picture."""
    try:
        in_file(data, hash, "a document")
    except MemoryCorrupt:
        return False
    return True
