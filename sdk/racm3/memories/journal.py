"""The truth of a memory: documents, metadata and vectors in one SQLite database.

A document is stored when its transaction commits (WAL, synchronous=FULL). Every document has a sequence number that
grows with each addition and is never used twice; `generation` counts the transactions that removed something. The two
together tell any cache, in this process or another, exactly what it lacks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from ..document import Document, Image, Metadata, Text
from ..errors import DuplicateDocument, MemoryCorrupt
from ..interfaces import Encoder, OnDuplicate
from .checksum import checksum, matches
from .contents import FILE, IMAGE, KINDS, TEXT, Content, contents_of, in_file, is_there, shown_by
from .database import BATCH, Database
from .rows import Row, Stored
from .text_bytes import decoded, encoded
from .where import EMPTY, Having, stored

if TYPE_CHECKING:
    import sqlite3

    import numpy as np


Field: TypeAlias = tuple[bytes, str, Any]  # name, kind and value of a metadata field, as the table `fields` has them

STORED = 128  # documents, with their images, that are stored at a time
SHORT = 2**16  # bytes of a content that may be read before somebody looks at it
METADATA = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
HASH = re.compile("[0-9a-f]{64}")  # a content hash; what else is named is an id
# Of documents, as in `Row`; what is in a damaged table may be in another order.
COLUMNS = "seq, id, content_hash, metadata, vector, checksum"
PARTS = (
    "SELECT hash, is_image, data, checksum FROM parts JOIN contents ON key = content WHERE seq = ? ORDER BY position"
)
# All at once, since a statement takes longer than what it reads; nothing beside a document where its parts are gone.
READ = """
SELECT documents.seq, id, content_hash, metadata, vector, documents.checksum, hash, is_image, data, contents.checksum
FROM documents LEFT JOIN parts ON parts.seq = documents.seq LEFT JOIN contents ON key = content
WHERE documents.seq IN (?) ORDER BY documents.seq, position
"""
READ_SHORT = READ.replace(" data,", f" CASE WHEN length(data) <= {SHORT} THEN data END,")


class State(NamedTuple):
    """How far a memory has come. last_seq: the highest sequence number ever given."""

    last_seq: int
    generation: int


class Journal(Database):
    """Documents in and out of the database. Every method is called inside `reading()` or `writing()`, or `looking()` where it
    is a single statement."""

    def state(self) -> State:
        last, generation = self.connection.execute(
            "SELECT (SELECT max(seq) FROM sqlite_sequence WHERE name = 'documents'),"
            " (SELECT value FROM manifest WHERE name = 'generation')"
        ).fetchone()
        if type(last) not in (int, type(None)) or type(generation) is not int:
            raise MemoryCorrupt(
                f"{self.place} does not know how far it has come any more.", "Restore it from a backup."
            )
        return State(last or 0, generation)

    def encoder(self) -> Encoder | None:
        found = dict(self.connection.execute("SELECT name, value FROM manifest").fetchall())
        if not {"fingerprint", "dim", "encoder_checksum"} & set(found):
            return None
        encoder = Encoder(found.get("fingerprint", ""), found.get("dim", 0))
        if type(encoder.dim) is not int or found.get("encoder_checksum") != _checksum_of(encoder):
            raise MemoryCorrupt(
                f"{self.place} does not know its encoder any more: what it says does not match its checksum.",
                "Restore it from a backup.",
            )
        return encoder

    def count(self) -> int:
        return int(self.one("SELECT count(*) FROM documents"))

    def seqs(self) -> np.ndarray:
        """All sequence numbers, ascending: int64 [n]."""
        return self._numbers("SELECT seq FROM documents", ())

    def seqs_having(self, having: Having, after: int) -> np.ndarray:
        """Sequence numbers above `after` of the documents that have a value, ascending: int64 [m]."""
        statement = f"SELECT seq FROM fields JOIN tags ON key = field WHERE {having.test} AND seq > ?"
        return self._numbers(statement, (*having.parameters, after))

    def _numbers(self, statement: str, parameters: Sequence[Any]) -> np.ndarray:
        """The numbers that a statement selects, ascending. Sorted here: asked for an order, SQLite would walk the table with
        its vectors instead of a slim index. And one string is read in a fifth of the time of a row for each number."""
        import numpy as np

        count, listed = self.connection.execute(
            f"SELECT count(*), group_concat(seq) FROM ({statement})", parameters
        ).fetchone()
        try:
            numbers = np.fromstring(listed or "", dtype=np.int64, sep=",")
        except (ValueError, DeprecationWarning):  # an older numpy warns of what it cannot read to its end
            numbers = np.empty(0, dtype=np.int64)
        if len(numbers) != count:
            raise MemoryCorrupt(
                f"{self.place} is damaged: the numbers of its documents are none.", "Restore it from a backup."
            )
        return np.sort(numbers)

    def seqs_named(self, names: Collection[str]) -> np.ndarray:
        """Numbers of all documents that have one of the names as id, content hash, or content hash of a part: int64 [m]."""
        import numpy as np

        if not names:
            return np.empty(0, dtype=np.int64)
        found = {seq for (seq,) in self.with_keys("SELECT seq FROM documents WHERE id IN (?)", map(encoded, names))}
        hashes = {bytes.fromhex(name) for name in names if HASH.fullmatch(name)}
        found.update(seq for seq, _ in self._with_hash("documents", "content_hash", hashes))
        contents = [key for key, _ in self._with_hash("contents", "hash", hashes)]
        found.update(seq for (seq,) in self.with_keys("SELECT seq FROM parts WHERE content IN (?)", contents))
        return np.array(sorted(found), dtype=np.int64)

    def seqs_of(self, ids: Iterable[str]) -> dict[str, int]:
        """Sequence number of each id that is stored."""
        rows = self.with_keys("SELECT id, seq FROM documents WHERE id IN (?)", map(encoded, ids))
        return {decoded(id): seq for id, seq in rows}

    def ids(self, seqs: Sequence[int]) -> list[str]:
        """The ids of documents that an index of this state holds. Raises `MemoryCorrupt` when one of them is gone."""
        found = {seq: decoded(id) for seq, id in self.with_keys("SELECT seq, id FROM documents WHERE seq IN (?)", seqs)}
        if gone := set(seqs) - set(found):
            raise MemoryCorrupt(
                f"{self.place} is damaged: {len(gone)} documents of its index are not found.",
                "Restore it from a backup.",
            )
        return [found[seq] for seq in seqs]

    def hashes(self, seqs: Iterable[int]) -> dict[int, list[str]]:
        """Content hashes of the parts of each document."""
        found: dict[int, list[str]] = {}
        statement = "SELECT seq, lower(hex(hash)) FROM parts JOIN contents ON key = content WHERE seq IN (?)"
        for seq, hash in self.with_keys(statement, map(int, seqs)):
            found.setdefault(seq, []).append(hash)
        return found

    def tagged(self, seq: int, fields: Iterable[Field]) -> int:
        """By how many of the fields a filter finds a document."""
        statement = "SELECT count(*) FROM tags JOIN fields ON key = field WHERE (name, kind, value, seq) = (?, ?, ?, ?)"
        return sum(self.one(statement, (*field, seq)) for field in fields)

    def stats(self) -> dict[str, Any]:
        """What is stored: documents, texts and images (each counted once), and for each metadata field its documents."""
        kinds = dict(self.connection.execute("SELECT is_image, count(*) FROM contents GROUP BY is_image").fetchall())
        fields = self.connection.execute(
            "SELECT name, count(DISTINCT seq) FROM fields JOIN tags ON key = field GROUP BY name ORDER BY name"
        )
        found = {decoded(name): count for name, count in fields}
        texts, images, referenced = (kinds.get(kind, 0) for kind in (TEXT, IMAGE, FILE))
        stored = {"texts": texts, "images": images + referenced, "images_in_files": referenced}
        return {"documents": self.count(), **stored, "fields": found}

    def rows(self, *, after: int, last: int, limit: int = BATCH) -> list[Row]:
        """The next batch of documents by sequence number, after < seq <= last. Raises `MemoryCorrupt` when they do not
        come in order: whoever goes on after the last of them would never end."""
        found = self.connection.execute(
            f"SELECT {COLUMNS} FROM documents WHERE seq > ? AND seq <= ? ORDER BY seq LIMIT ?", (after, last, limit)
        )
        rows = [Row(*row) for row in found]
        seqs = [after, *(row.seq for row in rows)]
        if seqs != sorted(set(seqs)):
            raise MemoryCorrupt(
                f"{self.place} is damaged: its documents are out of order.", "Restore it from a backup."
            )
        return rows

    def last_row(self, last: int) -> Row | None:
        """The document with the highest sequence number that is at most `last`."""
        statement = f"SELECT {COLUMNS} FROM documents WHERE seq <= ? ORDER BY seq DESC LIMIT 1"
        found = self.connection.execute(statement, (last,)).fetchone()
        return None if found is None else Row(*found)

    def rows_of(self, seqs: Iterable[int]) -> list[Row]:
        """Documents by sequence number, in no particular order."""
        return [
            Row(*row) for row in self.with_keys(f"SELECT {COLUMNS} FROM documents WHERE seq IN (?)", map(int, seqs))
        ]

    def read(self, seqs: Iterable[int], *, short: bool = False) -> dict[int, Stored]:
        """Documents by number, unchecked. short: without those that have a content above `SHORT`."""
        numbers, statement = [int(seq) for seq in seqs], READ_SHORT if short else READ
        found: dict[int, Stored] = {}
        for columns in self.ahead.reading(
            lambda: self.with_keys(statement, numbers), statement, numbers if short else ()
        ):
            if columns[0] not in found:
                found[columns[0]] = Stored(Row(*columns[:6]), [])
            found[columns[0]].parts.append(columns[6:])
        if short:
            return {seq: stored for seq, stored in found.items() if None not in [part[2] for part in stored.parts]}
        return found

    def document(self, row: Row) -> Document:
        """The document of a row, checked. Raises `MemoryCorrupt`, naming it, when it is not what was written."""
        return self.stored(row).document()

    def stored(self, row: Row) -> Stored:
        """The same with its parts, unchecked."""
        return Stored(row, self.connection.execute(PARTS, (row.seq,)).fetchall())

    def set_encoder(self, encoder: Encoder) -> None:
        known = [("fingerprint", encoder.fingerprint), ("dim", int(encoder.dim))]
        self.connection.executemany(
            "INSERT INTO manifest VALUES (?, ?)", [*known, ("encoder_checksum", _checksum_of(encoder))]
        )

    def index_name(self) -> str:
        """What kind of index the memory is to have."""
        return str(dict(self.connection.execute("SELECT name, value FROM manifest")).get("index", "exact"))

    def set_index_name(self, name: str) -> None:
        self.connection.execute("INSERT OR REPLACE INTO manifest VALUES ('index', ?)", (name,))

    def add(
        self, documents: Iterable[tuple[Document, np.ndarray]], on_duplicate: OnDuplicate, *, refer: bool = False
    ) -> list[str]:
        """Store documents, each with its vector (float16 or float32), by the rule of `MemoryStore.add`; their ids, in
        order. No more than `STORED` of them are held at a time. refer: of pictures that came from files, the path alone."""
        ids, source = list[str](), iter(documents)
        while batch := list(islice(source, STORED)):
            stored = self.seqs_of(document.id for document, _ in batch)
            new: dict[str, tuple[Document, np.ndarray]] = {}
            for document, vector in batch:
                if document.id in stored or document.id in new:
                    if on_duplicate == "error":
                        twice = document.id in new or document.id in ids
                        raise DuplicateDocument(
                            f"A document with id {document.id!r} {'comes twice' if twice else 'is already stored'}.",
                            "Nothing of this call is stored. Skip or replace them: on_duplicate (--on-duplicate).",
                        )
                    if on_duplicate == "skip":
                        continue
                    new.pop(document.id, None)  # the later one counts as added anew
                new[document.id] = document, vector
            self.remove([seq for id, seq in stored.items() if id in new])
            self._insert(list(new.values()), refer)
            ids += [document.id for document, _ in batch]
        return ids

    def _insert(self, documents: Sequence[tuple[Document, np.ndarray]], refer: bool) -> None:
        """Store documents that are not there yet: each table in one go, and every B-tree in the order of its keys."""
        rows, shown, tagged = [], [], list[tuple[Field, int]]()
        for seq, (document, vector) in enumerate(documents, start=self.state().last_seq + 1):
            metadata = encoded(METADATA.encode(dict(document.metadata)))
            floats = vector.astype(vector.dtype.newbyteorder("<"), copy=False).tobytes()
            columns = (encoded(document.id), bytes.fromhex(document.content_hash), metadata, floats)
            rows.append((seq, *columns, checksum(*columns)))
            shown += [(seq, position, part) for position, part in enumerate(shown_by(document))]
            tagged += [(field, seq) for field in fields_of(document.metadata)]
        contents = self._store_contents([part for _, _, part in shown], refer)
        many = self.connection.executemany
        many("INSERT INTO documents VALUES (?, ?, ?, ?, ?, ?)", rows)
        many("INSERT INTO parts VALUES (?, ?, ?)", [(seq, n, contents[part.content_hash]) for seq, n, part in shown])
        self._tag(tagged)

    def _tag(self, tagged: Sequence[tuple[Field, int]]) -> None:
        """Let filters find documents, by number, by fields that they have."""
        keys = self._store_fields({field for field, _ in tagged})
        rows = sorted((keys[field], seq) for field, seq in tagged)
        self.connection.executemany("INSERT INTO tags VALUES (?, ?)", rows)

    def index_field(self, name: str, progress: Callable[[int], object]) -> int:
        """Write anew what filters find by a field, from the metadata of all sound documents; how many of these have it."""
        self.purge()
        of_name = "SELECT key FROM fields WHERE name = ?"
        self.connection.execute(f"DELETE FROM tags WHERE field IN ({of_name})", (encoded(name),))
        self.connection.execute("DELETE FROM fields WHERE name = ?", (encoded(name),))
        having, after, last, read = 0, 0, self.state().last_seq, 0
        while rows := self.rows(after=after, last=last):
            known = [(row.seq, row.values) for row in rows if row.intact]
            values = {seq: {name: metadata[name]} for seq, metadata in known if name in metadata}
            self._tag([(field, seq) for seq, value in values.items() for field in fields_of(value)])
            having, after, read = having + len(values), rows[-1].seq, read + len(rows)
            progress(read)
        return having

    def _store_contents(self, parts: Iterable[Text | Image], refer: bool) -> dict[str, int]:
        """The key of what each part shows, by its hash. What is new is stored, what is there is restated."""
        rows = contents_of(parts, refer)
        keys = self._restate(rows)
        missing = [hash for hash in rows if hash not in keys]
        new = {hash: key for key, hash in enumerate(missing, start=self._next_key("contents"))}
        self.connection.executemany(
            "INSERT INTO contents VALUES (?, ?, ?, ?, ?)", [(key, hash, *rows[hash]) for hash, key in new.items()]
        )
        return {hash.hex(): key for hash, key in (keys | new).items()}

    def _restate(self, rows: Mapping[bytes, Content]) -> dict[bytes, int]:
        """The keys of those contents that are stored, by hash. What is damaged is stored again, and so is what lies in a file
        that is gone; but whoever stored a picture itself does not count on a file."""
        keys = {hash: key for key, hash in self._with_hash("contents", "hash", set(rows))}
        changed = []
        for hash, key in keys.items():
            stored = self.connection.execute("SELECT is_image, data, checksum FROM contents WHERE key = ?", (key,))
            kind, data, check = stored.fetchone()
            sound = matches(check, KINDS.get(kind), data)
            moved = (
                sound
                and kind == FILE
                and data != rows[hash].data
                and (rows[hash].kind == IMAGE or not is_there(data, hash.hex()))
            )
            if moved or not sound:
                changed.append((*rows[hash], key))
        self.connection.executemany("UPDATE contents SET (is_image, data, checksum) = (?, ?, ?) WHERE key = ?", changed)
        return keys

    def _store_fields(self, fields: set[Field]) -> dict[Field, int]:
        """The key of each field, which is stored when it is new."""
        run, keys = self.connection.execute, dict[Field, int]()
        for field in fields:
            for (key,) in run("SELECT key FROM fields WHERE (name, kind, value) = (?, ?, ?)", field):
                keys[field] = key
        missing = sorted(fields - keys.keys())
        if not missing:
            return keys
        new = {field: key for key, field in enumerate(missing, start=self._next_key("fields"))}
        self.connection.executemany(
            "INSERT INTO fields VALUES (?, ?, ?, ?)", [(key, *field) for field, key in new.items()]
        )
        return keys | new

    def _next_key(self, table: str) -> int:
        return int(self.one(f"SELECT coalesce(max(key), 0) + 1 FROM {table}"))

    def _make_whole(self, copy: sqlite3.Connection) -> None:
        files = copy.execute("SELECT key, lower(hex(hash)), data, checksum FROM contents WHERE is_image = ?", (FILE,))
        for key, hash, data, check in files.fetchall():
            if matches(check, KINDS[FILE], data):  # what is damaged stays so, and says so when it is read
                (row,) = contents_of([in_file(data, hash, "the copy")], refer=False).values()
                copy.execute("UPDATE contents SET (is_image, data, checksum) = (?, ?, ?) WHERE key = ?", (*row, key))

    def purge(self) -> None:
        """Remove the tags that damage left behind, of documents and of fields."""
        self.connection.execute("DELETE FROM tags WHERE seq NOT IN (SELECT seq FROM documents)")
        self.connection.execute("DELETE FROM tags WHERE field NOT IN (SELECT key FROM fields)")
        self.connection.execute("DELETE FROM fields WHERE key NOT IN (SELECT field FROM tags)")

    def remove(self, seqs: Sequence[int]) -> None:
        """Remove documents, and the contents that no other document has. No more than `BATCH` of them are held at a time."""
        for start in range(0, len(seqs), BATCH):
            self._remove(seqs[start : start + BATCH])
        if seqs:
            self.connection.execute("UPDATE manifest SET value = value + 1 WHERE name = 'generation'")

    def _remove(self, seqs: Sequence[int]) -> None:
        contents = [key for (key,) in self.with_keys("SELECT content FROM parts WHERE seq IN (?)", seqs)]
        fields = {key for row in self.rows_of(seqs) for key in self._untagged(row)}
        for table in ("parts", "documents"):
            self.with_keys(f"DELETE FROM {table} WHERE seq IN (?)", seqs)
        unused = "NOT EXISTS (SELECT 1 FROM parts WHERE content = key)"
        self.with_keys(f"DELETE FROM contents WHERE key IN (?) AND {unused}", contents)
        unused = "NOT EXISTS (SELECT 1 FROM tags WHERE field = key)"
        self.with_keys(f"DELETE FROM fields WHERE key IN (?) AND {unused}", fields)

    def _untagged(self, row: Row) -> set[int]:
        """Take away the tags of a document, and return the fields that they named. A damaged document does not say any
        more which they are; they stay behind, and match nothing, since no sequence number is given twice."""
        fields = fields_of(row.values) if row.intact else ()
        statement = "SELECT key FROM fields WHERE (name, kind, value) = (?, ?, ?)"
        keys = {key for field in fields for (key,) in self.connection.execute(statement, field)}
        self.connection.executemany("DELETE FROM tags WHERE field = ? AND seq = ?", [(key, row.seq) for key in keys])
        return keys

    def _with_hash(self, table: str, column: str, hashes: set[bytes]) -> list[tuple[int, bytes]]:
        """The rows of a table that have one of the hashes, each with it."""
        rows = self.with_keys(
            f"SELECT rowid, {column} FROM {table} WHERE substr({column}, 1, 8) IN (?)", {hash[:8] for hash in hashes}
        )
        return [(row, hash) for row, hash in rows if hash in hashes]


def fields_of(metadata: Metadata) -> set[Field]:
    """Metadata as (name, kind, value), one for each element of a list."""
    found: set[Field] = set()
    for name, value in metadata.items():
        values = ({stored(item) for item in value} or {EMPTY}) if isinstance(value, list) else (stored(value),)
        found.update((encoded(name), kind, plain) for kind, plain in values)
    return found


def _checksum_of(encoder: Encoder) -> bytes:
    return checksum(str(encoder.fingerprint).encode(), str(encoder.dim).encode())
