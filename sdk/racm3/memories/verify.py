"""Whether a memory is what was written: every checksum, every reference, and the agreement of index and truth."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from ..errors import MemoryCorrupt
from .journal import Journal, fields_of
from .names import ids_of
from .rows import vectors_of

if TYPE_CHECKING:
    from ..interfaces import Progress
    from .index import VectorIndex

# What SQLite's own check cannot see: references between tables that say the same in a sound memory.
REFERENCES = {
    "{} parts belong to no document.": "SELECT count(*) FROM parts WHERE seq NOT IN (SELECT seq FROM documents)",
    "{} parts show nothing.": "SELECT count(*) FROM parts WHERE content NOT IN (SELECT key FROM contents)",
    "{} contents are shown by no document.": "SELECT count(*) FROM contents WHERE key NOT IN (SELECT content FROM parts)",
    "{} documents are numbered above the last number given.": "SELECT count(*) FROM documents WHERE seq >"
    " (SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'documents')",
}


def problems(journal: Journal, progress: Progress | None = None) -> Iterator[str]:
    """What is wrong with the database, one sentence each; nothing when it is sound. Inside a transaction.

    Raises `MemoryStoreError` where it is too damaged to be read at all.
    """
    for (said,) in journal.connection.execute("PRAGMA integrity_check").fetchall():
        if said != "ok":
            yield f"SQLite: {said}."
    for sentence, statement in REFERENCES.items():
        if wrong := journal.one(statement):
            yield sentence.format(wrong)
    encoder, done, tags, damaged = journal.encoder(), 0, 0, False
    total, after, last = journal.count(), 0, 2**63 - 1
    while rows := journal.rows(after=after, last=last):
        for row in rows:
            try:
                journal.stored(row).verify()
            except MemoryCorrupt as error:
                yield error.message
                damaged = True  # and its fields are not known any more
                continue
            if encoder is None or len(row.vector) not in (2 * encoder.dim, 4 * encoder.dim):
                yield f"The vector of document {row.name!r} has another width than the encoder."
            fields = fields_of(row.values)
            tags += len(fields)
            if journal.tagged(row.seq, fields) != len(fields):
                yield f"Filters do not find document {row.name!r} by its metadata; indexing its fields anew mends it."
        after, done = rows[-1].seq, done + len(rows)
        if progress is not None:
            progress(done, total, "verify")
    found = journal.one("SELECT count(*) FROM tags WHERE seq IN (SELECT seq FROM documents)")
    if found > tags and not damaged:
        yield f"Filters find documents by {found - tags} values that they do not have; indexing their fields anew mends it."


def disagreements(journal: Journal, index: VectorIndex) -> Iterator[str]:
    """Where an index that has caught up differs from a sound database. Inside a transaction."""
    seqs = journal.seqs()
    if not np.array_equal(index.live, seqs):
        yield f"The index holds {len(index.live)} documents, and the database {len(seqs)}, or others."
        return
    after = 0
    while rows := journal.rows(after=after, last=index.last_seq):
        kept = index.records(np.array([row.seq for row in rows], dtype=np.int64))
        same = (kept.vectors == vectors_of(rows, index.dim)).all(axis=1)
        for row, vector, id in zip(rows, same, ids_of(kept.names), strict=True):
            if not vector:
                yield f"The index holds another vector of document {row.name!r}."
            if id not in (row.name, None):
                yield f"The index holds another id of document {row.name!r}."
        after = rows[-1].seq
