"""A document as records of Chroma, and back.

One record holds the document: its vector, its exact parts and metadata as JSON, and what filters ask for. The vector is
there twice: for Chroma's index, and as a data URI, which SQLite keeps and every process reads as it was written; Chroma's
own copy is in the index, of which each process that opens a folder has a version of its own. Pictures are
records of a collection of their own, by content hash, base64 in pieces: each is stored once however many documents show
it, no search reads it, and it need not be small. (As a Chroma "document" a picture would be indexed for full-text search,
at twelve times its size; a file beside the database would be missing in client/server mode.)
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from racm3.document import Document, Image, Text
from racm3.errors import InvalidDocument, MemoryCorrupt
from racm3.memories.checksum import checksum, corrupt

from .where import PREFIX, STAMP, TOKENS, fields_of, tokens_of

DOCUMENT = f"{PREFIX}document"
CHECKSUM = f"{PREFIX}checksum"
PIECE = f"{PREFIX}piece"
PIECE_BYTES = 2**22  # a server takes requests of up to 40 MB
URI = "data:;base64,"


class Record(NamedTuple):
    """A record of a collection. vector: float32 [dim], or None when it was not asked for."""

    key: str
    metadata: Mapping[str, Any]
    text: str = ""
    vector: np.ndarray | None = None

    @property
    def size(self) -> int:
        """About how many bytes it takes in a request."""
        values = sum(len(value) for value in self.metadata.values() if isinstance(value, str))
        return 2 * len(self.text) + values + 28 * (0 if self.vector is None else len(self.vector)) + 1000

    @property
    def stamp(self) -> int:
        """When it was stored: grows with each addition, and differs between versions of one document."""
        return int(self.metadata.get(STAMP, -1))

    @property
    def id(self) -> str:
        """The id of its document."""
        if not self.key.startswith(PREFIX):
            return self.key
        return bytes.fromhex(self.key.removeprefix(PREFIX)).decode("utf-8", "surrogatepass")

    @property
    def names(self) -> frozenset[str]:
        """All by which a search can exclude it: id, content hash, and content hashes of the parts."""
        return frozenset({self.id, self._exact["hash"], *self.hashes})

    @property
    def hashes(self) -> list[str]:
        """Content hashes of the parts."""
        return [part["hash"] for part in self._exact["parts"]]

    @property
    def pictures(self) -> Mapping[str, int]:
        """Content hashes of the pictures, with the number of pieces of each."""
        return {part["hash"]: part["pieces"] for part in self._exact["parts"] if "pieces" in part}

    @property
    def document_metadata(self) -> dict[str, Any]:
        metadata: dict[str, Any] = self._exact["metadata"]
        return metadata

    @property
    def _exact(self) -> dict[str, Any]:
        """The JSON that the record is made of. Raises `MemoryCorrupt`, naming the document, when it is not as written."""
        text = self.metadata.get(DOCUMENT)
        if not isinstance(text, str) or self.metadata.get(CHECKSUM) != _checksum(self.key, text):
            raise corrupt(self.id)
        exact: dict[str, Any] = json.loads(text)
        return exact


def key_of(id: str) -> str:
    """The id of a document's record: that of the document, unless Chroma cannot take it (half a surrogate pair)."""
    try:
        id.encode()
    except UnicodeEncodeError:
        return PREFIX + id.encode("utf-8", "surrogatepass").hex()
    return PREFIX + id.encode().hex() if id.startswith(PREFIX) else id


def record_of(document: Document, vector: np.ndarray, stamp: int) -> Record:
    """The record of a document. Raises `InvalidDocument` for a prompt with blanks."""
    parts: list[dict[str, Any]] = []
    for part in document.parts:
        if isinstance(part, Text):
            parts.append({"hash": part.content_hash, "text": part.text})
        elif isinstance(part, Image):
            check = checksum(part.data).hex()
            parts.append({"hash": part.content_hash, "pieces": _pieces(part), "checksum": check})
        else:
            raise InvalidDocument(f"Document {document.id!r} has blanks: it is a prompt.", "Fill it before storing it.")
    # ASCII, so that any str survives; and as text, since Chroma knows neither None, nor mixed lists, nor large integers.
    exact = json.dumps({"parts": parts, "hash": document.content_hash, "metadata": dict(document.metadata)})
    hashes = {document.content_hash, *(part["hash"] for part in parts)}
    key = key_of(document.id)
    metadata = {
        **_for_others(document.metadata),
        **fields_of(document.metadata),
        DOCUMENT: exact,
        CHECKSUM: _checksum(key, exact),
        STAMP: stamp,
        TOKENS: tokens_of(document.metadata, hashes),
    }
    return Record(key, metadata, document.text.encode("utf-8", "replace").decode(), vector)


def document_of(record: Record, data_of: Callable[[str], bytes]) -> Document:
    """The document of a record; data_of gives the encoded bytes of a picture, by content hash.

    Raises `MemoryCorrupt`, naming the document, when something is missing or is not what was written.
    """

    def parts() -> Iterator[Text | Image]:
        for part in record._exact["parts"]:
            if "text" in part:
                yield Text(part["text"])
            else:
                data = data_of(part["hash"])
                if checksum(data).hex() != part["checksum"]:
                    raise MemoryCorrupt(f"A picture of document {record.id!r} does not match its checksum.")
                yield Image.restore(data, part["hash"])

    try:
        document = Document(parts(), id=record.id, metadata=record.document_metadata)
    except (KeyError, ValueError) as error:
        raise corrupt(record.id) from error
    if document.content_hash != record._exact["hash"]:
        raise corrupt(record.id)
    return document


def pieces_of(image: Image) -> list[Record]:
    """The records of a picture. Chroma wants a vector of everything."""
    keys = piece_keys(image.content_hash, _pieces(image))
    return [
        Record(
            key,
            {PIECE: base64.b64encode(image.data[start : start + PIECE_BYTES]).decode()},
            "",
            np.zeros(1, np.float32),
        )
        for key, start in zip(keys, range(0, len(image.data), PIECE_BYTES), strict=True)
    ]


def piece_keys(content_hash: str, pieces: int) -> list[str]:
    return [f"{content_hash}/{number}" for number in range(pieces)]


def data_of(pieces: list[Record]) -> bytes:
    """The encoded bytes of a picture, from its records in order."""
    return b"".join(base64.b64decode(piece.metadata[PIECE]) for piece in pieces)


def uri_of(vector: np.ndarray | None) -> str:
    """A vector as a data URI: exact, and a quarter of its size as JSON."""
    assert vector is not None
    return URI + base64.b64encode(vector.astype("<f4").tobytes()).decode()


def vector_of(uri: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(uri.removeprefix(URI)), dtype="<f4").astype(np.float32)


def _pieces(image: Image) -> int:
    return -(-len(image.data) // PIECE_BYTES)


def _checksum(key: str, exact: str) -> str:
    return checksum(key.encode(), exact.encode()).hex()


def _for_others(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What of the metadata Chroma can hold as it is, under its own names: for other programs. Nothing here reads it."""

    def plain(value: object) -> bool:
        if isinstance(value, str):
            return value.isprintable()
        return isinstance(value, (bool, float)) or (isinstance(value, int) and -(2**63) <= value < 2**63)

    return {
        name: value
        for name, value in metadata.items()
        if name.isprintable() and not name.startswith(("$", "#", PREFIX, "chroma:")) and plain(value)
    }
