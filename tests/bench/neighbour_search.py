"""Neighbour search over many documents, beside raw faiss: memory, and documents a second.

python tests/bench/neighbour_search.py [--documents 1000000] [--width 512] [--threads 1]

A preparation asks for all queries of 1024 documents at a time, and once more for the few of them whose first candidates
were duplicates: hence two numbers of queries. Seconds of processor time over all threads, and of the clock; documents a
second at four queries each (two forms, two draws), as the recipes ask, by the clock. Prints one JSON object; a million
documents take about a minute and 5 GiB.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import faiss
import numpy as np
import torch

from racm3.document import Document
from racm3.training.neighbour_search import NeighbourSearch

CANDIDATES, SPARE, QUERIES_OF_A_DOCUMENT = 32, 8, 4


class Texts(Sequence[Document]):
    """Documents of which a thousand are distinct."""

    def __init__(self, count: int) -> None:
        self.count, self.made = count, [Document([f"document {number}"]) for number in range(1000)]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row):  # type: ignore[no-untyped-def, override]
        return self.made[row % 1000]


def peak() -> float:
    """GiB, on Linux."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)


def timed(queries: int, call: Callable[[], object]) -> dict[str, float]:
    began, worked = time.perf_counter(), time.process_time()
    call()
    seconds, worked = time.perf_counter() - began, time.process_time() - worked
    rate = queries / seconds / QUERIES_OF_A_DOCUMENT
    return {"seconds": round(seconds, 3), "cpu_seconds": round(worked, 3), "documents_per_second": round(rate, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    count, width = given.documents, given.width
    torch.set_num_threads(given.threads)
    faiss.omp_set_num_threads(given.threads)
    report: dict[str, object] = {**vars(given), "load": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory() as scratch:
        vectors = np.lib.format.open_memmap(Path(scratch) / "v.npy", mode="w+", dtype=np.float32, shape=(count, width))
        rng = np.random.default_rng(0)
        for start in range(0, count, 10_000):
            drawn = rng.random((min(10_000, count - start), width), dtype=np.float32) - 0.5
            vectors[start : start + len(drawn)] = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
        began = time.perf_counter()
        groups = [str(row) for row in range(count)]
        search = NeighbourSearch(vectors, Texts(count), groups, np.arange(count), np.arange(0))
        report["seconds_to_open"] = round(time.perf_counter() - began, 2)
        asked = {queries: np.array(vectors[:queries]) for queries in (32, 1024)}
        found, ours, raw = {}, {}, {}
        for queries, asking in asked.items():

            def ask(queries: int = queries, asking: np.ndarray = asking) -> None:
                found[queries] = search.candidates(np.arange(queries), asking, CANDIDATES, everything=False)

            ours[queries] = timed(queries, ask)
        report["peak_gib"] = peak()  # before faiss has its copy
        index = faiss.IndexFlatIP(width)
        for start in range(0, count, 10_000):
            index.add(np.ascontiguousarray(vectors[start : start + 10_000]))
        for queries, asking in asked.items():
            raw[queries] = timed(queries, lambda asking=asking: index.search(asking, CANDIDATES + SPARE))  # type: ignore[misc]
            _, rows = index.search(asking[:8], CANDIDATES + SPARE)
            for row, candidates in enumerate(found[queries][:8]):
                assert np.isin([other for other, _ in candidates], rows[row]).mean() > 0.9
        report["ours"] = {f"{queries} queries": figures for queries, figures in ours.items()}
        report["faiss"] = {f"{queries} queries": figures for queries, figures in raw.items()}
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
