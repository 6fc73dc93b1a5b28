"""Chroma as the place where documents live, in a folder or on a server.

    with ChromaMemory(Path("./memory")) as memory:          # or ChromaMemory(host="localhost", port=8000)
        memory.bind(retriever.encoder)
        memory.add(documents, retriever.encode_document(documents))
        hits = memory.search(retriever.encode_query(queries), k=10, where={"style": "noto"})

Chroma is the truth. Its index is approximate, so up to `exact_up_to` documents are searched exactly, over a copy of their
vectors in this process, which every search brings up to date; beyond that Chroma's index is asked for more than was wanted,
and what it finds is scored and ordered again. Filters are resolved exactly in both cases. Chroma has no transactions:
let one process write at a time.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from racm3.document import Document
from racm3.errors import (
    ConfigError,
    DuplicateDocument,
    EncoderMismatch,
    MemoryCorrupt,
    MemoryStoreError,
)
from racm3.interfaces import Encoder, Hit, MemoryStore, OnDuplicate, Where
from racm3.memories.arguments import check_count, check_policy, exclusions, id_list, with_vectors
from racm3.memories.journal import Journal
from racm3.memories.vectors import unit_vectors
from racm3.memories.where import parse

from .connection import Connection, Shelf
from .mirror import Found, Mirror
from .record import Record, data_of, document_of, key_of, piece_keys, pieces_of, record_of
from .where import PREFIX, Unsayable, any_of, hash_token, translated

FORMAT = 1
DEFAULT_PATH = Path("chroma")
STREAMED = 32  # documents, with their pictures, that are held at a time
OVERFETCH = 4  # how many times more than wanted Chroma's approximate index is asked for

MANIFEST = {f"{PREFIX}format": FORMAT}
FINGERPRINT, DIM, CHANGE = f"{PREFIX}fingerprint", f"{PREFIX}dim", f"{PREFIX}change"


class ChromaMemory(MemoryStore):
    """Documents in a Chroma collection. Safe to share between threads.

    path: a folder for embedded Chroma, made when it is missing; "./chroma", as in Chroma itself, when there is no host.
    host, port, ssl, headers: a Chroma server instead. collection: the collection's name; pictures are in another one,
    named after it. exact_up_to: how many documents are searched exactly, over a copy of their vectors in this process;
    in a larger memory the hits are approximate.

    No embedding function is ever made or called: vectors come from the retriever.
    """

    def __init__(
        self,
        path: Path | None = None,
        *,
        host: str | None = None,
        port: int = 8000,
        ssl: bool = False,
        headers: dict[str, str] | None = None,
        collection: str = "racm3",
        exact_up_to: int = 20_000,
    ) -> None:
        if path is not None and host is not None:
            raise ConfigError(
                "A Chroma memory is in a folder or on a server, not both.", "Give path, or host and port."
            )
        if exact_up_to < 0:
            raise ConfigError(f"exact_up_to is a number of documents, 0 or more, not {exact_up_to}.")
        self.exact_up_to = exact_up_to
        self._lock = threading.RLock()
        self._process = os.getpid()
        self._mirror: Mirror | None = None
        self._mirrored: tuple[str, int] | None = None  # the state of the collection that the mirror shows
        self._last_stamp = 0
        folder = None if host is not None else Path(path or DEFAULT_PATH)
        self._chroma = Connection(folder, host=host or "", port=port, ssl=ssl, headers=headers)
        self._closed = False
        try:
            self._records = self._chroma.collection(collection, MANIFEST)
            self._pictures = self._chroma.collection(f"{collection}-pictures", MANIFEST)
            for shelf in (self._records, self._pictures):
                self._check_format(shelf)
        except BaseException:
            self._chroma.close()
            raise

    @property
    def encoder(self) -> Encoder | None:
        """The encoder that the memory is bound to, if it is."""
        with self._using():
            manifest = self._records.manifest()
            return Encoder(manifest[FINGERPRINT], manifest[DIM]) if FINGERPRINT in manifest else None

    def bind(self, encoder: Encoder) -> None:
        with self._using():
            bound = self.encoder
            if bound is None:
                self._change({FINGERPRINT: encoder.fingerprint, DIM: int(encoder.dim)})
            elif bound != encoder:
                raise EncoderMismatch(
                    f"The memory was filled by encoder {bound.fingerprint} (width {bound.dim}), "
                    f"not by {encoder.fingerprint} (width {encoder.dim}).",
                    "Use the retriever that filled it, or encode its documents anew into another memory.",
                )

    def add(
        self, documents: Iterable[Document], vectors: np.ndarray, *, on_duplicate: OnDuplicate = "error"
    ) -> list[str]:
        """As `MemoryStore.add`. A replaced document counts as added anew.

        An error stores nothing: what was written is taken back. Only a process that is killed, or a server that is lost,
        half-way can leave a part of the call behind, and of a call that replaces, lose the documents to be replaced.
        Raises the errors of `FaissMemory.add`.
        """
        check_policy(on_duplicate)
        encoder = self.encoder
        if encoder is None:
            raise MemoryStoreError("The memory is not bound to an encoder.", "Call bind(retriever.encoder) first.")
        rows = unit_vectors(vectors, encoder.dim)
        given = list(with_vectors(documents, rows))
        with self._using():
            stored = self._records.present([key_of(document.id) for document, _ in given])
            chosen: dict[str, tuple[Document, np.ndarray]] = {}
            for document, row in given:
                key = key_of(document.id)
                if on_duplicate == "error" and (key in stored or key in chosen):
                    raise DuplicateDocument(
                        f"A document with id {document.id!r} is already stored.",
                        "Nothing of this call was. To go on, use on_duplicate='skip' or 'replace'.",
                    )
                if on_duplicate == "replace":
                    chosen.pop(key, None)  # so that it counts as added anew
                if on_duplicate == "replace" or not (key in stored or key in chosen):
                    chosen[key] = document, row
            if chosen:
                self._store(list(chosen.values()), stored.intersection(chosen))
        return [document.id for document, _ in given]

    def search(
        self,
        vectors: np.ndarray,
        *,
        k: int,
        where: Where | None = None,
        exclude: Sequence[Collection[str]] | None = None,
    ) -> list[list[Hit]]:
        """As `MemoryStore.search`; exact up to `exact_up_to` documents. Equal scores come in order of id."""
        if where is not None:
            parse(where)  # says what is not well formed
        check_count("k", k, "hits")
        with self._using():
            encoder = self.encoder
            queries = unit_vectors(vectors, encoder.dim if encoder else None)
            excluded = exclusions(exclude, len(queries))
            if encoder is None or k == 0 or not len(queries):
                return [[] for _ in queries]
            count = self._records.count()
            if count <= self.exact_up_to:
                mirror = self._caught_up(encoder.dim, count)
                allowed = None if where is None else self._keys_matching(where)
                found = mirror.nearest(queries, int(k), allowed=allowed, excluded=excluded)
            else:
                found = self._nearest_by_chroma(queries, min(int(k), count), where, excluded, count)
            return [[self._hit(one) for one in hits] for hits in found]

    def get(self, ids: Sequence[str]) -> list[Document | None]:
        """As `MemoryStore.get`. Raises `MemoryCorrupt`, naming the document, when it is not what was stored."""
        keys = [key_of(id) for id in id_list(ids)]
        with self._using():
            found = self._documents(self._records.get(keys).values())
        return [found.get(key) for key in keys]

    def items(self) -> Iterator[tuple[Document, np.ndarray]]:
        """As `MemoryStore.items`: those stored when it was called, read in batches, so that others can write meanwhile."""
        with self._using():
            stamps = {record.key: record.stamp for record in self._records.matching()}
        keys = sorted(stamps, key=lambda key: (stamps[key], key))

        def batches() -> Iterator[tuple[Document, np.ndarray]]:
            for start in range(0, len(keys), STREAMED):
                with self._using():
                    records = self._records.get(keys[start : start + STREAMED], vectors=True)
                    unchanged = {key: record for key, record in records.items() if record.stamp == stamps[key]}
                    documents = self._documents(unchanged.values())
                for key in keys[start : start + STREAMED]:
                    if key in documents:
                        yield documents[key], _vector(unchanged[key])

        return batches()

    def random(self, n: int, *, rng: np.random.Generator, where: Where | None = None) -> list[Hit]:
        if where is not None:
            parse(where)
        check_count("n", n, "documents")
        with self._using():
            keys = sorted(self._records.keys() if where is None else self._keys_matching(where))
            drawn = [keys[row] for row in rng.choice(len(keys), size=min(n, len(keys)), replace=False)] if keys else []
            records = self._records.get(drawn, vectors=True)
            return [self._hit(_found(records[key])) for key in drawn]

    def delete(self, ids: Sequence[str]) -> int:
        keys = [key_of(id) for id in id_list(ids)]
        with self._using():
            records = self._records.get(keys)
            if records:
                self._records.delete(records)
                self._forget_pictures(records.values())
                self._change()
        return len(records)

    def __len__(self) -> int:
        with self._using():
            return self._records.count()

    def refresh(self) -> None:
        """Take in what other processes have written since. Every search does so of itself; this does it ahead of one."""
        with self._using():
            encoder, count = self.encoder, self._records.count()
            if encoder is not None and count <= self.exact_up_to:
                self._caught_up(encoder.dim, count)

    def flush(self) -> None:
        """Nothing to do: Chroma keeps its index itself."""
        with self._using():
            pass

    def close(self) -> None:
        """Let go of the folder or the server. Closing twice does no harm."""
        with self._lock:
            if not self._closed and self._process == os.getpid():
                self._chroma.close()
            self._closed, self._mirror = True, None

    # Writing

    def _store(self, chosen: Sequence[tuple[Document, np.ndarray]], replaced: Collection[str]) -> None:
        """Write documents of which some replace others; put everything back if that fails."""
        stamp = self._last_stamp = max(time.time_ns(), self._last_stamp + 1)
        self._last_stamp += len(chosen)
        records = [record_of(document, row, stamp + number) for number, (document, row) in enumerate(chosen)]
        images = {image.content_hash: image for document, _ in chosen for image in document.images}
        pieces = {piece.key: piece for image in images.values() for piece in pieces_of(image)}
        # Upserting would leave the old metadata's other fields in place.
        old = self._records.get(replaced, vectors=True)
        try:
            self._pictures.add([pieces[key] for key in pieces.keys() - self._pictures.present(pieces)])
            self._records.delete(old)
            self._records.add(records)
            self._change()
        except BaseException:
            self._records.delete(self._records.present([record.key for record in records]))
            self._records.add(list(old.values()))
            self._forget_pictures(records)
            self._change()
            raise
        self._forget_pictures(old.values())

    def _forget_pictures(self, records: Iterable[Record]) -> None:
        """Remove the pictures of records that are gone, where no other record shows them."""
        pieces = {name: count for record in records for name, count in record.pictures.items()}
        if not pieces:
            return
        for where in any_of([hash_token(name) for name in pieces]):
            for record in self._records.matching(where):
                for name in record.pictures:
                    pieces.pop(name, None)
        self._pictures.delete([key for name, count in pieces.items() for key in piece_keys(name, count)])

    def _change(self, values: Mapping[str, Any] | None = None) -> None:
        """Note in the collection that it is another one now, for all who have a copy of its vectors."""
        self._records.set_manifest({**self._records.manifest(), **(values or {}), CHANGE: uuid.uuid4().hex})

    # Reading

    def _caught_up(self, dim: int, count: int) -> Mirror:
        """The mirror, as the collection is now."""
        # The count tells of a writer that was stopped before it could note its change.
        state = (str(self._records.manifest().get(CHANGE)), count)
        if self._mirror is None or self._mirrored != state:
            mirror = self._mirror or Mirror(dim)
            missing = mirror.keep(self._records.matching())
            mirror.take_in(list(self._records.get(missing, vectors=True).values()))
            self._mirror, self._mirrored = mirror, state
        return self._mirror

    def _keys_matching(self, where: Where) -> list[str]:
        """The keys of the documents that a filter lets through: by Chroma, or by reading all metadata."""
        try:
            return self._records.keys(translated(where))
        except Unsayable:
            return _keys_by_reading(self._records.matching(), where)

    def _nearest_by_chroma(
        self, queries: np.ndarray, k: int, where: Where | None, excluded: Sequence[Collection[str]], count: int
    ) -> list[list[Found]]:
        """About the k nearest, by Chroma's index: asked for more, and scored and ordered again."""
        try:
            condition = None if where is None else translated(where)
        except Unsayable:
            return self._nearest_among(self._keys_matching(where or {}), queries, k, excluded)
        answer: list[list[Found]] = []
        for query, names in zip(queries, excluded, strict=True):
            fetch = OVERFETCH * k + len(names)
            while True:
                records = self._records.nearest(query[None], min(fetch, count), condition)[0]
                found = [_found(record, query) for record in records if not record.names & set(names)]
                if len(found) >= k or fetch >= count:
                    break
                fetch *= 4
            answer.append(sorted(found, key=lambda one: (-(one.score or 0.0), one.id))[:k])
        return answer

    def _nearest_among(
        self, keys: Sequence[str], queries: np.ndarray, k: int, excluded: Sequence[Collection[str]]
    ) -> list[list[Found]]:
        """The k nearest of some documents of a large memory, exactly."""
        among = Mirror(queries.shape[1])
        among.take_in(list(self._records.get(keys, vectors=True).values()))
        return among.nearest(queries, k, allowed=None, excluded=excluded)

    def _documents(self, records: Collection[Record]) -> dict[str, Document]:
        """Documents by key. Raises `MemoryCorrupt`, naming the document, when one is not what was stored."""
        made: dict[str, Document] = {}
        records = list(records)
        for start in range(0, len(records), STREAMED):
            batch = records[start : start + STREAMED]
            wanted = {name: count for record in batch for name, count in record.pictures.items()}
            keys = {name: piece_keys(name, count) for name, count in wanted.items()}
            pieces = self._pictures.get([key for several in keys.values() for key in several])

            def data(name: str, keys: dict[str, list[str]] = keys, pieces: dict[str, Record] = pieces) -> bytes:
                return data_of([pieces[key] for key in keys[name]])

            made |= {record.key: document_of(record, data) for record in batch}
        return made

    def _hit(self, found: Found) -> Hit:
        return Hit(
            id=found.id, score=found.score, vector=found.vector, hashes=found.hashes,
            load=self._loader(found.id, found.stamp),
        )  # fmt: skip

    def _loader(self, id: str, stamp: int) -> Callable[[], Document]:
        def load() -> Document:
            with self._using():
                for record in self._records.get([key_of(id)]).values():
                    if record.stamp == stamp:
                        return self._documents([record])[record.key]
            raise MemoryStoreError(f"Document {id!r} was removed or replaced after it was found.", "Search again.")

        return load

    # Life

    @contextmanager
    def _using(self) -> Iterator[None]:
        with self._lock:
            if self._closed:
                raise MemoryStoreError(f"{self._chroma.place} is closed.", "Open it again.")
            if self._process != os.getpid():  # Chroma's threads and SQLite's connections do not survive a fork
                raise MemoryStoreError(
                    f"{self._chroma.place} was opened by the parent process.", "Open it again in this process."
                )
            yield

    def _check_format(self, shelf: Shelf) -> None:
        """Raises for a collection that is not ours, or that a newer version has made."""
        version = shelf.manifest().get(f"{PREFIX}format")
        if version is None:
            raise MemoryCorrupt(
                f"{self._chroma.place} has a collection {shelf.name!r}, which racm3 did not make.",
                "Give the name of another collection.",
            )
        if version != FORMAT:
            raise MemoryStoreError(
                f"{self._chroma.place} has format {version}; this racm3-chroma reads {FORMAT}.", "Upgrade racm3-chroma."
            )


def _keys_by_reading(records: Sequence[Record], where: Where) -> list[str]:
    """The keys of the records that a filter lets through, by the SQL that the default memory makes of it."""
    journal = Journal(None)
    try:
        with journal.writing():
            nowhere = np.zeros(1, dtype=np.float32)
            keys = {
                journal.insert(Document("-", id=record.key, metadata=record.document_metadata), nowhere): record.key
                for record in records
            }
            return [keys[seq] for seq in journal.seqs_matching(parse(where)).tolist()]
    finally:
        journal.close()


def _found(record: Record, query: np.ndarray | None = None) -> Found:
    vector = _vector(record)
    score = None if query is None else float(np.einsum("d,d->", vector, query))
    return Found(record.id, record.stamp, frozenset(record.hashes), vector, score)


def _vector(record: Record) -> np.ndarray:
    assert record.vector is not None
    return record.vector
