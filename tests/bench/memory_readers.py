"""Four readers and a writer of one memory: python tests/bench/memory_readers.py [--minutes 10] [--kill 5] [--out FILE.json]

The writer adds, replaces and deletes batches of documents, each in one call, writes the snapshot, compacts, and makes one
kind of index after the other; it is killed at random, every --kill seconds (0: never), and another one goes on. What it
does is drawn from a seed, and every batch is written together with a document that says how far it has come, the clock; so
each reader knows, for whatever it sees, what else there has to be:

whole      a search for everything finds exactly the documents of the moment that the clock shows, with their vectors
batch      a filtered search finds a batch, all of it and of one version, or nothing
get        the same, by ids
nearest    an unfiltered search (of an approximate index, if there is one) finds documents of the memory, best first; as
           "found", the share of them that is found by its own vector, of those which the clock says are there
items      every document comes once, with its vector
and for each of them: scores are inner products, a document is the one that belongs to its vector, or said to have been
removed or replaced since, and no reader ever sees the clock, or a batch, go back.

Exit status 1, and a sentence for each, when anything is other than that. Some readers open the memory read-only, and each
opens it anew now and then. Indexes of every kind are made of however few documents.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import random
import shutil
import signal
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from results import finish

from racm3.document import Document, Text
from racm3.errors import MemoryStoreError
from racm3.interfaces import Encoder, Hit
from racm3.memories import approximate
from racm3.memories.faiss import FaissMemory

DIM = 16
ENCODER = Encoder("readers", DIM)
SIZE = 10  # documents of a batch
BATCHES = (60, 120)  # how few and how many there are, once there are enough
READERS = 4
KINDS = ("exact", "hnsw", "ivf")
CLOCK = "clock"
AHEAD = 100_000  # ticks that a reader can be behind

Version = tuple[int, int]  # number of a batch, and how often it was replaced
State = dict[int, int]  # batch -> version


class Tick(NamedTuple):
    """What the writer does between two times of the clock: it deletes a batch, writes one, and does something else."""

    delete: int | None
    write: Version
    then: str | None

    def effect(self, state: State) -> State:
        return {
            **{batch: version for batch, version in state.items() if batch != self.delete},
            self.write[0]: self.write[1],
        }


def ticks(seed: int) -> Iterator[Tick]:
    draw, state, fresh = random.Random(seed), State(), 0
    while True:
        delete = None
        if len(state) > draw.randint(*BATCHES):
            delete = draw.choice(sorted(state))
        others = sorted(set(state) - {delete})
        if others and draw.random() < 0.4:
            batch = draw.choice(others)
            write = (batch, state[batch] + 1)
        else:
            write, fresh = (fresh, 0), fresh + 1
        then = draw.choices([None, "flush", "compact", *KINDS], [40, 4, 1, 1, 1, 1])[0]
        tick = Tick(delete, write, then)
        yield tick
        state = tick.effect(state)


@lru_cache(maxsize=4096)
def rows(batch: int | str, version: int) -> np.ndarray:
    """The vectors of a batch: float32 [SIZE, DIM]."""
    made = (
        np.random.default_rng(zlib.crc32(f"{batch} {version}".encode())).standard_normal((SIZE, DIM)).astype(np.float32)
    )
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def ids(batch: int) -> list[str]:
    return [f"{batch}-{n}" for n in range(SIZE)]


def text(batch: int | str, version: int, n: int) -> str:
    return f"batch {batch}, version {version}, document {n}"


def documents(batch: int, version: int) -> list[Document]:
    metadata = {"batch": batch, "version": version}
    return [Document(text(batch, version, n), id=id, metadata=metadata) for n, id in enumerate(ids(batch))]


# Processes


def write(place: Path, seed: int, until: float) -> None:
    """Go on from where the clock stands, by one tick at least."""
    approximate.SMALL = 0
    pause = random.Random(seed)
    with FaissMemory(place) as memory:
        before = time_of(memory)
        for now, tick in enumerate(ticks(seed), start=1):
            if now <= before:
                continue
            if tick.delete is not None:
                memory.delete(ids(tick.delete))
            clock = Document(text(CLOCK, now, 0), id=CLOCK, metadata={"tick": now})
            made, vectors = [*documents(*tick.write), clock], np.concatenate([rows(*tick.write), rows(CLOCK, now)[:1]])
            memory.add(made, vectors, on_duplicate="replace")
            if tick.then is not None:
                memory.reindex(tick.then) if tick.then in KINDS else getattr(memory, tick.then)()
            if time.monotonic() > until:
                return
            time.sleep(pause.random() * 0.02)


def time_of(memory: FaissMemory) -> int:
    """What the clock shows."""
    (clock,) = memory.get([CLOCK])
    return 0 if clock is None else int(clock.metadata["tick"])  # type: ignore[arg-type]


def writers(place: Path, seed: int, until: float, seconds: float) -> dict[str, Any]:
    """One writer after the other, each of which is killed, but for the last; then the memory is verified."""
    draw, kills, wrong, last = random.Random(f"{seed} kills"), 0, list[str](), False
    while not last and not wrong:
        last = time.monotonic() > until
        process = multiprocessing.get_context("fork").Process(target=write, args=(place, seed, until))
        process.start()
        process.join(seconds * 2 * draw.random() if seconds and not last else None)
        if time.monotonic() < until and process.is_alive():
            process.kill()
            kills += 1
        process.join()
        if process.exitcode not in (0, -signal.SIGKILL):
            wrong.append(f"it ended with status {process.exitcode}")
    with FaissMemory(place) as memory:
        wrong += memory.verify()
        now = time_of(memory)
    counts = Counter[str]()
    for tick in islice(ticks(seed), now):
        counts["deleted"] += tick.delete is not None
        counts["replaced" if tick.write[1] else "added"] += 1
        counts[tick.then or "nothing then"] += 1
    return {"who": "writer", "kills": kills, "ticks": now, "counts": dict(counts), "wrong": wrong}


class Reader:
    """What one reader has seen, and what it may see from now on."""

    def __init__(self, seed: int) -> None:
        self.plan, self.state, self.now = ticks(seed), State(), 0
        self.next = next(self.plan)
        self.seen: dict[int, int | None] = {}  # batch -> its last version; None: it is gone
        self.wrong: list[str] = []
        self.counts = Counter[str]()

    def says(self, sound: bool, sentence: str) -> None:
        if not sound and len(self.wrong) < 20:
            self.wrong.append(f"at {self.now}: {sentence}")

    def advance(self, vector: np.ndarray) -> None:
        """The clock has been seen."""
        for ahead in range(AHEAD):
            if np.array_equal(vector, rows(CLOCK, self.now + ahead)[0]):
                for _ in range(ahead):
                    self.state, self.next = self.next.effect(self.state), next(self.plan)
                self.now += ahead
                return
        self.says(False, "the clock has gone back, or shows what it never showed")

    def sees(self, batch: int, found: list[str], version: int | None) -> None:
        """All documents of a batch, in one version, or nothing of it."""
        before = self.seen.get(batch, -1)
        if version is None:
            self.says(not found, f"of batch {batch} only {found} are there")
            if batch in self.seen or batch in self.state:
                self.seen[batch] = None
            return
        self.says(sorted(found) == sorted(ids(batch)), f"of batch {batch}, version {version}, only {found} are there")
        self.says(before is not None and version >= before, f"batch {batch} was {before}, and now is {version}")
        self.seen[batch] = version

    def document(self, hit: Hit, batch: int | str, version: int, n: int) -> None:
        try:
            found = hit.document
        except MemoryStoreError as error:
            self.says("was removed or replaced after" in error.message, error.message)
            self.counts["documents that have changed since"] += 1
            return
        self.counts["documents"] += 1
        self.says(found.text == text(batch, version, n), f"{hit.id} is {found.text!r}, not version {version}")

    def is_gone(self, hit: Hit) -> bool:
        try:
            return not hit.document
        except MemoryStoreError:
            return True

    def scores(self, hits: list[Hit], query: np.ndarray) -> None:
        got = np.array([hit.score for hit in hits], dtype=np.float64)
        exact = np.array([hit.vector @ query for hit in hits], dtype=np.float64)
        self.says(bool((np.abs(got - exact) < 1e-5).all()), "a score is not the inner product")
        self.says(bool((got[1:] <= got[:-1]).all()), "hits are not in order of their scores")
        self.says(len({hit.id for hit in hits}) == len(hits), "a document is found twice")

    def version_of(self, hit: Hit) -> tuple[int, int, int] | None:
        """Batch, version and number of a hit, by its vector; None when there was none such at any time until soon."""
        batch, n = map(int, hit.id.split("-"))
        for version in range((self.seen.get(batch) or 0) + 1000):
            if np.array_equal(rows(batch, version)[n], hit.vector):
                return batch, version, n
        return None

    # Questions

    def whole(self, memory: FaissMemory, draw: random.Random) -> None:
        query = rows("query", draw.randrange(100))[0]
        hits = memory.search(query[None], k=SIZE * (BATCHES[1] + 10))[0]
        self.scores(hits, query)
        clock = next((hit for hit in hits if hit.id == CLOCK), None)
        self.says((clock is None) == (not hits), "there is no clock")
        if clock is None:
            return
        self.advance(clock.vector)
        found = {hit.id: hit.vector for hit in hits if hit.id != CLOCK}
        without = {batch: version for batch, version in self.state.items() if batch != self.next.delete}
        state = self.state if len(found) == SIZE * len(self.state) else without
        expected = {id: row for one in state.items() for id, row in zip(ids(one[0]), rows(*one), strict=True)}
        lost, more = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
        self.says(
            not lost and not more, f"lost {lost[:5]} ({len(lost)}), and more than there is: {more[:5]} ({len(more)})"
        )
        other = [id for id in expected.keys() & found.keys() if not np.array_equal(expected[id], found[id])]
        self.says(not other, f"other vectors: {other[:5]} ({len(other)})")
        for batch in self.state:
            before = self.seen.get(batch, -1)
            self.says(batch not in state or before is not None, f"batch {batch} was gone and is there again")
            if batch in state and before is not None:
                self.says(state[batch] >= before, f"batch {batch} was {before} and is {state[batch]}")
            self.seen[batch] = state.get(batch)

    def batch(self, memory: FaissMemory, draw: random.Random) -> None:
        batch = self.some_batch(draw)
        query = rows("query", draw.randrange(100))[0]
        hits = memory.search(query[None], k=3 * SIZE, where={"batch": batch})[0]
        self.scores(hits, query)
        known = {self.version_of(hit) for hit in hits}
        self.says(len({one and one[1] for one in known}) <= 1, f"several versions of batch {batch}: {known}")
        version = next((one[1] for one in known if one), None)
        self.sees(batch, [hit.id for hit in hits], version)
        for hit in draw.sample(hits, min(3, len(hits))):
            if one := self.version_of(hit):
                expected = {Text(text(*one)).content_hash}
                self.says(hit.hashes in (expected, frozenset()), f"{hit.id} has other hashes")
                if not hit.hashes:  # as of a document that was removed since: it stays so
                    self.says(self.is_gone(hit), f"{hit.id} has no hashes")
                    continue
                self.document(hit, *one)

    def get(self, memory: FaissMemory, draw: random.Random) -> None:
        batch = self.some_batch(draw)
        found = [document for document in memory.get(ids(batch)) if document is not None]
        versions = {int(document.metadata["version"]) for document in found}  # type: ignore[arg-type]
        self.says(len(versions) <= 1, f"several versions of batch {batch}: {versions}")
        version = max(versions, default=None)
        self.sees(batch, [document.id for document in found], version)
        expected = [] if version is None else [text(batch, version, n) for n in range(SIZE)]
        self.says([document.text for document in found] == expected, f"batch {batch} has other texts")

    def nearest(self, memory: FaissMemory, draw: random.Random) -> None:
        batch = self.some_batch(draw)
        version = self.state.get(batch, 0)
        hits = memory.search(rows(batch, version)[:1], k=5)[0]
        self.scores(hits, rows(batch, version)[0])
        if batch in self.state:
            self.counts["looked for"] += 1
            self.counts["found"] += bool(hits) and hits[0].id == f"{batch}-0"
        for hit in hits:
            if hit.id != CLOCK:
                one = self.version_of(hit)
                self.says(one is not None, f"{hit.id} has a vector that was never stored")
                if one is not None:
                    self.document(hit, *one)

    def items(self, memory: FaissMemory, draw: random.Random) -> None:
        seen = set()
        for document, vector in memory.items():
            self.says(document.id not in seen, f"{document.id} comes twice")
            seen.add(document.id)
            batch, version, n = (CLOCK, document.metadata["tick"], 0) if document.id == CLOCK else (
                document.metadata["batch"], document.metadata["version"], int(document.id.split("-")[1])
            )  # fmt: skip
            same = document.text == text(batch, version, n) and np.array_equal(vector, rows(batch, version)[n])  # type: ignore[arg-type]
            self.says(same, f"{document.id} is another")

    def some_batch(self, draw: random.Random) -> int:
        """One that is there, or was, or is about to be."""
        latest = max(self.state, default=0)
        return (
            draw.choice(sorted(self.state) or [0])
            if draw.random() < 0.7
            else draw.randint(max(0, latest - 150), latest + 2)
        )


def read(place: Path, seed: int, until: float, number: int) -> dict[str, Any]:
    approximate.SMALL = 0
    logging.getLogger("racm3").addHandler(logging.NullHandler())
    draw, reader, slowest = random.Random(f"{seed} {number}"), Reader(seed), 0.0
    questions: list[Callable[[FaissMemory, random.Random], None]] = [
        reader.whole, reader.batch, reader.get, reader.nearest, reader.items
    ]  # fmt: skip
    while time.monotonic() < until:
        with FaissMemory(place, read_only=number % 2 == 1) as memory:
            reader.counts["opened"] += 1
            for _ in range(draw.randint(1, 400)):
                if time.monotonic() > until:
                    break
                question = draw.choices(questions, [4, 8, 5, 6, 1])[0]
                started = time.monotonic()
                try:
                    question(memory, draw)
                except Exception as error:
                    reader.says(False, f"{question.__name__}: {type(error).__name__}: {error}")
                slowest = max(slowest, time.monotonic() - started)
                reader.counts[question.__name__] += 1
    counts = dict(reader.counts)
    return {
        "who": f"reader {number}",
        "counts": counts,
        "clock": reader.now,
        "slowest_s": round(slowest, 2),
        "wrong": reader.wrong,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--kill", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="racm3-readers-"))
    try:
        with FaissMemory(place / "memory") as memory:
            memory.bind(ENCODER)
        until = time.monotonic() + 60 * given.minutes
        with ProcessPoolExecutor(READERS, mp_context=multiprocessing.get_context("fork")) as pool:
            done = [pool.submit(read, place / "memory", given.seed, until, number) for number in range(READERS)]
            said = [writers(place / "memory", given.seed, until, given.kill), *(one.result() for one in done)]
    finally:
        shutil.rmtree(place)
    wrong = [f"{one['who']}: {sentence}" for one in said for sentence in one.pop("wrong")]
    result = {"minutes": given.minutes, "seed": given.seed, "processes": said, "wrong": wrong}
    finish(result, given.out, wrong=wrong)


if __name__ == "__main__":
    main()
