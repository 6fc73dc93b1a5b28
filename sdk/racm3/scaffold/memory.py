"""A memory in one file: all is held in this process, every vector is looked at, and every change writes the file anew.

It keeps every promise of a memory, for some thousand documents and one writer at a time. Put your backend in the place of
`_load`, `_save` and the loop in `search`, and run the contract again.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from racm3 import Document, Hit, MemoryStore
from racm3.document_json import document_from_json, document_to_json
from racm3.errors import DuplicateDocument, EncoderMismatch, InvalidDocument, MemoryCorrupt, MemoryStoreError
from racm3.interfaces import Encoder, OnDuplicate, Where
from racm3.memories.predicate import predicate
from racm3.memories.vectors import unit_vectors


class ExampleMemory(MemoryStore):
    """path: a folder, made when the first document is stored."""

    def __init__(self, path: Path = Path("example-memory")) -> None:
        self._file = Path(path) / "documents.jsonl"
        self._lock = threading.RLock()
        self._encoder: Encoder | None = None
        self._rows: dict[str, tuple[Document, np.ndarray]] = {}  # by id, in the order of adding
        self._closed = False
        self.refresh()

    @property
    def encoder(self) -> Encoder | None:
        with self._open():
            return self._encoder

    def bind(self, encoder: Encoder) -> None:
        with self._open():
            if self._encoder is None:
                self._encoder = encoder
            if self._encoder != encoder:
                raise EncoderMismatch(
                    f"The memory was filled by encoder {self._encoder.fingerprint}, not by {encoder.fingerprint}.",
                    "Use the retriever that filled it, or another folder.",
                )

    def add(
        self, documents: Iterable[Document], vectors: np.ndarray, *, on_duplicate: OnDuplicate = "error"
    ) -> list[str]:
        documents = list(documents)
        with self._open():
            if self._encoder is None:
                raise MemoryStoreError("The memory is not bound to an encoder.", "Call bind(retriever.encoder) first.")
            if on_duplicate not in ("error", "skip", "replace"):
                raise MemoryStoreError(f"No duplicate policy {on_duplicate!r}.", "Use 'error', 'skip' or 'replace'.")
            given = unit_vectors(vectors, self._encoder.dim)
            if len(given) != len(documents):
                raise MemoryStoreError(f"There are {len(given)} vectors for {len(documents)} documents.")
            rows = dict(self._rows)  # a copy: an error on the way leaves the memory as it was
            for document, vector in zip(documents, given, strict=True):
                if not isinstance(document, Document) or document.blanks:
                    raise InvalidDocument(f"A memory holds whole documents, not {document!r}.")
                if document.id in rows and on_duplicate == "error":
                    raise DuplicateDocument(f"A document with id {document.id!r} is already stored.")
                if document.id in rows and on_duplicate == "skip":
                    continue
                rows.pop(document.id, None)
                rows[document.id] = (document, vector.copy())
            self._save(rows)
            return [document.id for document in documents]

    def search(
        self,
        vectors: np.ndarray,
        *,
        k: int,
        where: Where | None = None,
        exclude: Sequence[Collection[str]] | None = None,
    ) -> list[list[Hit]]:
        fits = predicate(where)
        with self._open():
            queries = unit_vectors(vectors, self._encoder.dim if self._encoder else None)
            if k < 0:
                raise MemoryStoreError(f"k is the number of hits, 0 or more, not {k}.")
            if exclude is not None and len(exclude) != len(queries):
                raise MemoryStoreError(f"There are {len(exclude)} exclusions for {len(queries)} queries.")
            rows = [row for row in self._rows.values() if fits(row[0].metadata)]
            answers: list[list[Hit]] = []
            for number, query in enumerate(queries):
                out = frozenset(exclude[number]) if exclude is not None else frozenset()
                kept = [row for row in rows if not (out and out & _names(row[0]))]
                scores = np.stack([vector for _, vector in kept]) @ query if kept else []
                best = sorted(zip(scores, kept, strict=True), key=lambda found: (-found[0], found[1][0].id))[:k]
                answers.append(
                    [Hit(document, score=float(score), vector=vector.copy()) for score, (document, vector) in best]
                )
            return answers

    def get(self, ids: Sequence[str]) -> list[Document | None]:
        with self._open():
            return [self._rows[id][0] if id in self._rows else None for id in ids]

    def items(self) -> Iterator[tuple[Document, np.ndarray]]:
        with self._open():
            rows = list(self._rows.values())
        return ((document, vector.copy()) for document, vector in rows)

    def random(self, n: int, *, rng: np.random.Generator, where: Where | None = None) -> list[Hit]:
        fits = predicate(where)
        with self._open():
            rows = [row for row in self._rows.values() if fits(row[0].metadata)]
        drawn = rng.permutation(len(rows))[:n]
        return [Hit(rows[index][0], vector=rows[index][1].copy()) for index in drawn]

    def delete(self, ids: Sequence[str]) -> int:
        with self._open():
            rows = {id: row for id, row in self._rows.items() if id not in set(ids)}
            deleted = len(self._rows) - len(rows)
            if deleted:
                self._save(rows)
            return deleted

    def __len__(self) -> int:
        with self._open():
            return len(self._rows)

    def refresh(self) -> None:
        with self._open():
            if self._file.exists():
                self._encoder, self._rows = self._load()

    def close(self) -> None:
        self._closed = True

    def _open(self) -> threading.RLock:
        """The lock, for `with`; an error once the memory is closed."""
        if self._closed:
            raise MemoryStoreError("The memory is closed.", "Open it again.")
        return self._lock

    def _load(self) -> tuple[Encoder, dict[str, tuple[Document, np.ndarray]]]:
        """The encoder is in the first line of the file; each other line is a document with its vector."""
        try:
            first, *lines = [json.loads(line) for line in self._file.read_text(encoding="utf-8").splitlines()]
            rows = {line["id"]: (document_from_json(line), np.array(line["vector"], np.float32)) for line in lines}
            return Encoder(first["fingerprint"], first["dim"]), rows
        except (KeyError, TypeError, ValueError) as error:
            raise MemoryCorrupt(f"{self._file} is not a file of documents: {error!r}.") from error

    def _save(self, rows: dict[str, tuple[Document, np.ndarray]]) -> None:
        """Write a new file, and put it in the place of the old one: whenever this is cut short, one of them is whole."""
        assert self._encoder is not None
        lines = [{"fingerprint": self._encoder.fingerprint, "dim": self._encoder.dim}]
        lines += [
            {**document_to_json(document, images=True), "vector": vector.tolist()} for document, vector in rows.values()
        ]
        self._file.parent.mkdir(parents=True, exist_ok=True)
        written = self._file.with_suffix(".new")
        written.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
        os.replace(written, self._file)
        self._rows = rows


def _names(document: Document) -> frozenset[str]:
    """By what a document can be excluded: its id, its content hash, and those of its parts."""
    return frozenset((document.id, document.content_hash, *(part.content_hash for part in document.parts)))
