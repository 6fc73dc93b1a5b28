"""Neighbour search over many documents: memory, and queries a second beside raw faiss.

python tests/bench/neighbour_search.py [documents] [width] [queries]
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from racm3.document import Document
from racm3.training.neighbour_search import NeighbourSearch

COUNT, WIDTH, QUERIES = (int(given) for given in (*sys.argv[1:], *("1000000", "512", "32")[len(sys.argv) - 1 :]))


class Texts(Sequence[Document]):
    """Documents of which a thousand are distinct."""

    made = [Document([f"document {number}"]) for number in range(1000)]  # noqa: RUF012

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, row):  # type: ignore[no-untyped-def, override]
        return self.made[row % 1000]


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # GiB on Linux


with tempfile.TemporaryDirectory() as scratch:
    vectors = np.lib.format.open_memmap(Path(scratch) / "v.npy", mode="w+", dtype=np.float32, shape=(COUNT, WIDTH))
    rng = np.random.default_rng(0)
    for start in range(0, COUNT, 10_000):
        drawn = rng.random((min(10_000, COUNT - start), WIDTH), dtype=np.float32) - 0.5
        vectors[start : start + len(drawn)] = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    began = time.perf_counter()
    groups = [str(row) for row in range(COUNT)]
    search = NeighbourSearch(vectors, Texts(), groups, np.arange(COUNT), np.arange(0))
    print(f"{COUNT:,} documents of width {WIDTH}: {time.perf_counter() - began:.1f} s to open")
    asked = np.array(vectors[:QUERIES])
    began = time.perf_counter()
    found = search.candidates(np.arange(QUERIES), asked, 32, everything=False)
    ours = time.perf_counter() - began
    assert all(len(candidates) == 32 for candidates in found)
    began = time.perf_counter()
    search.sides[0][1].search(asked, 40)  # type: ignore[attr-defined]
    raw = time.perf_counter() - began
    print(f"{QUERIES / ours:.1f} queries/s, raw faiss {QUERIES / raw:.1f}; peak memory {peak():.1f} GiB (limit 24)")
