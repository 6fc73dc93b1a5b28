"""What the corridor adds to a search: python tests/bench/search_overhead.py [--pairs 51] [--searches 400]

The retriever and the memory are fakes that answer at once, so that only what lies between them is measured: `search`
against the same two calls made directly; then what the registry and an observer take, which come in where a prompt is
grounded. Microseconds of processor time; medians over pairs of runs, taken in turn. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np

from racm3 import Document, Hit, Pipeline, hookimpl
from racm3.interfaces import Encoder, MemoryStore, Retriever
from racm3.registry import registry
from racm3.retrieval import retrieve
from racm3.samplers.topk import TopKSampler

DIM = 512


class InstantRetriever(Retriever):
    encoder = Encoder("instant", DIM)

    def __init__(self) -> None:
        self.vectors = np.eye(1, DIM, dtype=np.float32)

    def encode_document(self, documents: Any, *, batch_size: Any = None) -> np.ndarray:
        return self.vectors

    def encode_query(
        self, queries: Any, *, batch_size: Any = None, dropout: float = 0.0, rng: Any = None
    ) -> np.ndarray:
        return self.vectors


class InstantMemory(MemoryStore):
    def __init__(self, hits: list[Hit]) -> None:
        self.hits = hits

    def bind(self, encoder: Any) -> None: ...

    def search(self, vectors: Any, *, k: int, where: Any = None, exclude: Any = None) -> list[list[Hit]]:
        return [self.hits[:k]]

    def __len__(self) -> int:
        return len(self.hits)

    # Never called.
    add = get = items = random = delete = None  # type: ignore[assignment]


class Watcher:
    @hookimpl
    def racm3_retrieved(self, query: Any, selection: Any) -> None: ...


def microseconds(call: Callable[[], object], times: int) -> float:
    start = time.process_time_ns()
    for _ in range(times):
        call()
    return (time.process_time_ns() - start) / times / 1e3


def compare(plain: Callable[[], object], whole: Callable[[], object], pairs: int, times: int) -> dict[str, float]:
    microseconds(plain, times), microseconds(whole, times)
    both = [(microseconds(plain, times), microseconds(whole, times)) for _ in range(pairs)]
    return {
        "without": round(median(before for before, _ in both), 2),
        "with": round(median(after for _, after in both), 2),
        "added": round(median(after - before for before, after in both), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=51)
    parser.add_argument("--searches", type=int, default=400)
    given = parser.parse_args()
    os.environ["RACM3_PLUGINS"] = ""  # the observers of whatever is installed here are not what is measured
    vector = np.eye(1, DIM, dtype=np.float32)[0]
    hits = [Hit(Document(f"document {n}"), score=1 - n / 100, vector=vector) for n in range(64)]
    retriever, memory, sampler, query = InstantRetriever(), InstantMemory(hits), TopKSampler(), Document("a red kite")
    pipeline = Pipeline(retriever, memory, sampler)

    def direct(k: int) -> object:
        return memory.search(retriever.encode_query([query]), k=k)[0]

    report: dict[str, object] = {"pairs": given.pairs, "searches": given.searches, "load": os.getloadavg()[0]}
    rows: dict[str, dict[str, float]] = {}
    rows["search, k=2"] = compare(lambda: direct(2), lambda: pipeline.search(query, k=2), given.pairs, given.searches)
    rows["search, k=10"] = compare(
        lambda: direct(10), lambda: pipeline.search(query, k=10), given.pairs, given.searches
    )
    rows["registry"] = compare(lambda: None, registry, given.pairs, given.searches)
    selection = retrieve(retriever, memory, sampler, [query], k=2, where=None, seed=0, spent={})[0]

    def tell() -> None:
        registry().notify_retrieved(query, selection)  # type: ignore[arg-type]

    rows["registry and no observer"] = compare(lambda: None, tell, given.pairs, given.searches)
    registry().register(Watcher(), name="watcher")
    rows["registry and one observer"] = compare(lambda: None, tell, given.pairs, given.searches)
    print(json.dumps({**report, "microseconds": rows}, indent=2))


if __name__ == "__main__":
    main()
