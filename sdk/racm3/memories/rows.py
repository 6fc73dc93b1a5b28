"""A document as the database holds it, which is checked whenever it is read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..document import Document, Image, Text
from ..errors import InvalidDocument
from .checksum import corrupt, matches
from .contents import IMAGE, KINDS, TEXT, in_file
from .text_bytes import decoded

if TYPE_CHECKING:
    import numpy as np


JSON = json.JSONDecoder()  # whose `raw_decode` takes a third of the time of `json.loads`


class Row(NamedTuple):
    """A row of the table `documents`."""

    seq: int
    id: bytes
    content_hash: bytes
    metadata: bytes
    vector: bytes
    checksum: bytes

    @property
    def name(self) -> str:
        return decoded(self.id)

    @property
    def values(self) -> dict[str, Any]:
        """The metadata. Raises `ValueError` where they are none any more."""
        found: dict[str, Any] = JSON.raw_decode(self.metadata.decode("utf-8", "surrogatepass"))[0]
        return found

    @property
    def intact(self) -> bool:
        """Whether the row is what was written."""
        return matches(self.checksum, self.id, self.content_hash, self.metadata, self.vector)

    def verify(self) -> None:
        """Raises `MemoryCorrupt`, naming the document, when the row is not what was written."""
        if not self.intact:
            raise corrupt(self.name)


class Stored(NamedTuple):
    """A document. parts: of each, in order, the hash of what it shows, its kind, data and checksum."""

    row: Row
    parts: list[tuple[Any, ...]]

    def verify(self) -> Document:
        """The document, and every checksum of it looked at, also where that tells nothing new of it."""
        document = self.document()
        if not all(matches(check, KINDS.get(kind), data) for _, kind, data, check in self.parts):
            raise corrupt(self.row.name)
        return document

    def document(self) -> Document:
        """Raises `MemoryCorrupt`, naming the document, when it is not what was written."""
        row = self.row
        row.verify()
        try:
            document = Document(self._shown(), id=row.name, metadata=row.values)
        except (InvalidDocument, TypeError, ValueError) as error:
            raise corrupt(row.name) from error
        if document.content_hash != row.content_hash.hex():
            raise corrupt(row.name)
        return document

    def _shown(self) -> Iterator[Text | Image]:
        """Raises `ValueError` where they are not what was written."""
        for hash, kind, data, check in self.parts:
            # The hash of a text is one of all that there is of it, and is looked at below.
            if not (isinstance(hash, bytes) and isinstance(data, bytes)) or not (
                kind == TEXT or matches(check, KINDS.get(kind), data)
            ):
                raise ValueError("A part does not match its checksum.")
            name = hash.hex()
            part: Text | Image
            if kind == TEXT:
                part = Text(data.decode("utf-8", "surrogatepass"))
            else:
                part = (
                    Image.restore(data, name) if kind == IMAGE else in_file(data, name, f"document {self.row.name!r}")
                )
            if part.content_hash != name:  # by which a search leaves it out
                raise ValueError("A part is not what its hash names.")
            yield part


def vectors_of(rows: Sequence[Row], dim: int) -> np.ndarray:
    """The vectors of verified rows: float32 [n, dim]. Each is stored in two or four bytes a number; else `MemoryCorrupt`."""
    import numpy as np

    for row in rows:
        if len(row.vector) not in (2 * dim, 4 * dim):
            raise corrupt(row.name)
    read = [np.frombuffer(row.vector, f"<f{len(row.vector) // dim}") for row in rows]
    return np.array(read, dtype=np.float32).reshape(len(rows), dim)
