"""What a search of a memory hands out: ids, scores and vectors at once, and the rest when it is first looked at."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial

from ..document import Document
from ..errors import MemoryStoreError
from ..interfaces import Hit
from .journal import Journal
from .names import id_of
from .rows import Stored
from .segment import Records

AHEAD = 16  # documents read at once: who looks at one will look at those behind it, too


class Answer:
    """The documents that were found for a query, by number, with what an index has of them; made inside a transaction."""

    def __init__(self, journal: Journal, seqs: Sequence[int], records: Records) -> None:
        self._journal, self._seqs, self._vectors = journal, seqs, records.vectors
        self._order: Sequence[int] = range(len(seqs))  # places, in the order of the hits
        self._read: dict[int, Stored] = {}  # documents that nobody has looked at yet
        self._hashes: dict[int, list[str]] | None = None
        ids = [id_of(slot.tobytes()) for slot in records.names]
        known = journal.ids(seq for seq, id in zip(seqs, ids, strict=True) if id is None) if None in ids else {}
        self.ids = [known[seq] if id is None else id for seq, id in zip(seqs, ids, strict=True)]

    def ranked(self, scores: Sequence[float], k: int) -> list[Hit]:
        """The k best of them, equal scores in order of id."""
        ranks = sorted(zip([-score for score in scores], self.ids, range(len(scores)), strict=True))[:k]
        self._order = [place for _, _, place in ranks]
        return [self._hit(rank, place, -negative) for rank, (negative, _, place) in enumerate(ranks)]

    def unranked(self) -> list[Hit]:
        return [self._hit(place, place, None) for place in self._order]

    def _hit(self, rank: int, place: int, score: float | None) -> Hit:
        return Hit(
            id=self.ids[place], score=score, vector=self._vectors[place],
            hashes=partial(self._hashes_of, place), load=partial(self._load, rank),
        )  # fmt: skip

    def _hashes_of(self, place: int) -> Collection[str]:
        """None of a document that was removed after it was found."""
        if self._hashes is None:  # who compares one document with the others will ask for those, too
            with self._journal.reading():
                self._hashes = self._journal.hashes(self._seqs)
        return self._hashes.get(self._seqs[place], ())

    def _load(self, rank: int) -> Document:
        place = self._order[rank]
        stored = self._read.pop(self._seqs[place], None) or self._stored(rank)
        if stored is None:
            raise MemoryStoreError(
                f"Document {self.ids[place]!r} was removed or replaced after it was found.", "Search again."
            )
        return stored.document()

    def _stored(self, rank: int) -> Stored | None:
        wanted, *others = (self._seqs[place] for place in self._order[rank : rank + AHEAD])
        with self._journal.reading():
            self._read.update(self._journal.read([wanted, *others], short=True))
            return self._read.pop(wanted, None) or self._journal.read([wanted]).get(wanted)
