"""Sequences packed into rows: several samples in one, none of which attends to another.

Each sample keeps its own positions, as if it stood alone. The mask is explicit: without one transformers would guess the
borders from gaps in the positions, which lie between the documents of a sample too.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from .objective import WeightedSequence

WASTE = 0.02  # padding that is put up with for shorter rows


def pack(lengths: Sequence[int], longest: int, multiple: int = 1) -> list[list[int]]:
    """Rows of sample numbers: all samples, each once, in rows of at most `longest` tokens (or of one sample).

    Of the numbers of rows that waste no more than WASTE, the largest, as attention costs the square of a row's length;
    if none does, the one that wastes least.
    """
    total, allowed = sum(lengths), max(longest, *lengths)
    best, least = [[i] for i in range(len(lengths))], float("inf")
    fewest = -(-total // allowed)
    most = min(2 * fewest + 1, len(lengths))
    for rows in (*range(most, fewest - 1, -1), *range(most + 1, len(lengths) + 1)):
        if rows > most and least < float("inf"):
            break
        packed = _balanced(lengths, rows)
        for more_even in (False, True):  # which is rarely needed, and takes a few times as long
            packed = _evened(packed, lengths) if more_even else packed
            width = max(sum(lengths[i] for i in row) for row in packed)
            waste = 1 - total / (rows * -(-width // multiple) * multiple)
            if width <= allowed and waste < least:
                best, least = packed, waste
            if least <= WASTE:
                return best
    return best


def _balanced(lengths: Sequence[int], rows: int) -> list[list[int]]:
    """The longest sample left goes to the shortest row: at most a third longer than the best there is (Graham, 1969)."""
    packed: list[list[int]] = [[] for _ in range(rows)]
    filled = [(0, row) for row in range(rows)]
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        tokens, row = filled[0]
        packed[row].append(i)
        heapq.heapreplace(filled, (tokens + lengths[i], row))
    return packed


def _evened(packed: list[list[int]], lengths: Sequence[int]) -> list[list[int]]:
    """The same rows after samples of the longest have been moved to others, or changed for shorter ones of them, for as long
    as that makes the longest shorter."""
    rows, sums = [list(row) for row in packed], [sum(lengths[i] for i in row) for row in packed]
    while True:
        longest = max(range(len(rows)), key=sums.__getitem__)
        better, best = sums[longest], None
        for other, row in enumerate(rows):
            for given in rows[longest]:
                for taken in (None, *row):
                    more = lengths[given] - (0 if taken is None else lengths[taken])
                    if more > 0 and max(sums[longest] - more, sums[other] + more) < better:
                        better, best = max(sums[longest] - more, sums[other] + more), (other, given, taken, more)
        if best is None:
            return rows
        other, given, taken, more = best
        rows[longest].remove(given)
        rows[other].append(given)
        if taken is not None:
            rows[other].remove(taken)
            rows[longest].append(taken)
        sums[longest] -= more
        sums[other] += more


def collate_packed(
    samples: Sequence[WeightedSequence], pad: int, longest: int, multiple: int
) -> dict[str, torch.Tensor]:
    """Samples in rows of about `longest` tokens: ids, positions, weights, main and samples, each [B, T].

    samples: which sample of its row a token belongs to, from 0 on; -1 is padding.
    """
    rows = pack([len(sample.ids) for sample in samples], longest, multiple)
    width = max(sum(len(samples[i].ids) for i in row) for row in rows)
    shape = (len(rows), -(-width // multiple) * multiple)
    ids, positions = np.full(shape, pad, np.int64), np.zeros(shape, np.int64)
    weights, main, numbers = np.zeros(shape, np.float32), np.zeros(shape, bool), np.full(shape, -1, np.int64)
    for r, row in enumerate(rows):
        start = 0
        for number, i in enumerate(row):
            sample = samples[i]
            here = np.s_[r, start : start + len(sample.ids)]
            ids[here], positions[here], numbers[here] = sample.ids, sample.positions, number
            weights[here], main[here] = sample.weights, sample.main
            start += len(sample.ids)
    arrays = {"ids": ids, "positions": positions, "weights": weights, "main": main, "samples": numbers}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def attention_mask(samples: torch.Tensor, attention: Literal["sdpa", "eager"]) -> torch.Tensor:
    """Who sees whom, [B, 1, T, T]: the tokens before it, of its own sample. True or false for sdpa, 0 or -inf for eager.

    samples: [B, T], as `collate_packed` gives it. Padding sees padding, so that no row of the mask is empty.
    """
    length = samples.shape[1]
    earlier = torch.ones(length, length, dtype=torch.bool, device=samples.device).tril()
    seen = ((samples[:, :, None] == samples[:, None, :]) & earlier)[:, None]
    if attention == "sdpa":
        return seen
    return torch.zeros(seen.shape, device=samples.device).masked_fill(~seen, torch.finfo(torch.float32).min)
