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
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from racm3.document import Document
from racm3.errors import (
    ConfigError,
    DuplicateDocument,
    EncoderMismatch,
    MemoryStoreError,
)
from racm3.interfaces import Encoder, Hit, MemoryStore, OnDuplicate, Where
from racm3.memories.arguments import check_count, check_policy, exclusions, id_list, with_vectors
from racm3.memories.vectors import unit_vectors
from racm3.memories.where import parse

from .archive import CHANGE, STREAMED, Archive
from .connection import Connection
from .mirror import Found, Mirror
from .record import Record, key_of
from .where import PREFIX, Unsayable, translated

DEFAULT_PATH = Path("chroma")
OVERFETCH = 4  # how many times more than wanted Chroma's approximate index is asked for

FINGERPRINT, DIM = f"{PREFIX}fingerprint", f"{PREFIX}dim"


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
        folder = None if host is not None else Path(path or DEFAULT_PATH)
        self._chroma = Connection(folder, host=host or "", port=port, ssl=ssl, headers=headers)
        self._closed = False
        try:
            self._archive = Archive(self._chroma, collection)
        except BaseException:
            self._chroma.close()
            raise

    @property
    def encoder(self) -> Encoder | None:
        """The encoder that the memory is bound to, if it is."""
        with self._using():
            manifest = self._archive.records.manifest()
            return Encoder(manifest[FINGERPRINT], manifest[DIM]) if FINGERPRINT in manifest else None

    def bind(self, encoder: Encoder) -> None:
        with self._using():
            bound = self.encoder
            if bound is None:
                self._archive.change({FINGERPRINT: encoder.fingerprint, DIM: int(encoder.dim)})
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
            stored = self._archive.records.present([key_of(document.id) for document, _ in given])
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
                self._archive.store(list(chosen.values()), stored.intersection(chosen))
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
            count = self._archive.records.count()
            if count <= self.exact_up_to:
                mirror = self._caught_up(encoder.dim, count)
                allowed = None if where is None else self._archive.keys_matching(where)
                found = mirror.nearest(queries, int(k), allowed=allowed, excluded=excluded)
            else:
                found = self._nearest_by_chroma(queries, min(int(k), count), where, excluded, count)
            return [[self._hit(one) for one in hits] for hits in found]

    def get(self, ids: Sequence[str]) -> list[Document | None]:
        """As `MemoryStore.get`. Raises `MemoryCorrupt`, naming the document, when it is not what was stored."""
        keys = [key_of(id) for id in id_list(ids)]
        with self._using():
            found = self._archive.documents(self._archive.records.get(keys).values())
        return [found.get(key) for key in keys]

    def items(self) -> Iterator[tuple[Document, np.ndarray]]:
        """As `MemoryStore.items`: those stored when it was called, read in batches, so that others can write meanwhile."""
        with self._using():
            stamps = {record.key: record.stamp for record in self._archive.records.matching()}
        keys = sorted(stamps, key=lambda key: (stamps[key], key))

        def batches() -> Iterator[tuple[Document, np.ndarray]]:
            for start in range(0, len(keys), STREAMED):
                with self._using():
                    records = self._archive.records.get(keys[start : start + STREAMED], vectors=True)
                    unchanged = {key: record for key, record in records.items() if record.stamp == stamps[key]}
                    documents = self._archive.documents(unchanged.values())
                for key in keys[start : start + STREAMED]:
                    if key in documents:
                        yield documents[key], _vector(unchanged[key])

        return batches()

    def random(self, n: int, *, rng: np.random.Generator, where: Where | None = None) -> list[Hit]:
        if where is not None:
            parse(where)
        check_count("n", n, "documents")
        with self._using():
            keys = sorted(self._archive.records.keys() if where is None else self._archive.keys_matching(where))
            drawn = [keys[row] for row in rng.choice(len(keys), size=min(n, len(keys)), replace=False)] if keys else []
            records = self._archive.records.get(drawn, vectors=True)
            return [self._hit(_found(records[key])) for key in drawn]

    def delete(self, ids: Sequence[str]) -> int:
        keys = [key_of(id) for id in id_list(ids)]
        with self._using():
            return self._archive.remove(keys)

    def __len__(self) -> int:
        with self._using():
            return self._archive.records.count()

    def refresh(self) -> None:
        """Take in what other processes have written since. Every search does so of itself; this does it ahead of one."""
        with self._using():
            encoder, count = self.encoder, self._archive.records.count()
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

    # Reading

    def _caught_up(self, dim: int, count: int) -> Mirror:
        """The mirror, as the collection is now."""
        # The count tells of a writer that was stopped before it could note its change.
        state = (str(self._archive.records.manifest().get(CHANGE)), count)
        if self._mirror is None or self._mirrored != state:
            mirror = self._mirror or Mirror(dim)
            missing = mirror.keep(self._archive.records.matching())
            mirror.take_in(list(self._archive.records.get(missing, vectors=True).values()))
            self._mirror, self._mirrored = mirror, state
        return self._mirror

    def _nearest_by_chroma(
        self, queries: np.ndarray, k: int, where: Where | None, excluded: Sequence[Collection[str]], count: int
    ) -> list[list[Found]]:
        """About the k nearest, by Chroma's index: asked for more, and scored and ordered again."""
        try:
            condition = None if where is None else translated(where)
        except Unsayable:
            return self._nearest_among(self._archive.keys_matching(where or {}), queries, k, excluded)
        answer: list[list[Found]] = []
        for query, names in zip(queries, excluded, strict=True):
            fetch = OVERFETCH * k + len(names)
            while True:
                records = self._archive.records.nearest(query[None], min(fetch, count), condition)[0]
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
        among.take_in(list(self._archive.records.get(keys, vectors=True).values()))
        return among.nearest(queries, k, allowed=None, excluded=excluded)

    def _hit(self, found: Found) -> Hit:
        return Hit(
            id=found.id, score=found.score, vector=found.vector, hashes=found.hashes,
            load=self._loader(found.id, found.stamp),
        )  # fmt: skip

    def _loader(self, id: str, stamp: int) -> Callable[[], Document]:
        def load() -> Document:
            with self._using():
                for record in self._archive.records.get([key_of(id)]).values():
                    if record.stamp == stamp:
                        return self._archive.documents([record])[record.key]
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


def _found(record: Record, query: np.ndarray | None = None) -> Found:
    vector = _vector(record)
    score = None if query is None else float(np.einsum("d,d->", vector, query))
    return Found(record.id, record.stamp, frozenset(record.hashes), vector, score)


def _vector(record: Record) -> np.ndarray:
    assert record.vector is not None
    return record.vector
