"""The index of a memory in step with its journal: read from its snapshot, brought up to what was written since, or built anew.

Every search first takes in what was written since the last, by whichever process. What is written of it is a cache: whatever
is wrong with that, a search is answered all the same, by an index that is made anew.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ..errors import MemoryCorrupt, MemoryStoreError
from . import snapshot
from .approximate import chosen, made_of
from .index import VectorIndex
from .journal import Journal, State
from .names import ids_of, slots
from .rows import vectors_of

HELD = 65_536  # new vectors held in memory before they are written, where an index can be
PATIENT = 5.0  # seconds of work on an index, after which it is said how far that has come, and so on

logger = logging.getLogger("racm3.memories")


class KeptIndex:
    """Every method is called inside a transaction of the journal; `current` inside `looking()` as well.

    folder: of its snapshot; None: it is in memory alone. index: as far as it has come; None: not needed yet. stale: whether a
    snapshot on disk would be worth writing.
    """

    def __init__(self, journal: Journal, folder: Path | None) -> None:
        self._journal, self._folder = journal, folder
        self.index: VectorIndex | None = None
        self.stale = False
        self._passed_over = False  # a snapshot on disk, which is not to be used whatever it says

    def lost(self) -> str | None:
        """What tells that the database has lost something: a snapshot that has come further."""
        saved, state = self._folder and snapshot.saved_state(self._folder), self._journal.state()
        if saved and _is_ahead(saved, state):
            return (
                f"The index has come further than the database ({saved.last_seq:,} additions, {saved.generation:,} removals; "
                f"{state.last_seq:,} and {state.generation:,}): what was last written to it is lost, as with its log, "
                "memory.db-wal, or it was put back to an earlier state."
            )
        return None

    def discard_if_ahead(self) -> None:
        """Remove a snapshot that has come further than the journal: new documents would get the numbers of lost ones."""
        if self._folder and (lost := self.lost()) is not None:
            logger.warning("%s: %s The index is built anew.", self._folder, lost)
            snapshot.discard(self._folder)

    def current(self) -> VectorIndex | None:
        """The index, where nothing has come since it was looked at last: that is one statement, and needs no transaction."""
        index = self.index
        return index if index is not None and (index.last_seq, index.generation) == self._journal.state() else None

    def caught_up(self) -> VectorIndex | None:
        """The index, as far as the journal has come. None for a memory that is not bound."""
        if (index := self.current()) is not None:
            return index
        encoder = self._journal.encoder()
        if encoder is None:
            return None
        index, state = self.index, self._journal.state()
        if index is None and self._folder is not None:
            index = snapshot.load(self._folder, encoder.dim)
            if index is not None and not _is_ahead(index, state) and not self._is_ours(index):
                logger.warning("The index in %s is of another memory, and built anew.", self._folder)
                index = None
            if index is None and self._keeps:
                self.stale = self._passed_over = True
        if index is None or _is_ahead(index, state):
            self.index = self.built(encoder.dim)
            return self.index
        with self._changing():
            self.advance(index, state)
        self.index = index
        return index

    def _is_ours(self, index: VectorIndex) -> bool:
        """Whether the index of a snapshot is of this journal, and not of one that another was put in the place of. The last
        document that both should have tells, unless it is damaged."""
        row = self._journal.last_row(index.last_seq)
        if row is None or not row.intact:
            return True
        if not index.holds(row.seq):
            return False
        kept = index.records(np.array([row.seq]))
        return np.array_equal(kept.vectors, vectors_of([row], index.dim)) and ids_of(kept.names)[0] in (row.name, None)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Forget the index when something interrupts its change, which would leave it torn. Errors of ours come before or
        after a change."""
        try:
            yield
        except MemoryStoreError:
            raise
        except BaseException:
            self.index = None
            raise

    def advance(self, index: VectorIndex, state: State) -> None:
        """Bring an index to a later state of the journal: without what was removed, and with what was added."""
        if index.generation != state.generation:
            index.keep(self._journal.seqs())
            index.generation = state.generation
        self._take_in(index, state)

    def built(self, dim: int) -> VectorIndex:
        """The index that the memory is to have, made anew from the journal."""
        state, index = self._journal.state(), VectorIndex(dim)
        index.generation = state.generation
        self._take_in(index, state)
        return self._named(index)

    def flush(self) -> None:
        """Write the snapshot, unless the one on disk has come as far."""
        if self._folder is not None and (
            self._passed_over or snapshot.saved_state(self._folder) != self._journal.state()
        ):
            self.save()
        self.stale = False

    def save(self) -> None:
        """Write the snapshot, where one can be, and there are documents."""
        index = self.caught_up()
        if self._folder is not None and index is not None and index.last_seq:
            self._save(index, self._folder)

    def compact(self) -> None:
        """Write the snapshot again, where there is one: from the journal, where it is damaged."""
        encoder, damaged = self._journal.encoder(), self._folder is not None and snapshot.damaged(self._folder)
        if self._folder is None or encoder is None or not (damaged or snapshot.saved_state(self._folder)):
            return
        index = self.built(encoder.dim) if damaged else self.caught_up()
        assert index is not None
        self._save(index, self._folder)

    def documents(self) -> VectorIndex:
        """An exact index of the documents that there are, which stays as it is."""
        index = self.caught_up()
        assert index is not None
        return index.frozen()

    def replace(self, made: VectorIndex) -> None:
        """Go on with another index, which was made of `documents()`."""
        self.advance(made, self._journal.state())
        self.index = made

    def forget_filters(self) -> None:
        """Ask again which documents have what."""
        if self.index is not None:
            self.index.forget_filters()

    def _save(self, index: VectorIndex, folder: Path) -> None:
        """Write the snapshot: of an index of the kind that the memory is to have by now, without tombstones where these are
        many."""
        had = {segment.path for segment in index.segments}
        with self._changing():
            if index.dead * 4 > len(index.seqs):
                index = self._named(snapshot.compacted(index, folder))
            elif index.kind != chosen(self._journal.index_name(), len(index.live)):  # it has grown into its name
                index = self._named(index)
            snapshot.save(index, folder, had)
        self.index, self._passed_over = index, False

    @property
    def _keeps(self) -> bool:
        """Whether an index may be written beside the database."""
        return self._folder is not None and not self._journal.read_only and not self._journal.shipped

    def _named(self, index: VectorIndex) -> VectorIndex:
        """The index of the kind that the memory is to have, over the vectors of another one; an exact one where none of that
        kind can be made of these documents any more."""
        name, documents = self._journal.index_name(), len(index.live)
        if chosen(name, documents) != "exact":  # training reports no progress
            logger.warning("%s makes its index %s anew, of %s documents.", self._journal.place, name, f"{documents:,}")
        try:
            return made_of(index, name, self._teller(documents))
        except MemoryCorrupt:
            raise
        except MemoryStoreError as error:
            logger.warning("%s An exact one is made.", error.message)
            return made_of(index, "exact")

    def _teller(self, total: int) -> Callable[[int], object]:
        """Says how far an index has come that takes long and was not asked for: after an import, or a lost snapshot."""
        said = time.monotonic()

        def tell(done: int) -> None:
            nonlocal said
            if time.monotonic() - said > PATIENT:
                said = time.monotonic()
                logger.warning(
                    "%s is building its index: %s of %s documents.", self._journal.place, f"{done:,}", f"{total:,}"
                )

        return tell

    def _take_in(self, index: VectorIndex, state: State) -> None:
        journal, fresh, first, spills = self._journal, 0, index.last_seq, self._keeps
        told = self._teller(state.last_seq - first)
        while index.last_seq < state.last_seq and (rows := journal.rows(after=index.last_seq, last=state.last_seq)):
            for row in rows:
                row.verify()
            seqs = np.array([row.seq for row in rows], dtype=np.int64)
            index.append(seqs, vectors_of(rows, index.dim), slots([row.id for row in rows]))
            told(index.last_seq - first)
            fresh += len(rows)
            if fresh >= HELD and self._folder is not None and spills:
                try:
                    snapshot.spill(index, self._folder)
                except MemoryStoreError as error:
                    logger.warning("%s It is held in memory instead.", error.message)
                    spills = False
                fresh = 0
        index.last_seq = state.last_seq


def _is_ahead(come: VectorIndex | State, state: State) -> bool:
    """Whether an index, or what a snapshot says of it, has come further than the journal, as seen by whoever reads it."""
    return come.last_seq > state.last_seq or come.generation > state.generation
