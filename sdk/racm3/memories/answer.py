"""What a search of a memory hands out: ids, scores and vectors at once, and the rest when it is first looked at."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, cast

from ..document import Document
from ..errors import MemoryStoreError
from ..interfaces import Hit
from .journal import Journal
from .names import ids_of
from .rows import Stored
from .segment import Records

if TYPE_CHECKING:
    import numpy as np

AHEAD = 16  # documents read at once: who looks at one will look at those behind it, too


def all_ids(records: Records) -> list[str] | None:
    """The ids that lie beside vectors; None unless all are there."""
    ids = ids_of(records.names)
    return None if None in ids else cast("list[str]", ids)


def hits(
    journal: Journal,
    seqs: Sequence[int],
    ids: Sequence[str],
    vectors: np.ndarray,
    scores: Sequence[float] | None = None,
    k: int | None = None,
) -> list[Hit]:
    """Documents that were found, by number, id and vector (float32 [n, dim]): the k best, equal scores in order of id; without
    scores, as they come."""
    places = range(len(ids))
    if scores is None:
        answer = _Answer(journal, seqs, ids, vectors, places)
        return [_AnswerHit(id, None, answer, place) for place, id in enumerate(ids)]
    ranked = sorted(zip([-score for score in scores], ids, places, strict=True))[:k]
    answer = _Answer(journal, seqs, ids, vectors, [place for _, _, place in ranked])
    return [_AnswerHit(id, -less, answer, place) for less, id, place in ranked]


class _AnswerHit(Hit):
    """A hit of a search. It is made without `Hit.__init__`, which takes too long for each of them."""

    __slots__ = ("_answer", "_place")

    def __init__(self, id: str, score: float | None, answer: _Answer, place: int) -> None:
        self.id, self.score, self.vector = id, score, answer.vectors[place]
        self._answer, self._place = answer, place
        self._document = self._hashes = None

    @property
    def hashes(self) -> frozenset[str]:
        if not isinstance(self._hashes, frozenset):
            self._hashes = frozenset(self._answer.hashes(self._place))
        return self._hashes

    @property
    def document(self) -> Document:
        if self._document is None:
            self._document = self._answer.document(self._place)
        return self._document


class _Answer:
    """Reads for several hits at once when one of them is looked at. seqs, ids, vectors: of what was found; order: the places of the hits
    among them, as they are handed out."""

    def __init__(
        self, journal: Journal, seqs: Sequence[int], ids: Sequence[str], vectors: np.ndarray, order: Sequence[int]
    ) -> None:
        self._journal, self._seqs, self._ids, self.vectors, self._order = journal, seqs, ids, vectors, order
        self._read: dict[int, Stored] = {}  # documents that nobody has looked at yet
        self._hashes: dict[int, list[str]] | None = None

    def hashes(self, place: int) -> Collection[str]:
        """Empty for a document that was removed after it was found."""
        if self._hashes is None:  # who compares one document with the others will ask for all
            with self._journal.reading():
                self._hashes = self._journal.hashes(self._seqs[place] for place in self._order)
        return self._hashes.get(self._seqs[place], ())

    def document(self, place: int) -> Document:
        stored = self._read.pop(self._seqs[place], None) or self._stored(place)
        if stored is None or stored.row.name != self._ids[place]:
            raise MemoryStoreError(
                f"Document {self._ids[place]!r} was removed or replaced after it was found.",
                "Search again. If nobody has changed the memory, its database is damaged: racm3 memory verify.",
            )
        return stored.document()

    def _stored(self, place: int) -> Stored | None:
        rank = self._order.index(place)
        seqs = [self._seqs[place] for place in self._order[rank : rank + AHEAD]]
        with self._journal.looking():
            self._read.update(self._journal.read(seqs, short=True))
        if (stored := self._read.pop(seqs[0], None)) is not None:
            return stored
        with self._journal.looking():  # it is long, or gone
            return self._journal.read(seqs[:1]).get(seqs[0])
