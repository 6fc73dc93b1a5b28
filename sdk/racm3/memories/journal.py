"""The truth of a memory: documents, metadata and vectors in one SQLite database.

A document is stored when its transaction commits (WAL, synchronous=FULL). Every document has a sequence number that
grows with each addition and is never used twice; `generation` counts the transactions that removed something. The two
together tell any cache, in this process or another, exactly what it lacks.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ..document import Document, Image, Text
from ..errors import FilterError, InvalidDocument, MemoryCorrupt
from ..interfaces import Encoder
from .database import BATCH, Database
from .where import EMPTY, Condition, encoded, stored

if TYPE_CHECKING:
    import numpy as np


class State(NamedTuple):
    """How far a memory has come. last_seq: the highest sequence number ever given."""

    last_seq: int
    generation: int


class Row(NamedTuple):
    seq: int
    id: bytes
    content_hash: str
    metadata: str
    vector: bytes
    checksum: bytes

    @property
    def name(self) -> str:
        return self.id.decode("utf-8", "surrogatepass")

    def verify(self) -> None:
        """Raises `MemoryCorrupt`, naming the document, when the row is not what was written."""
        if self.checksum != checksum(self.id, self.content_hash, self.metadata, self.vector):
            raise corrupt(self.name)


def checksum(*pieces: bytes | str) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for piece in pieces:
        piece = piece.encode() if isinstance(piece, str) else piece
        digest.update(len(piece).to_bytes(8, "little"))
        digest.update(piece)
    return digest.digest()


def corrupt(name: str) -> MemoryCorrupt:
    return MemoryCorrupt(
        f"Document {name!r} does not match its checksum.", "Delete it or restore the memory from a backup."
    )


class Journal(Database):
    """Documents in and out of the database. Every method is called inside `reading()` or `writing()`."""

    def state(self) -> State:
        last = self.one("SELECT max(seq) FROM sqlite_sequence WHERE name = 'documents'")
        return State(last or 0, self.one("SELECT value FROM manifest WHERE name = 'generation'"))

    def encoder(self) -> Encoder | None:
        found = dict(self.connection.execute("SELECT name, value FROM manifest").fetchall())
        return Encoder(found["fingerprint"], found["dim"]) if "fingerprint" in found else None

    def count(self) -> int:
        return int(self.one("SELECT count(*) FROM documents"))

    def seqs(self) -> np.ndarray:
        """All sequence numbers, ascending: int64 [n]."""
        return _numbers(self.connection.execute("SELECT seq FROM documents"))

    def seqs_matching(self, condition: Condition) -> np.ndarray:
        """Sequence numbers of the documents that a filter matches, ascending: int64 [m]."""
        try:
            return _numbers(
                self.connection.execute(f"SELECT seq FROM documents WHERE {condition.sql}", condition.parameters)
            )
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_ERROR:
                raise
            raise FilterError(f"The filter is too large or too deep for SQLite: {error}.", "Split it.") from error

    def seqs_named(self, names: Iterable[str]) -> set[int]:
        """Sequence numbers of all documents that have one of the names as id, content hash, or content hash of a part."""
        names = list(names)
        found = {seq for (seq,) in self.select("SELECT seq FROM documents WHERE id IN (?)", map(encoded, names))}
        # Content hashes are hex; anything else need not be looked up, and could not always be bound as text.
        hashes = [name for name in names if name.isascii()]
        for table, column in (("documents", "content_hash"), ("parts", "hash")):
            found.update(seq for (seq,) in self.select(f"SELECT seq FROM {table} WHERE {column} IN (?)", hashes))
        return found

    def seqs_of(self, ids: Iterable[str]) -> dict[str, int]:
        """Sequence number of each id that is stored."""
        rows = self.select("SELECT id, seq FROM documents WHERE id IN (?)", map(encoded, ids))
        return {id.decode("utf-8", "surrogatepass"): seq for id, seq in rows}

    def ids(self, seqs: Iterable[int]) -> dict[int, str]:
        rows = self.select("SELECT seq, id FROM documents WHERE seq IN (?)", map(int, seqs))
        return {seq: id.decode("utf-8", "surrogatepass") for seq, id in rows}

    def hashes(self, seqs: Iterable[int]) -> dict[int, list[str]]:
        """Content hashes of the parts of each document."""
        found: dict[int, list[str]] = {}
        for seq, hash in self.select("SELECT seq, hash FROM parts WHERE seq IN (?)", map(int, seqs)):
            found.setdefault(seq, []).append(hash)
        return found

    def rows(self, *, after: int, last: int, limit: int = BATCH) -> list[Row]:
        """The next batch of documents by sequence number, after < seq <= last."""
        found = self.connection.execute(
            "SELECT * FROM documents WHERE seq > ? AND seq <= ? ORDER BY seq LIMIT ?", (after, last, limit)
        )
        return [Row(*row) for row in found]

    def rows_of(self, seqs: Iterable[int]) -> list[Row]:
        """Documents by sequence number, in no particular order."""
        return [Row(*row) for row in self.select("SELECT * FROM documents WHERE seq IN (?)", map(int, seqs))]

    def document(self, row: Row) -> Document:
        """The document of a row, checked. Raises `MemoryCorrupt`, naming it, when it is not what was written."""
        row.verify()
        try:
            document = Document(self._parts(row.seq), id=row.name, metadata=json.loads(row.metadata))
        except (InvalidDocument, TypeError, ValueError) as error:
            raise corrupt(row.name) from error
        if document.content_hash != row.content_hash:
            raise corrupt(row.name)
        return document

    def _parts(self, seq: int) -> Iterator[Text | Image]:
        for hash, text, data, check in self.connection.execute(
            "SELECT parts.hash, text, data, checksum FROM parts LEFT JOIN blobs ON text IS NULL AND blobs.hash = parts.hash"
            " WHERE seq = ? ORDER BY position",
            (seq,),
        ):
            if text is not None:
                yield Text(text.decode("utf-8", "surrogatepass"))
            elif data is not None and checksum(data) == check:
                yield Image.restore(data, hash)
            else:
                raise ValueError("The image is missing, or does not match its checksum.")

    def set_encoder(self, encoder: Encoder) -> None:
        self.connection.executemany(
            "INSERT INTO manifest VALUES (?, ?)", [("fingerprint", encoder.fingerprint), ("dim", int(encoder.dim))]
        )

    def insert(self, document: Document, vector: np.ndarray) -> int:
        """Store a document that is not there yet, and return its sequence number."""
        if document.blanks:
            raise InvalidDocument(f"Document {document.id!r} has blanks: it is a prompt.", "Fill it before storing it.")
        run = self.connection.execute
        metadata = json.dumps(dict(document.metadata))
        columns = (encoded(document.id), document.content_hash, metadata, vector.astype("<f4").tobytes())
        seq = run(
            "INSERT INTO documents (id, content_hash, metadata, vector, checksum) VALUES (?, ?, ?, ?, ?)",
            (*columns, checksum(*columns)),
        ).lastrowid
        assert seq is not None
        for position, part in enumerate(document.parts):
            text = encoded(part.text) if isinstance(part, Text) else None
            run("INSERT INTO parts VALUES (?, ?, ?, ?)", (seq, position, part.content_hash, text))
            if isinstance(part, Image) and not self.select(
                "SELECT 1 FROM blobs WHERE hash IN (?)", [part.content_hash]
            ):
                run("INSERT INTO blobs VALUES (?, ?, ?)", (part.content_hash, part.data, checksum(part.data)))
        for name, value in document.metadata.items():
            values = {stored(item) for item in value} or {EMPTY} if isinstance(value, list) else {stored(value)}
            for kind, plain in values:
                run("INSERT OR IGNORE INTO fields VALUES (?, ?, ?, ?)", (encoded(name), kind, plain, seq))
        return seq

    def remove(self, seqs: Sequence[int]) -> None:
        """Remove documents, and the images that no other document shows."""
        if not seqs:
            return
        hashes = {hash for found in self.hashes(seqs).values() for hash in found}
        for table in ("fields", "parts", "documents"):
            self.select(f"DELETE FROM {table} WHERE seq IN (?)", seqs)
        unused = "NOT EXISTS (SELECT 1 FROM parts WHERE parts.hash = blobs.hash)"
        self.select(f"DELETE FROM blobs WHERE hash IN (?) AND {unused}", hashes)
        self.connection.execute("UPDATE manifest SET value = value + 1 WHERE name = 'generation'")


def _numbers(rows: Iterable[tuple[int]]) -> np.ndarray:
    import numpy as np

    # Sorted here: asked for an order, SQLite would walk the table with its vectors instead of a slim index.
    return np.sort(np.fromiter((seq for (seq,) in rows), dtype=np.int64))
