"""What it takes to store documents: python tests/bench/ingest.py --folder SCRATCH [--documents 10000] [--rounds 3]

Documents of 2 KB of text and vectors of width 512, made before the clock starts. Bulk: `FaissMemory.add` in batches of
1,000, each on disk when it returns, with 0, 5 and 20 metadata fields; documents a second of wall time and of processor
time, and bytes a document in the database. Single: one document an `add`, in turn with a bare write + fsync of as many
bytes as the database logs for it, appended to a file of the same folder; milliseconds, p50, and the median of the ratios
of neighbours. Rounds are interleaved, and medians are reported. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import numpy as np

from racm3.document import Document
from racm3.interfaces import Encoder
from racm3.memories.faiss import FaissMemory

DIM = 512
BATCH = 1000
FIELDS = (0, 5, 20)
WORDS = ["kite", "beach", "harbour", "grey", "whale", "evening", "under", "letter", "seven", "yellow", "glass", "north"]


def made(count: int, fields: int, seed: int) -> tuple[list[Document], np.ndarray]:
    draw = random.Random(seed)
    documents = []
    for number in range(count):
        text = f"{seed} {number} " + " ".join(draw.choices(WORDS, k=400))
        metadata = {f"field{n}": draw.choice(_values(n, number)) for n in range(fields)}
        documents.append(Document(text[:2048], id=f"{seed}-{number}", metadata=metadata))
    vectors = np.random.default_rng(seed).standard_normal((count, DIM), dtype=np.float32)
    return documents, vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _values(field: int, number: int) -> list[str | int | float]:
    """Of every five fields: two of few values, a year, a number that seldom repeats, and a name of the document's own."""
    return [
        ["noto", "twemoji", "fluent"],
        ["red", "green", "blue", "grey"],
        list(range(1990, 2030)),
        [number // 3 / 7],
        [f"folder/{number}.png"],
    ][field % 5]  # type: ignore[return-value]


@contextmanager
def opened(folder: Path) -> Iterator[FaissMemory]:
    shutil.rmtree(folder, ignore_errors=True)
    memory = FaissMemory(folder)
    memory.bind(Encoder("bench", DIM))
    try:
        yield memory
    finally:
        memory._kept.stale = False  # no snapshot: what is measured is the truth
        memory.close()


def bulk(folder: Path, count: int, fields: int, seed: int) -> dict[str, float]:
    documents, vectors = made(count, fields, seed)
    with opened(folder) as memory:
        wall, processor = time.perf_counter(), time.process_time()
        for start in range(0, count, BATCH):
            memory.add(documents[start : start + BATCH], vectors[start : start + BATCH])
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
    size = sum(path.stat().st_size for path in folder.iterdir())
    return {"per_second": count / wall, "per_processor_second": count / processor, "bytes": size / count}


def single(folder: Path, count: int, seed: int) -> dict[str, float]:
    documents, vectors = made(count + 8, 5, seed)
    stored, bare, growths = [], [], []
    with opened(folder) as memory, (folder / ".bare").open("wb") as file:
        log = folder / "memory.db-wal"
        for number, document in enumerate(documents):
            before = log.stat().st_size
            start = time.perf_counter()
            memory.add([document], vectors[number : number + 1])
            took = time.perf_counter() - start
            growths.append(log.stat().st_size - before)
            # When the log has become long enough it is used again from its start, and does not grow.
            written = median(growth for growth in growths if growth > 0)
            data = os.urandom(int(written))
            start = time.perf_counter()
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            stored.append(took)
            bare.append(time.perf_counter() - start)
    return {
        "add_ms": median(stored) * 1e3,
        "fsync_ms": median(bare) * 1e3,
        "ratio": median(one / other for one, other in zip(stored, bare, strict=True)),
        "bytes": float(written),
    }


def medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {name: round(median(one[name] for one in rounds), 2) for name in rounds[0]}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True, help="on the disk to be measured; a folder in it is used")
    parser.add_argument("--documents", type=int, default=10_000)
    parser.add_argument("--singles", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    folder = given.folder / "racm3-bench-ingest"
    FaissMemory().close()  # what is imported at first use is imported now
    many: dict[int, list[dict[str, float]]] = {fields: [] for fields in FIELDS}
    one = []
    for seed in range(given.rounds):
        for fields in FIELDS:
            many[fields].append(bulk(folder, given.documents, fields, seed))
        one.append(single(folder, given.singles, seed))
    shutil.rmtree(folder, ignore_errors=True)
    found = {
        "documents": given.documents,
        "bulk": {f"{fields} fields": medians(rounds) for fields, rounds in many.items()},
        "single": medians(one),
    }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
