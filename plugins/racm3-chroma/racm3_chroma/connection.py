"""Chroma itself: a folder or a server, collections without embedding functions, requests within its limits, errors as ours."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from racm3.errors import MemoryCorrupt, MemoryLocked, MemoryStoreError, RACM3Error

from .record import Record, uri_of, vector_of
from .where import Filter

if TYPE_CHECKING:
    import numpy as np

DATABASE = "chroma.sqlite3"
REQUEST_BYTES = 2**24


class Connection:
    """A client of Chroma. path: the folder of an embedded one; else host, port, ssl and headers of a server."""

    def __init__(
        self,
        path: Path | None,
        *,
        host: str = "",
        port: int = 8000,
        ssl: bool = False,
        headers: Mapping[str, str] | None,
    ) -> None:
        self.place = f"The Chroma memory at {path or f'{host}:{port}'}"
        if path is not None:
            _check_folder(path)
        with self.translated():
            import chromadb
            from chromadb.config import Settings

            # Not from a .env file that happens to lie in the current folder.
            settings = Settings(_env_file=None, anonymized_telemetry=False)
            if path is not None:
                self._client: Any = chromadb.PersistentClient(str(path.resolve()), settings)
            else:
                self._client = chromadb.HttpClient(host, port, ssl, dict(headers or {}), settings)
            # What one request may ask for by id, which is also what it may add.
            self.max_batch = self._client.get_max_batch_size()

    def collection(self, name: str, manifest: Mapping[str, Any]) -> Shelf:
        """A collection by name, made with a manifest when it is not there."""
        from chromadb.errors import NotFoundError

        with self.translated():
            try:
                self._client.get_collection(name, embedding_function=None)
            except NotFoundError:
                self._client.create_collection(
                    name, embedding_function=None, metadata=dict(manifest), get_or_create=True,
                    configuration={"hnsw": {"space": "ip"}},
                )  # fmt: skip
        return Shelf(self, name)

    def open(self, name: str) -> Any:
        """Chroma's object for a collection as it is now, which will not make the embedding function that it may name."""
        found = self._client.get_collection(name, embedding_function=None)
        # get_collection makes none; but add() reads the schema, and that makes every function which is named there.
        found.get_model().serialized_schema = None
        return found

    def close(self) -> None:
        with self.translated():
            self._client.close()

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Chroma's errors as ours."""
        try:
            yield
        except RACM3Error:
            raise
        except Exception as error:
            said = str(error).strip() or type(error).__name__
            if "locked" in said or "busy" in said:
                raise MemoryLocked(f"{self.place} is being written by another process.", "Try again.") from error
            if "not a database" in said or "malformed" in said:
                raise MemoryCorrupt(f"{self.place} is damaged: {said}.", "Restore it from a backup.") from error
            if isinstance(error, ImportError):
                raise MemoryStoreError(f"chromadb cannot be imported: {said}.", "pip install racm3-chroma") from error
            if "connect" in said.lower():
                hint = "Is the server running? `chroma run --path FOLDER` starts one."
                raise MemoryStoreError(f"{self.place} cannot be reached: {said}.", hint) from error
            raise MemoryStoreError(f"{self.place} failed: {type(error).__name__}: {said}.") from error


class Shelf:
    """One collection: records in and out, in requests that Chroma takes."""

    def __init__(self, connection: Connection, name: str) -> None:
        self._connection, self.name = connection, name
        self._collection: Any = None

    def manifest(self) -> dict[str, Any]:
        """The collection's own metadata, as they are now."""
        with self._connection.translated():
            self._collection = self._connection.open(self.name)
            return dict(self._collection.metadata or {})

    def set_manifest(self, manifest: Mapping[str, Any]) -> None:
        with self._connection.translated():
            self._opened().modify(metadata=dict(manifest))

    def count(self) -> int:
        with self._connection.translated():
            return int(self._opened().count())

    def keys(self, where: Filter | None = None) -> list[str]:
        """The keys of the records that a filter lets through; None: of all."""
        with self._connection.translated():
            keys: list[str] = self._opened().get(where=where, include=[])["ids"]
        return keys

    def matching(self, where: Filter | None = None) -> list[Record]:
        """The records that a filter lets through, without vectors; None: all."""
        with self._connection.translated():
            return _records(self._opened().get(where=where, include=["metadatas"]))

    def get(self, keys: Collection[str], *, vectors: bool = False) -> dict[str, Record]:
        """Records by key; those that are not there are left out."""
        found: dict[str, Record] = {}
        asked = list(dict.fromkeys(keys))
        for start in range(0, len(asked), self._connection.max_batch):
            batch = asked[start : start + self._connection.max_batch]
            with self._connection.translated():
                answer = self._opened().get(ids=batch, include=["metadatas", "documents", *["uris"] * vectors])
            found |= {record.key: record for record in _records(answer)}
        return found

    def present(self, keys: Collection[str]) -> set[str]:
        """Which of the keys are there."""
        found: set[str] = set()
        asked = list(dict.fromkeys(keys))
        for start in range(0, len(asked), self._connection.max_batch):
            with self._connection.translated():
                batch = asked[start : start + self._connection.max_batch]
                found.update(self._opened().get(ids=batch, include=[])["ids"])
        return found

    def add(self, records: Sequence[Record]) -> None:
        """Add records whose keys are not there yet."""
        for batch in _batches(records, self._connection.max_batch):
            with self._connection.translated():
                self._opened().add(
                    ids=[record.key for record in batch],
                    embeddings=[record.vector for record in batch],
                    metadatas=[dict(record.metadata) for record in batch],
                    documents=[record.text for record in batch],
                    uris=[uri_of(record.vector) for record in batch],
                )

    def delete(self, keys: Collection[str]) -> None:
        asked = list(keys)
        for start in range(0, len(asked), self._connection.max_batch):
            with self._connection.translated():
                self._opened().delete(ids=asked[start : start + self._connection.max_batch])

    def nearest(self, queries: np.ndarray, n: int, where: Filter | None) -> list[list[Record]]:
        """About the n nearest of each query, with vectors, by Chroma's approximate index."""
        with self._connection.translated():
            answer = self._opened().query(
                query_embeddings=list(queries), n_results=n, where=where, include=["metadatas", "documents", "uris"]
            )
        names = ("ids", "metadatas", "documents", "uris")
        return [_records({name: answer[name][row] for name in names}) for row in range(len(queries))]

    def _opened(self) -> Any:
        if self._collection is None:
            self._collection = self._connection.open(self.name)
        return self._collection


def _records(answer: Mapping[str, Any]) -> list[Record]:
    keys = answer["ids"]
    metadatas, texts, uris = (answer.get(name) or [None] * len(keys) for name in ("metadatas", "documents", "uris"))
    return [
        Record(key, metadata or {}, text or "", None if uri is None else vector_of(uri))
        for key, metadata, text, uri in zip(keys, metadatas, texts, uris, strict=True)
    ]


def _batches(records: Sequence[Record], limit: int) -> Iterator[list[Record]]:
    batch: list[Record] = []
    size = 0
    for record in records:
        if batch and (len(batch) == limit or size + record.size > REQUEST_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(record)
        size += record.size
    if batch:
        yield batch


def _check_folder(path: Path) -> None:
    """Raises where there is something else than a memory, before Chroma makes files in it."""
    try:
        if path.exists() and not path.is_dir():
            raise MemoryStoreError(f"{path} is a file; a memory is a folder.", "Give another path.")
        if (
            path.exists()
            and not (path / DATABASE).exists()
            and any(not found.name.startswith(".") for found in path.iterdir())
        ):
            raise MemoryCorrupt(
                f"{path} holds files, but no Chroma database.", "Give the path of one, or an empty folder."
            )
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MemoryStoreError(f"No memory can be opened at {path}: {error.strerror or error}.") from error
