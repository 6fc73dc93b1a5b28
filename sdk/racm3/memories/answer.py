"""What a search of a memory hands out: ids, scores and vectors at once, and the rest when it is first looked at."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

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


def hits(
    journal: Journal, seqs: Sequence[int], records: Records, scores: Sequence[float] | None = None, k: int | None = None
) -> list[Hit]:
    """Documents that were found, by number, with what an index has of them: the k best, equal scores in order of id; without
    scores, as they come. Inside a transaction."""
    beside = ids_of(records.names)
    known = journal.ids(seq for seq, id in zip(seqs, beside, strict=True) if id is None) if None in beside else {}
    ids = [known[seq] if id is None else id for seq, id in zip(seqs, beside, strict=True)]
    order = list(range(len(ids)))
    if scores is not None:
        order = [place for _, _, place in sorted(zip([-score for score in scores], ids, order, strict=True))[:k]]
    answer, vectors = _Answer(journal, [(seqs[place], ids[place]) for place in order]), records.vectors
    return [
        _AnswerHit(ids[place], None if scores is None else scores[place], vectors[place], answer, rank)
        for rank, place in enumerate(order)
    ]


class _AnswerHit(Hit):
    """A hit of an answer, made without another look at what it is made of: every search makes some."""

    __slots__ = ("_answer", "_rank")

    def __init__(self, id: str, score: float | None, vector: np.ndarray, answer: _Answer, rank: int) -> None:
        self.id, self.score, self.vector = id, score, vector
        self._answer, self._rank = answer, rank
        self._document = self._hashes = None

    @property
    def hashes(self) -> frozenset[str]:
        if not isinstance(self._hashes, frozenset):
            self._hashes = frozenset(self._answer.hashes(self._rank))
        return self._hashes

    @property
    def document(self) -> Document:
        if self._document is None:
            self._document = self._answer.document(self._rank)
        return self._document


class _Answer:
    """What is asked of one hit is read for others, too. found: number and id of each, in their order."""

    def __init__(self, journal: Journal, found: Sequence[tuple[int, str]]) -> None:
        self._journal, self._found = journal, found
        self._read: dict[int, Stored] = {}  # documents that nobody has looked at yet
        self._hashes: dict[int, list[str]] | None = None

    def hashes(self, rank: int) -> Collection[str]:
        """None of a document that was removed after it was found."""
        if self._hashes is None:  # who compares one document with the others will ask for all
            with self._journal.reading():
                self._hashes = self._journal.hashes(seq for seq, _ in self._found)
        return self._hashes.get(self._found[rank][0], ())

    def document(self, rank: int) -> Document:
        seq, id = self._found[rank]
        stored = self._read.pop(seq, None) or self._stored(rank)
        if stored is None:
            raise MemoryStoreError(f"Document {id!r} was removed or replaced after it was found.", "Search again.")
        return stored.document()

    def _stored(self, rank: int) -> Stored | None:
        seqs = [seq for seq, _ in self._found[rank : rank + AHEAD]]
        with self._journal.reading():
            self._read.update(self._journal.read(seqs, short=True))
            return self._read.pop(seqs[0], None) or self._journal.read(seqs[:1]).get(seqs[0])
