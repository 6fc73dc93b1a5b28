"""The search behind prepared neighbours: exact, over millions of documents, a block of queries at a time.

The vectors are held once (3 GB for a million of width 768); a block of queries needs no more than its candidates and the
scores of one block of documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from ..document import Document

if TYPE_CHECKING:
    import torch

Candidates: TypeAlias = list[tuple[int, float]]  # rows and scores, best first

_SPARE = 8  # candidates asked for beyond those wanted, for what is left out
_BLOCK = 16384  # documents whose scores are worked out at once


class NeighbourSearch:
    """Finds, for documents of a set, other documents of it that they may be shown.

    Never the document itself, one that shows the same picture, or one of the same group. Its caption may stand beside other
    pictures: those are what retrieval is there to find.
    """

    def __init__(
        self, vectors: np.ndarray, documents: Sequence[Document], groups: Sequence[str], training: np.ndarray,
        held_out: np.ndarray,
    ) -> None:  # fmt: skip
        """vectors: float32 [n, dim], may lie on disk; training, held_out: their rows."""
        self.vectors, self.groups = vectors, groups
        self.sides = [(rows, _taken(vectors, rows)) for rows in (training, held_out)]
        self.pictures: list[frozenset[str]] = []
        self.parts: list[frozenset[str]] = []
        for row in range(len(documents)):
            document = documents[row]
            self.pictures.append(frozenset(image.content_hash for image in document.images))
            self.parts.append(frozenset(part.content_hash for part in document.parts))

    def candidates(self, rows: np.ndarray, asked: np.ndarray, count: int, *, everything: bool) -> list[Candidates]:
        """For each of the rows, `count` documents, or all that may be shown where there are fewer.

        asked: query vectors, float32 [rows, dim]. everything: search held-out documents too.
        """
        sides = self.sides if everything else self.sides[:1]
        size = sum(len(members) for members, _ in sides)
        found: list[Candidates] = [[] for _ in rows]
        waiting, pool = np.arange(len(rows)), min(size, count + _SPARE)
        while len(waiting):
            # Where a crowd of duplicates filled the pool, ask for more, for those queries alone.
            short = []
            for place, (ids, scores) in zip(waiting, self._nearest(sides, asked[waiting], pool), strict=True):
                allowed = [
                    (int(i), float(s)) for i, s in zip(ids, scores, strict=True) if self._may_see(rows[place], i)
                ]
                found[place] = allowed[:count]
                if len(allowed) < count and pool < size:
                    short.append(place)
            waiting, pool = np.array(short, np.int64), min(size, 2 * pool)
        return found

    def _may_see(self, row: int, other: int) -> bool:
        return bool(
            row != other
            and self.groups[row] != self.groups[other]
            and not self.pictures[row] & self.pictures[other]
            and self.parts[row] != self.parts[other]
        )

    @staticmethod
    def _nearest(
        sides: Sequence[tuple[np.ndarray, torch.Tensor]], asked: np.ndarray, pool: int
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Rows and scores of each query's best documents of all sides, best first, equals by row."""
        scores, rows = [], []
        for members, vectors in sides:
            if not len(members):
                continue
            score, place = best(vectors, asked, pool)
            scores.append(score)
            rows.append(members[place])
        if not scores:
            return [(np.empty(0, np.int64), np.empty(0, np.float32)) for _ in asked]
        score, row = np.concatenate(scores, 1), np.concatenate(rows, 1)
        order = np.lexsort((row, -score))[:, :pool]
        return list(zip(np.take_along_axis(row, order, 1), np.take_along_axis(score, order, 1), strict=True))


def best(vectors: torch.Tensor, asked: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Inner products and places of each query's `count` best vectors (or all), in no order: float32 and int64 [n, count].

    vectors: float32 [documents, dim]; asked: float32 [n, dim]. A matrix product block by block: faiss's flat index has a
    cost of its own for every call, which a few hundred queries do not earn back.
    """
    import torch

    queries = torch.from_numpy(np.ascontiguousarray(asked, np.float32))
    room = torch.empty(len(queries), min(_BLOCK, len(vectors)))  # made once: fresh memory costs as much as the choice
    scores, places = [], []
    for start in range(0, len(vectors), _BLOCK):
        block = vectors[start : start + _BLOCK]
        product = torch.mm(queries, block.T, out=room) if len(block) == room.shape[1] else queries @ block.T
        score, place = product.topk(min(count, len(block)), sorted=False)
        scores.append(score)
        places.append(place + start)
    score, place = torch.cat(scores, 1), torch.cat(places, 1)
    score, chosen = score.topk(min(count, score.shape[1]), sorted=False)
    return score.numpy(), place.gather(1, chosen).numpy()


def _taken(vectors: np.ndarray, rows: np.ndarray) -> torch.Tensor:
    """Rows of an array that may lie on disk, read a block at a time."""
    import torch

    taken = torch.empty(len(rows), vectors.shape[1])
    for start in range(0, len(rows), _BLOCK):
        taken[start : start + _BLOCK] = torch.from_numpy(vectors[rows[start : start + _BLOCK]])
    return taken
