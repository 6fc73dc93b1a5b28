"""The default memory: SQLite keeps the documents, a scan of all vectors or an index of FAISS finds the nearest of them.

    with FaissMemory(Path("./memory")) as memory:
        memory.bind(retriever.encoder)
        memory.add(documents, retriever.encode_document(documents))
        hits = memory.search(retriever.encode_query(queries), k=10, where={"style": "noto"})

The journal is the truth, and the index a cache of it (`kept_index`).
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..document import Document
from ..durable import make_folder, part_of
from ..errors import EncoderMismatch, MemoryStoreError, nearest
from ..interfaces import Encoder, Hit, MemoryStore, OnDuplicate, Progress, Where
from . import forks, snapshot  # noqa: F401  forks: for what it registers
from .answer import all_ids, hits
from .approximate import check_name, made_of
from .arguments import check_count, check_encoder, check_policy, exclusions, id_list, with_vectors
from .folder import DATABASE, database_of
from .journal import Journal
from .kept_index import KeptIndex
from .rows import vectors_of
from .vectors import unit_vectors
from .verify import disagreements, problems
from .where import parse

STREAMED = 32  # documents, with their images, that items() holds at a time
NOTHING = np.empty(0, dtype=np.int64)

logger = logging.getLogger("racm3.memories")


class FaissMemory(MemoryStore):
    """Documents in SQLite, searched by inner product: exactly, unless `reindex` says otherwise. Threads can share it.

    Any number of processes can read a memory while one writes to it; each search takes in what was written before. The
    first change makes a process the writer until it closes the memory or ends; another one that tries gets `MemoryLocked`
    at once, with the writer's process id. Reading alone changes nothing in a memory that was exported. Where a process may
    not write to the folder, and nobody had the memory open, it is taken never to change; when it does, reading it is an error.

    path: a folder, made when it is missing; None keeps everything in memory. read_only: never write, as for a memory that
    ships inside a package (see `export_read_only`); also so when the folder cannot be written. precision: of the vectors
    that are added from now on; "float16" keeps them in half of the room, rounded to 11 bits. What is stored stays as it is.
    images: of documents that are added from now on; "in-files" keeps of a picture that was read from a file the absolute
    path, the size and the hash alone, and reads it whenever the document is looked at: an error, where the file is gone or
    has changed. Pictures without a file, and texts, are stored in any case.
    durable: what `add` and `delete` did is on disk when they return. False spares them the wait for it, which is most of
    what a small addition takes: whatever happens the memory opens and holds no half documents, and a process that is
    killed loses nothing; but if the machine itself stops, the last of its additions may be missing.
    """

    def __init__(
        self,
        path: Path | None = None,
        *,
        read_only: bool = False,
        precision: Literal["float32", "float16"] = "float32",
        images: Literal["stored", "in-files"] = "stored",
        durable: bool = True,
    ) -> None:
        if precision not in ("float32", "float16"):
            raise MemoryStoreError(f"No precision {precision!r}.", "Use 'float32' or 'float16'.")
        if images not in ("stored", "in-files"):
            raise MemoryStoreError(f"Images cannot be {images!r}.", "Use 'stored' or 'in-files'.")
        self._precision, self._refers = precision, images == "in-files"
        if not isinstance(path, (str, os.PathLike, type(None))):
            raise MemoryStoreError(f"The path of a memory is a Path or a str, not {path!r}.")
        self._folder = None if path is None else Path(path)
        database = None
        if self._folder is not None:
            database, read_only = database_of(self._folder, read_only)
        self._journal = Journal(database, read_only=read_only, durable=durable)
        self._encoder: Encoder | None = None
        self._kept = KeptIndex(self._journal, self._folder)
        self._reindexing = threading.Lock()
        if not read_only:
            with self._journal.reading():
                self._kept.discard_if_ahead()

    @property
    def read_only(self) -> bool:
        return self._journal.read_only

    @property
    def encoder(self) -> Encoder | None:
        """The encoder that the memory is bound to, if it is."""
        with self._journal.reading():
            self._encoder = self._journal.encoder()
            return self._encoder

    def bind(self, encoder: Encoder) -> None:
        check_encoder(encoder)
        bound = self.encoder
        if bound is None:
            with self._journal.writing():
                bound = self._journal.encoder()  # another process may have been quicker
                if bound is None:
                    self._journal.set_encoder(encoder)
                    return
        if bound != encoder:
            raise EncoderMismatch(
                f"{self._journal.place} was filled by encoder {bound.fingerprint} (width {bound.dim}), "
                f"not by {encoder.fingerprint} (width {encoder.dim}).",
                "Use the retriever that filled it, or encode its documents anew into another memory.",
            )

    def add(
        self, documents: Iterable[Document], vectors: np.ndarray, *, on_duplicate: OnDuplicate = "error"
    ) -> list[str]:
        """As `MemoryStore.add`, in one transaction. A replaced document counts as added anew.

        Raises `MemoryStoreError` when the memory is not bound, when vectors are not finite or not of unit norm, or when
        there are more or fewer of them than documents; `DimensionMismatch`, `DuplicateDocument`, `InvalidDocument` for a
        prompt with blanks; `MemoryLocked`. An error stores nothing.
        """
        check_policy(on_duplicate)
        encoder = self._encoder or self.encoder  # a binding never changes
        if encoder is None:
            raise MemoryStoreError("The memory is not bound to an encoder.", "Call bind(retriever.encoder) first.")
        rows = unit_vectors(vectors, encoder.dim).astype(self._precision, copy=False)
        with self._journal.writing():
            ids = self._journal.add(with_vectors(documents, rows), on_duplicate, refer=self._refers)
        self._kept.stale = True
        return ids

    def search(
        self,
        vectors: np.ndarray,
        *,
        k: int,
        where: Where | None = None,
        exclude: Sequence[Collection[str]] | None = None,
    ) -> list[list[Hit]]:
        """As `MemoryStore.search`; equal scores come in order of id. `where`: see `racm3.memories.where`."""
        condition = None if where is None else parse(where)
        check_count("k", k, "hits")
        if condition is None and exclude is None and (answer := self._answer_at_once(vectors, k)) is not None:
            return answer
        with self._journal.reading():
            index = self._kept.caught_up()
            queries = unit_vectors(vectors, None if index is None else index.dim)
            left_out = exclusions(exclude, len(queries))
            if index is None or k == 0:
                return [[] for _ in queries]
            allowed = None if condition is None else index.matching(condition, self._journal.seqs_having)
            excluded = [self._journal.seqs_named(names) for names in left_out]
            found = index.nearest(queries, k, allowed=allowed, excluded=excluded)
            answers = []
            for scores, rows, records in found:
                seqs = index.seqs[rows].tolist()
                ids = all_ids(records) or self._journal.ids(seqs)
                answers.append(hits(self._journal, seqs, ids, records.vectors, scores.tolist(), k))
            return answers

    def _answer_at_once(self, vectors: np.ndarray, k: int) -> list[list[Hit]] | None:
        """The answer to a search without conditions, where the index knows all of it: nothing has come since, as one statement
        tells, and all ids lie beside the vectors. None where it does not."""
        with self._journal.looking():
            index = self._kept.current()
            if index is None or not k or not index.named:
                return None
            queries, answers = unit_vectors(vectors, index.dim), []
            for scores, rows, records in index.nearest(queries, k, allowed=None, excluded=[NOTHING] * len(queries)):
                if (ids := all_ids(records)) is None:
                    index.named = False
                    return None
                answers.append(hits(self._journal, index.seqs[rows].tolist(), ids, records.vectors, scores.tolist(), k))
            return answers

    def get(self, ids: Sequence[str]) -> list[Document | None]:
        """As `MemoryStore.get`. Raises `MemoryCorrupt`, naming the document, when it fails its checksum."""
        ids = id_list(ids)
        with self._journal.reading():
            stored = self._journal.read(self._journal.seqs_of(ids).values())
            found = {one.row.name: one.document() for one in stored.values()}
        return [found.get(id) for id in ids]

    def items(self) -> Iterator[tuple[Document, np.ndarray]]:
        """As `MemoryStore.items`: those stored when it was called, read in batches, so that others can write meanwhile."""
        with self._journal.reading():
            last, encoder = self._journal.state().last_seq, self._journal.encoder()
        dim = encoder.dim if encoder is not None else 0  # not bound: there is nothing yet

        def batches() -> Iterator[tuple[Document, np.ndarray]]:
            after = 0
            while True:
                with self._journal.reading():
                    rows = self._journal.rows(after=after, last=last, limit=STREAMED)
                    documents = [self._journal.document(row) for row in rows]
                if not rows:
                    return
                yield from zip(documents, vectors_of(rows, dim), strict=True)
                after = rows[-1].seq

        return batches()

    def random(self, n: int, *, rng: np.random.Generator, where: Where | None = None) -> list[Hit]:
        condition = None if where is None else parse(where)
        check_count("n", n, "documents")
        if not isinstance(rng, np.random.Generator):
            raise MemoryStoreError(
                f"rng is a numpy Generator, not {type(rng).__name__}.", "numpy.random.default_rng(0)"
            )
        with self._journal.reading():
            index = self._kept.caught_up()
            if index is None:
                return []
            pool = index.live
            if condition is not None:
                pool = np.intersect1d(pool, index.seqs[index.matching(condition, self._journal.seqs_having)])
            chosen = rng.choice(pool, size=min(int(n), len(pool)), replace=False)
            records, seqs = index.records(chosen), chosen.tolist()
            return hits(self._journal, seqs, all_ids(records) or self._journal.ids(seqs), records.vectors)

    def delete(self, ids: Sequence[str]) -> int:
        ids = id_list(ids)
        with self._journal.writing():
            seqs = list(self._journal.seqs_of(ids).values())
            self._journal.remove(seqs)
        self._kept.stale = True
        return len(seqs)

    def __len__(self) -> int:
        with self._journal.reading():
            return self._journal.count()

    def refresh(self) -> None:
        """Take in what other processes have written since. Every search does so of itself; this does it ahead of one."""
        with self._journal.reading():
            self._kept.caught_up()

    def flush(self) -> None:
        """Bring the index and its snapshot on disk up to date, which makes opening quick. Documents are safe without it."""
        with self._journal.reading():
            if not self.read_only:
                self._kept.flush()

    def close(self) -> None:
        """Write the snapshot if there is something new in it, and release files. Closing twice does no harm."""
        try:
            if self._kept.stale and not self._journal.closed:
                self.flush()
        except MemoryStoreError as error:
            logger.warning("The memory is closed without a snapshot of its index: %s", error)
        finally:
            self._journal.close()
            self._kept.index = None

    def stats(self) -> dict[str, Any]:
        """What is stored: documents, texts, images, fields with their documents, encoder, and bytes on disk; the name of the
        index, and the share of the nearest documents that it was measured to find, None where it finds all."""
        with self._journal.reading():
            encoder, stats, index = self._journal.encoder(), self._journal.stats(), self._journal.index_name()
        sizes = {}
        for path in sorted(self._folder.glob("[!.]*")) if self._folder is not None else []:
            with suppress(FileNotFoundError):  # a writer has replaced it since
                if path.is_file():
                    sizes[path.name] = path.stat().st_size
        return {
            **stats,
            "index": index,
            "recall": None if self._folder is None else snapshot.saved_recall(self._folder),
            "encoder": encoder and {"fingerprint": encoder.fingerprint, "dim": encoder.dim},
            "bytes": sizes,
        }

    def verify(self, progress: Progress | None = None) -> list[str]:
        """Read everything, and say what is not as it was written: every checksum, every reference between tables, what
        filters find, and the agreement of the index. One sentence for each problem; an empty list when all is sound."""
        found: list[str] = []
        self._journal.check_process()
        try:
            with self._journal.reading():
                lost = self._kept.lost()  # before anything else is read: a writer goes on meanwhile
                found.extend([lost] if lost else [])
                found.extend(problems(self._journal, progress))
                if self._folder is not None and snapshot.damaged(self._folder):
                    found.append("The snapshot of the index is damaged; compacting the memory builds it anew.")
                elif not found and (index := self._kept.caught_up()) is not None:
                    found.extend(disagreements(self._journal, index))
        except MemoryStoreError as error:
            if self._journal.closed:
                raise
            found.append(error.message)
        return found

    def compact(self) -> None:
        """Give the room of what was removed back to the disk. Others can read meanwhile; `MemoryLocked` if one writes."""
        with self._journal.writing():
            self._journal.purge()
        self._journal.vacuum()
        with self._journal.reading():
            self._kept.compact()

    def reindex(self, index: str, progress: Progress | None = None) -> None:
        """Make another kind of index, and keep it: "exact", "hnsw", "ivf", "ivf-pq", "auto", or a FAISS factory string;
        see `racm3.memories.approximate`. All others go on meanwhile, other threads of this process among them: they search by
        the index that there is, add and delete. Documents that are added later enter the new one. Call it again when the
        memory has grown to several times its size: the index is then trained anew.

        progress: called with the number of documents in the new index, the number in all, and "index". Raises
        `MemoryStoreError`, and changes nothing, when there is no such index, or none can be made for these documents.
        """
        encoder = self.encoder
        if encoder is None:
            raise MemoryStoreError("The memory is not bound to an encoder.", "Call bind(retriever.encoder) first.")
        check_name(index, encoder.dim)
        with self._reindexing:
            with self._journal.writing():  # who may not write is told so now
                documents = self._kept.documents()
            total = len(documents.seqs)
            made = made_of(documents, index, lambda done: progress and progress(done, total, "index"))
            if self._folder is not None:
                snapshot.prepare(made, self._folder)
            with self._journal.writing():
                self._kept.replace(made)
                self._journal.set_index_name(index)
            with self._journal.reading():
                self._kept.save()
        if progress is not None:
            progress(total, total, "index")

    def index_field(self, name: str, progress: Progress | None = None) -> int:
        """Make the index of a metadata field anew, which mends what `verify` says of filters; how many documents have it.

        Fields are indexed as documents are added, and need nothing to be filtered by. Other processes take what was mended
        in when they open the memory again. progress: called with the number of documents read, the number in all, and
        "index". Raises `MemoryStoreError` when no document has the field.
        """
        if not isinstance(name, str):
            raise MemoryStoreError(f"The name of a field is a str, not {name!r}.")
        with self._journal.writing():
            fields, total = self._journal.stats()["fields"], self._journal.count()
            found = self._journal.index_field(name, lambda done: progress and progress(done, total, "index"))
            if not found:
                known = f"{nearest(name, fields)} Known: {', '.join(fields) or 'none'}."
                raise MemoryStoreError(f"No document has a field {name!r}.", known.strip())
        with self._journal.looking():
            self._kept.forget_filters()
        return found

    def export_read_only(self, path: Path, *, snapshot: bool = False) -> None:
        """Write a compact copy for shipping, which can be opened where nothing can be written, for example in a package.

        path: a folder that is missing or empty. snapshot: with the index, so that opening a large memory is quick.
        """
        folder = Path(path)
        try:
            # An export that was killed has left its unfinished file, which is written anew.
            others = folder.exists() and [name for name in os.listdir(folder) if not name.startswith(part_of(DATABASE))]
            if others:
                raise MemoryStoreError(f"{folder} is not an empty folder.", "Give another path.")
            make_folder(folder)
        except OSError as error:
            raise MemoryStoreError(f"{folder} cannot be written: {error.strerror or error}.") from error
        try:
            self._journal.copy_to(folder / DATABASE)
            if snapshot:
                _add_snapshot(folder)
        except BaseException:
            for written in folder.iterdir():  # nothing was in it before
                written.unlink()
            raise


def _add_snapshot(folder: Path) -> None:
    """Write the index of an exported memory beside it."""
    with FaissMemory(folder, read_only=True) as memory, memory._journal.reading():
        memory._kept.save()
