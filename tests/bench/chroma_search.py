"""What racm3-chroma's two ways of searching find and cost, on the shipped emoji memory: python tests/bench/chroma_search.py

For each way, the share of the truly nearest documents that it finds (against FaissMemory), and CPU milliseconds of this
process per query, asked one by one and 64 at once; with and without a filter. Then what a search costs after a change.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from racm3 import Document, MemoryStore, Pipeline
from racm3.interfaces import Hit, Where
from racm3_chroma.memory import ChromaMemory

FILTERS: dict[str, Where | None] = {
    "all": None,
    "style Noto": {"style": "Noto"},
    "$not, group": {"$not": {"group": {"$in": ["flags", "objects"]}}},
}


def recall(found: Sequence[Sequence[Hit]], truth: Sequence[Sequence[Hit]]) -> float:
    shares = [
        len({h.id for h in one} & {h.id for h in other}) / max(1, len(other))
        for one, other in zip(found, truth, strict=True)
    ]
    return float(np.mean(shares))


def cpu_ms(memory: MemoryStore, vectors: np.ndarray, k: int, where: Where | None) -> tuple[float, float]:
    """Per query: one by one, and all at once."""
    start = time.process_time()
    for vector in vectors[:20]:
        memory.search(vector[None], k=k, where=where)
    middle = time.process_time()
    memory.search(vectors, k=k, where=where)
    end = time.process_time()
    return (middle - start) / 20 * 1000, (end - middle) / len(vectors) * 1000


def main() -> None:
    with Pipeline.from_preset("emoji", generator=None) as pipeline, tempfile.TemporaryDirectory() as folder:
        items = list(pipeline.memory.items())
        step = len(items) // 64
        vectors = pipeline.retriever.encode_query([Document(document.texts[0]) for document, _ in items[::step][:64]])
        with ChromaMemory(Path(folder), exact_up_to=20_000) as memory:
            memory.bind(pipeline.retriever.encoder)
            start = time.process_time()
            memory.add([document for document, _ in items], np.stack([vector for _, vector in items]))
            print(f"{len(items)} documents added in {time.process_time() - start:.1f} s (CPU)")
            size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
            pictures = sum(len(image.data) for document, _ in items for image in document.images)
            print(f"{size / 1e6:.1f} MB on disk, of which the pictures themselves are {pictures / 1e6:.1f} MB")
            start = time.process_time()
            memory.search(vectors[:1], k=1)
            print(f"first search, which reads all vectors: {time.process_time() - start:.2f} s (CPU)")
            memory.delete([items[0][0].id])
            start = time.process_time()
            memory.search(vectors[:1], k=1)
            print(f"first search after a change: {time.process_time() - start:.2f} s (CPU)")
            memory.add([items[0][0]], items[0][1][None])
            print("\n| way | k | filter | recall | ms, one by one | ms, 64 at once |\n|---|---|---|---|---|---|")
            for way, limit in (("exact", 20_000), ("Chroma's index", 0)):
                memory.exact_up_to = limit
                for k in (10, 64):
                    for name, where in FILTERS.items():
                        truth = pipeline.memory.search(vectors, k=k, where=where)
                        share = recall(memory.search(vectors, k=k, where=where), truth)
                        one, many = cpu_ms(memory, vectors, k, where)
                        print(f"| {way} | {k} | {name} | {share:.4f} | {one:.1f} | {many:.1f} |")


if __name__ == "__main__":
    main()
