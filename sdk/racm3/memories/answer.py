"""What a search of a memory hands out: ids, scores and vectors at once, and the rest when it is first looked at."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial

from ..document import Document
from ..errors import MemoryStoreError
from ..interfaces import Hit
from .journal import Journal
from .names import id_of
from .segment import Records


class Answer:
    """The documents that were found for a query, by number, with what an index has of them; made inside a transaction."""

    def __init__(self, journal: Journal, seqs: Sequence[int], records: Records) -> None:
        self._journal, self._seqs, self._vectors = journal, seqs, records.vectors
        self._hashes: dict[int, list[str]] | None = None
        ids = [id_of(slot.tobytes()) for slot in records.names]
        known = journal.ids(seq for seq, id in zip(seqs, ids, strict=True) if id is None) if None in ids else {}
        self.ids = [known[seq] if id is None else id for seq, id in zip(seqs, ids, strict=True)]

    def ranked(self, scores: Sequence[float], k: int) -> list[Hit]:
        """The k best of them, equal scores in order of id."""
        order = sorted(zip([-score for score in scores], self.ids, range(len(scores)), strict=True))
        return [self._hit(place, -negative) for negative, _, place in order[:k]]

    def unranked(self) -> list[Hit]:
        return [self._hit(place, None) for place in range(len(self._seqs))]

    def _hit(self, place: int, score: float | None) -> Hit:
        seq, id = self._seqs[place], self.ids[place]
        return Hit(
            id=id, score=score, vector=self._vectors[place],
            hashes=partial(self._hashes_of, seq), load=partial(self._load, seq, id),
        )  # fmt: skip

    def _hashes_of(self, seq: int) -> Collection[str]:
        """None of a document that was removed after it was found."""
        if self._hashes is None:  # who compares one document with the others will ask for those, too
            with self._journal.reading():
                self._hashes = self._journal.hashes(self._seqs)
        return self._hashes.get(seq, ())

    def _load(self, seq: int, id: str) -> Document:
        with self._journal.reading():
            document = self._journal.read(seq)
        if document is None:
            raise MemoryStoreError(f"Document {id!r} was removed or replaced after it was found.", "Search again.")
        return document
