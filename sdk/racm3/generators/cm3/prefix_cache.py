"""What the model has read of context documents: computed once, and shared by samples, streams and later calls."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .attention import KeysAndValues, Reading
from .document_format import TokenSequence
from .transformer import Transformer

if TYPE_CHECKING:
    import torch


class PrefixCache:
    """Keys and values of contexts, the least recently used given up first. Threads can share it.

    limit: bytes to keep; a context that is larger is computed, and not kept. hits, misses: how often a context was
    found, and how often it was not. bytes: what is kept now.
    """

    def __init__(self, limit: int = 256 * 2**20) -> None:
        self.limit, self.hits, self.misses, self.bytes = limit, 0, 0, 0
        self._kept: OrderedDict[bytes, KeysAndValues] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def read(self, transformer: Transformer, context: Sequence[TokenSequence]) -> KeysAndValues | None:
        """Keys and values of documents in this order; None where there are none."""
        if not context:
            return None
        ids = np.concatenate([sequence.ids for sequence in context])
        positions = np.concatenate([sequence.positions for sequence in context])
        key = ids.tobytes() + positions.tobytes()
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self.hits += 1
                self._kept.move_to_end(key)
                return found
            self.misses += 1
        found, _ = read(transformer, ids, positions)
        size = _bytes(found)
        with self._lock:
            if key not in self._kept and size <= self.limit:
                self._kept[key] = found
                self.bytes += size
            while self.bytes > self.limit:
                self.bytes -= _bytes(self._kept.popitem(last=False)[1])
        return found

    def clear(self) -> None:
        """Give up all that is kept. The counters go on."""
        with self._lock:
            self._kept.clear()
            self.bytes = 0


def read(
    transformer: Transformer,
    ids: np.ndarray,
    positions: np.ndarray,
    past: KeysAndValues | None = None,
    branches: Sequence[int] | None = None,
) -> tuple[KeysAndValues, torch.Tensor]:
    """Read a sequence (int64 [tokens]) behind `past`: keys and values of both, and what it makes of its tokens.

    branches: see `Reading`.
    """
    import torch

    attention = Reading(past, branches)
    with torch.inference_mode():
        hidden = transformer(
            torch.from_numpy(ids).to(transformer.device), torch.from_numpy(positions).to(transformer.device), attention
        )
    return attention.read, hidden


def _bytes(kept: KeysAndValues) -> int:
    return sum(side.numel() * side.element_size() for pair in kept for side in pair)
