"""Documents in two collections of Chroma, one of records and one of pictures: written whole or not at all, read exactly.

Chroma has no transactions: what a call has written is taken back when it fails.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from racm3.document import Document
from racm3.errors import MemoryCorrupt, MemoryStoreError
from racm3.interfaces import Where
from racm3.memories.predicate import predicate

from .connection import Connection, Shelf
from .record import Record, data_of, document_of, piece_keys, pieces_of, record_of
from .where import PREFIX, Unsayable, any_of, hash_token, translated

FORMAT = 1
STREAMED = 32  # documents, with their pictures, that are held at a time

MANIFEST = {f"{PREFIX}format": FORMAT}
CHANGE = f"{PREFIX}change"


class Archive:
    """The records of documents, and the pictures that they show. collection: the name of the first; the second has
    "-pictures" after it. Raises for collections that are not ours, or that a newer version has made."""

    def __init__(self, chroma: Connection, collection: str) -> None:
        self._place = chroma.place
        self._last_stamp = 0
        self.records = chroma.collection(collection, MANIFEST)
        self.pictures = chroma.collection(f"{collection}-pictures", MANIFEST)
        for shelf in (self.records, self.pictures):
            self._check_format(shelf)

    # Writing

    def store(self, chosen: Sequence[tuple[Document, np.ndarray]], replaced: Collection[str]) -> None:
        """Write documents of which some replace those of the keys `replaced`; put everything back if that fails."""
        stamp = self._last_stamp = max(time.time_ns(), self._last_stamp + 1)
        self._last_stamp += len(chosen)
        records = [record_of(document, row, stamp + number) for number, (document, row) in enumerate(chosen)]
        images = {image.content_hash: image for document, _ in chosen for image in document.images}
        pieces = {piece.key: piece for image in images.values() for piece in pieces_of(image)}
        # Upserting would leave the old metadata's other fields in place.
        old = self.records.get(replaced, vectors=True)
        try:
            self.pictures.add([pieces[key] for key in pieces.keys() - self.pictures.present(pieces)])
            self.records.delete(old)
            self.records.add(records)
            self.change()
        except BaseException as error:
            self._take_back(records, old, error)
            raise
        self._forget_pictures(old.values())

    def _take_back(self, records: Sequence[Record], old: Mapping[str, Record], error: BaseException) -> None:
        """Undo what a call has got to: what it had not touched yet stays untouched, for what has failed can fail again."""
        try:
            stamps = {record.key: record.stamp for record in records}
            there = self.records.get(stamps)
            written = {key for key, record in there.items() if record.stamp == stamps[key]}
            gone = [record for key, record in old.items() if key not in there or key in written]
            if written or gone:
                self.records.delete(written)
                self.records.add(gone)
                self.change()
        except Exception as again:
            raise MemoryStoreError(
                f"{self._place} could not store what it was given ({error}), nor take it back ({again}). What of it is "
                f"stored is not certain; nor are these documents, which it was to replace: {[one.id for one in old.values()]}.",
                "Mend what has failed, and add them again with on_duplicate='replace'.",
            ) from error
        with suppress(MemoryStoreError):  # pictures that nobody shows are in nobody's way
            self._forget_pictures(records)

    def remove(self, keys: Sequence[str]) -> int:
        """Remove documents, and the pictures that no other one shows; gives how many there were."""
        records = self.records.get(keys)
        if records:
            self.records.delete(records)
            self._forget_pictures(records.values())
            self.change()
        return len(records)

    def change(self, values: Mapping[str, Any] | None = None) -> None:
        """Note in the collection that it is another one now, for all who have a copy of its vectors."""
        self.records.set_manifest({**self.records.manifest(), **(values or {}), CHANGE: uuid.uuid4().hex})

    def _forget_pictures(self, records: Iterable[Record]) -> None:
        """Remove the pictures of records that are gone, where no other record shows them."""
        pieces = {name: count for record in records for name, count in record.pictures.items()}
        if not pieces:
            return
        for where in any_of([hash_token(name) for name in pieces]):
            for record in self.records.matching(where):
                for name in record.pictures:
                    pieces.pop(name, None)
        self.pictures.delete([key for name, count in pieces.items() for key in piece_keys(name, count)])

    # Reading

    def documents(self, records: Collection[Record]) -> dict[str, Document]:
        """Documents by key. Raises `MemoryCorrupt`, naming the document, when one is not what was stored."""
        made: dict[str, Document] = {}
        records = list(records)
        for start in range(0, len(records), STREAMED):
            batch = records[start : start + STREAMED]
            wanted = {name: count for record in batch for name, count in record.pictures.items()}
            keys = {name: piece_keys(name, count) for name, count in wanted.items()}
            pieces = self.pictures.get([key for several in keys.values() for key in several])

            def data(name: str, keys: dict[str, list[str]] = keys, pieces: dict[str, Record] = pieces) -> bytes:
                return data_of([pieces[key] for key in keys[name]])

            made |= {record.key: document_of(record, data) for record in batch}
        return made

    def keys_matching(self, where: Where) -> list[str]:
        """The keys of the documents that a filter lets through: by Chroma, or by reading all metadata."""
        try:
            return self.records.keys(translated(where))
        except Unsayable:
            fits = predicate(where)
            return [record.key for record in self.records.matching() if fits(record.document_metadata)]

    def _check_format(self, shelf: Shelf) -> None:
        """Raises for a collection that is not ours, or that a newer version has made."""
        version = shelf.manifest().get(f"{PREFIX}format")
        if version is None:
            raise MemoryCorrupt(
                f"{self._place} has a collection {shelf.name!r}, which racm3 did not make.",
                "Give the name of another collection.",
            )
        if version != FORMAT:
            raise MemoryStoreError(
                f"{self._place} has format {version}; this racm3-chroma reads {FORMAT}.", "Upgrade racm3-chroma."
            )
