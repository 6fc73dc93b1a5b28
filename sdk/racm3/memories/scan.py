"""The exact scan: every vector is multiplied with the query in half precision, and what may be among the best is kept.

FAISS's flat index reads four bytes a number, on one core for one query, and is far from a matrix product for many. Here a
single query takes a matrix-vector product over the halves, many take products of blocks, in bfloat16 where the processor
multiplies that quickest; both use all cores. Rounding can change a score by so much and no more, so that a candidate further
than twice that below the k-th best is none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from .segment import Segment

if TYPE_CHECKING:
    import torch

BLOCK = 8192  # rows of which the scores for many queries are held at a time
WIDENED = 1024  # rows that are made float32 for them at a time, so that they stay in the cache
GROUP = 64  # rows of which the best stands for all, in finding where the k-th best lies
SPARSE = 8  # of so many rows a filter lets through one at most: these are copied, and the others not looked at
PLAIN = 16_384  # up to so many rows of a segment the plain vectors are as quick, and torch is not needed

ALIKE = 128  # more candidates of a query than this are too alike for bfloat16, and looked at more closely

_HALF = 2.0**-11  # of a number is lost at most when it is rounded to float16
_BFLOAT = 2.0**-8  # and when it is rounded to bfloat16
_SUBNORMAL = 2.0**-25  # and so much of a very small one
_LEAST = float(np.finfo(np.float32).min)  # above the score of what may not be found


def slack(dim: int) -> float:
    """How far apart two float32 sums of one inner product of unit vectors can lie, twice over: BLAS, torch and numpy add
    in different orders, so that a score is only trusted to this before it is computed again."""
    return dim * 2.0**-22


def doubt(dim: int, *, rounded: int) -> float:
    """How far approximate scores can lie from the exact ones, twice over, when so many of vector, query and score were
    rounded to float16. Norms are within a thousandth of 1."""
    return slack(dim) + 2 * rounded * 1.01 * (_HALF + _SUBNORMAL * dim**0.5)


def candidates(
    segments: Sequence[Segment],
    queries: np.ndarray,
    k: int,
    *,
    wanted: np.ndarray | None,
    excluded: Sequence[np.ndarray],
) -> list[np.ndarray]:
    """For each query (float32 [n, dim]) the rows (int64, counted through the segments) of at least all documents that may
    be among its k best, ties included.

    wanted: bool [rows], which rows may be found; None: all. excluded: for each query, rows that may not.
    """
    if len(queries) == 1:
        return [_of_one(segments, queries[0], k, wanted, excluded[0])]
    if not _multiplies_bfloat16():
        return _of_many(segments, queries, k, wanted, excluded)
    found = _of_many(segments, queries, k, wanted, excluded, coarse=True)
    alike = [place for place, rows in enumerate(found) if len(rows) > k + ALIKE]
    if alike:
        closer = _of_many(segments, queries[alike], k, wanted, [excluded[place] for place in alike])
        for place, rows in zip(alike, closer, strict=True):
            found[place] = rows
    return found


@cache
def _multiplies_bfloat16() -> bool:
    """Whether this processor has instructions for it; without them torch is quicker in float32."""
    import torch

    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(check() for name in names if (check := getattr(torch.cpu, name, None)) is not None)


def _of_one(
    segments: Sequence[Segment], query: np.ndarray, k: int, wanted: np.ndarray | None, excluded: np.ndarray
) -> np.ndarray:
    if wanted is not None and np.count_nonzero(wanted) * SPARSE <= len(wanted):
        rows = np.flatnonzero(wanted)
        scores = _joined([_product(vectors, query) for vectors in _picked(segments, rows)])
        scores[np.isin(rows, excluded)] = -np.inf
        return rows[may_be_best(scores, k, len(query))]
    scores = _joined([_product(_readily(segment), query) for segment in segments])
    if wanted is not None:
        np.putmask(scores, ~wanted, -np.inf)
    scores[excluded] = -np.inf
    return may_be_best(scores, k, len(query))


def may_be_best(scores: np.ndarray, k: int, dim: int) -> np.ndarray:
    """Where those of approximate scores (float32 [n]) stand that may be among the k best: int64 [m]."""
    k = min(k, len(scores))
    group = _group(len(scores), k)
    best = scores if group == 1 else scores[: len(scores) // group * group].reshape(-1, group).max(axis=1)
    least = np.partition(best, -k)[-k] - doubt(dim, rounded=3)
    return np.flatnonzero(scores >= max(least, _LEAST))


def _readily(segment: Segment) -> np.ndarray:
    """The vectors of a segment in the form that is scored soonest: [n, dim]."""
    return segment.vectors if segment.halves is None or len(segment) <= PLAIN else segment.halves


def _picked(segments: Sequence[Segment], rows: np.ndarray) -> Iterator[np.ndarray]:
    """Copies of the vectors of rows (ascending), by segment: [n, dim], halves where there are any."""
    start = 0
    for segment in segments:
        first, last = np.searchsorted(rows, (start, start + len(segment)))
        vectors = segment.vectors if segment.halves is None else segment.halves
        yield vectors[rows[first:last] - start]
        start += len(segment)


def _product(vectors: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Approximate scores of vectors (float32 or float16 [n, dim]): float32 [n]."""
    if vectors.dtype == np.float32:
        return vectors @ query
    import torch

    return torch.mv(torch.from_numpy(vectors), torch.from_numpy(query).half()).float().numpy()


def _joined(scores: list[np.ndarray]) -> np.ndarray:
    return scores[0] if len(scores) == 1 else np.concatenate(scores)


def _of_many(
    segments: Sequence[Segment],
    queries: np.ndarray,
    k: int,
    wanted: np.ndarray | None,
    excluded: Sequence[np.ndarray],
    *,
    coarse: bool = False,
) -> list[np.ndarray]:
    """coarse: by products in bfloat16, of which vector, query and score are rounded once more."""
    import torch

    margin = doubt(queries.shape[1], rounded=1) + (6 * 1.01 * _BFLOAT if coarse else 0.0)
    asked = torch.from_numpy(queries).T.to(torch.bfloat16 if coarse else torch.float32)
    # Of the best rows of groups the k-th is no better than the k-th of all rows, and quicker to find.
    best = torch.full((k, len(queries)), -torch.inf)
    found: list[tuple[torch.Tensor, ...]] = []
    for start, scores in _products(segments, asked):
        if wanted is not None:
            unwanted = torch.from_numpy(~wanted[start : start + len(scores)])
            scores[: len(unwanted)][unwanted] = -torch.inf
        for place, gone in enumerate(excluded):
            if len(gone):
                inside = gone[(gone >= start) & (gone < start + len(scores))] - start
                scores[torch.from_numpy(inside), place] = -torch.inf
        groups = scores.unflatten(0, (-1, GROUP)) if k <= len(scores) // GROUP // 4 else scores.unsqueeze(1)
        best_of = groups.amax(dim=1)
        best = torch.cat([best, best_of]).topk(k, dim=0).values
        least = (best[-1] - margin).clamp(min=_LEAST)
        group, query = (best_of >= least).nonzero(as_tuple=True)
        score = groups[group, :, query]
        near, member = (score >= least[query, None]).nonzero(as_tuple=True)
        found.append((start + group[near] * groups.shape[1] + member, query[near], score[near, member]))
    row, query, score = (torch.cat(pieces) for pieces in zip(*found, strict=True))
    still = score >= best[-1, query] - margin  # of what was kept before better ones came
    query, order = query[still].sort(stable=True)
    return np.split(row[still][order].numpy(), np.searchsorted(query.numpy(), np.arange(1, len(queries))))


def _products(segments: Sequence[Segment], asked: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    """Scores (float32 [rows, queries]) of one block of rows after the other, filled up to whole groups, each with the number
    of its first row; asked: [dim, queries], as products are to be made. A block lasts until the next one is made."""
    import torch

    start, scores = 0, torch.empty(BLOCK, asked.shape[1])
    widened = torch.empty(WIDENED, asked.shape[0], dtype=asked.dtype)
    for segment in segments:
        vectors = torch.from_numpy(segment.vectors if segment.halves is None else segment.halves)
        for first in range(0, len(segment), BLOCK):
            block = vectors[first : first + BLOCK]
            for row in range(0, len(block), WIDENED):
                rows = block[row : row + WIDENED]
                into = scores[row : row + len(rows)]
                if asked.dtype == scores.dtype:
                    torch.mm(widened[: len(rows)].copy_(rows), asked, out=into)
                else:
                    into.copy_(torch.mm(widened[: len(rows)].copy_(rows), asked))
            whole = -(-len(block) // GROUP) * GROUP
            scores[len(block) : whole] = -torch.inf
            yield start + first, scores[:whole]
        start += len(segment)


def _group(rows: int, k: int) -> int:
    """How many rows to a group, so that there are a few times k of them."""
    return max(1, min(GROUP, rows // (4 * k)))
