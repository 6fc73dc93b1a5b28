"""One store in a process of its own, at the service of memory_speed.py: a JSON line in for each thing to do, one out.

memory_speed.py starts it: python memory_worker.py STORE FOLDER DATA DOCUMENTS
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from memory_data import FILTERS, Data, K, filter_of
from memory_stores import STORES, Found, Racm3

ASKED, HELD_OUT = 200, 50  # queries: those that are timed, and after them those by which a store's knob is set
ENOUGH = 0.99  # of recall
TIE = 1e-6  # float32 cannot tell scores apart that are so near
PATIENCE = 3.0  # seconds for the recall of one setting
SETTLED = 0.01  # seconds after which the threads of a search have gone to sleep
WAKING = 20  # queries that are not timed, after which a processor that has slept is as quick as it gets


class Worker:
    """Each public method is something that can be asked of it; times are in milliseconds unless they say seconds."""

    def __init__(self, name: str, folder: Path, data: Data) -> None:
        self._store, self._data = STORES[name](folder), data
        self._queries = data.queries(ASKED + HELD_OUT, seed=0)
        self._raw: Raw | None = None
        self._fields: dict[str, np.ndarray] | None = None

    def create(self) -> None:
        self._store.create()

    def open(self) -> None:
        self._store.open()

    def close(self) -> None:
        self._store.close()

    def add(self, start: int, stop: int, seconds: float) -> dict[str, Any]:
        """Add documents in bulk, until the time is over: how many are in, and the seconds that it took."""
        spent = 0.0
        while start < stop and spent < seconds:
            documents = self._data.documents(start, min(start + self._store.batch, stop))
            began = time.perf_counter()
            self._store.add(documents)
            spent += time.perf_counter() - began
            start = documents.rows.stop
        return {"held": start, "seconds": spent}

    def index(self) -> float:
        """Seconds."""
        began = time.perf_counter()
        self._store.index()
        return time.perf_counter() - began

    def add_singly(self, start: int, n: int) -> list[float]:
        documents = self._data.documents(start, start + n)
        return [self._timed(lambda one=one: self._store.add(one))[0] for one in documents.batches(1)]  # type: ignore[misc]

    def tune(self, kind: str, truth: str, held: int) -> dict[str, Any]:
        """Set the cheapest of the store's knobs that finds enough; the one that finds most, where none does."""
        nearest = self._truth(kind, truth, held)[ASKED:]
        tried = []
        for knob in self._store.knobs:
            self._store.tune(knob)
            found, began = list[list[int]](), time.perf_counter()
            while len(found) < HELD_OUT and (len(found) < 10 or time.perf_counter() - began < PATIENCE):
                found.append(self._ask(ASKED + len(found), kind)[1])
            tried.append((self._recall(found, nearest, kind, ASKED), knob))
            if tried[-1][0] >= ENOUGH:
                break
        share, knob = max(tried, key=lambda pair: pair[0])
        if knob != tried[-1][1]:
            self._store.tune(knob)
        return {"knob": knob, "recall_held_out": share}

    def searches(self, kind: str, first: int, n: int, seconds: float, truth: str, held: int) -> dict[str, Any]:
        """Queries one by one, after one that is not timed, until the time is over; and the recall of what they found."""
        self._ask(first - 1, kind)
        times, found = list[float](), list[list[int]]()
        while len(times) < n and sum(times) < seconds * 1000:
            spent, rows = self._ask(first + len(times), kind)
            times.append(spent)
            found.append(rows)
        nearest = self._truth(kind, truth, held)[first : first + len(found)]
        return {"ms": times, "recall": self._recall(found, nearest, kind, first)}

    def open_and_ask(self, knob: dict[str, int] | None = None, filters: Sequence[str] = FILTERS[1:]) -> dict[str, Any]:
        """Open the store and search once; then with filters that this process has not met, and with these once more."""
        began = time.perf_counter()
        self._store.open()
        self._store.knob = knob or self._store.knob
        self._ask(0, "none")
        answer: dict[str, Any] = {"first_answer": (time.perf_counter() - began) * 1000}
        for kind in filters:
            for again in ("first", "repeated"):
                answer[f"{kind}_{again}"] = [self._ask(query, kind)[0] for query in range(2)]
        return answer

    def memory(self, searches: int, seconds: float) -> dict[str, int]:
        """Bytes of this process, and of those that it started, after some searches."""
        began = time.perf_counter()
        for query in range(searches):
            self._ask(query, "none")
            if time.perf_counter() - began > seconds:
                break
        return resident()

    def make_raw(self, truth: str, held: int, by_factory: bool) -> None:
        """Make ready the index of raw faiss that a search of racm3 is compared with; by_factory: one as faiss makes it."""
        assert isinstance(self._store, Racm3)
        self._raw = Raw(self._store.folder / "memory", self._data.vectors[:held])
        if by_factory:
            nearest, asked = self._truth("none", truth, held)[:ASKED], self._queries[:ASKED]
            self._raw.make_by_factory(
                self._data.vectors[:held], lambda found: self._recall(found, nearest, "none", 0) >= ENOUGH, asked
            )

    def beside_raw(
        self, first: int, n: int, threshold: int | None, together: int, raw_begins: bool, rested: bool
    ) -> dict[str, Any]:
        """Ids and scores of `together` queries at a time, n times by racm3 and n times by raw faiss; not in turn, since the
        threads of the one would still be waiting for more, and slow the other down.

        threshold: of faiss, the queries from which on it uses BLAS; None: as it comes. rested: time the first query after the
        pause, too; otherwise some others come before it.
        """
        import faiss

        assert isinstance(self._store, Racm3) and self._raw is not None
        usual = faiss.cvar.distance_compute_blas_threshold
        if threshold is not None:
            faiss.cvar.distance_compute_blas_threshold = threshold
        asked = [self._queries[(first + query + np.arange(together)) % ASKED] for query in range(n)]
        searches: list[tuple[str, Callable[[np.ndarray], Any]]] = [("racm3", self._scored), ("raw", self._raw.search)]
        waking = [] if rested else [self._queries[ASKED + query % HELD_OUT][None] for query in range(WAKING)]
        times = {}
        try:
            for name, search in searches[:: -1 if raw_begins else 1]:
                time.sleep(SETTLED)
                for one in waking:
                    search(one)
                times[name] = [self._timed(lambda one=one, search=search: search(one))[0] for one in asked]  # type: ignore[misc]
        finally:
            faiss.cvar.distance_compute_blas_threshold = usual
        return times

    def recall_raw(self, truth: str, held: int) -> dict[str, float]:
        """The recall of both, of all queries at once and one by one."""
        assert isinstance(self._store, Racm3) and self._raw is not None
        nearest, asked = self._truth("none", truth, held)[:ASKED], self._queries[:ASKED]
        together = [[int(id) for id, _ in hits] for hits in self._scored(asked)]
        singly = [[int(id) for id, _ in self._scored(one[None])[0]] for one in asked]
        return {
            "racm3": min(self._recall(together, nearest, "none", 0), self._recall(singly, nearest, "none", 0)),
            "raw": self._recall(self._raw.search(asked)[1].tolist(), nearest, "none", 0),
        }

    def _scored(self, queries: np.ndarray) -> list[list[tuple[str, float]]]:
        assert isinstance(self._store, Racm3)
        return [[(hit.id, hit.score) for hit in hits] for hits in self._store.hits(queries, K)]

    def _ask(self, query: int, kind: str) -> tuple[float, list[int]]:
        """A query by its number, with all texts read: milliseconds, and the rows that were found."""
        asked = self._queries[query % len(self._queries)][None]
        where = filter_of(kind, query % len(self._queries))
        spent, answer = self._timed(lambda: self._store.search(asked, K, where))
        found: Found = answer[0]
        assert all(len(text) > 0 for _, text in found)
        return spent, [row for row, _ in found]

    def _recall(self, found: list[list[int]], nearest: np.ndarray, kind: str, first: int) -> float:
        """The share of the truly nearest that was found, by queries from a number on. What is as near as the last of
        these counts as one of them; what the filter does not let through does not count."""
        if self._fields is None:
            self._fields = dict(zip(FILTERS[1:], self._data.fields(), strict=True))
        shares = []
        for query, rows, true in zip(range(first, first + len(found)), found, nearest, strict=False):
            asked, true = self._queries[query].astype(np.float64), true[true >= 0]
            where, chosen = filter_of(kind, query), np.unique(np.array(rows, dtype=np.int64))
            if where is not None:
                chosen = chosen[self._fields[where[0]][chosen] == where[1]]
            least = (self._data.vectors[true].astype(np.float64) @ asked).min()
            near = self._data.vectors[chosen].astype(np.float64) @ asked >= least - TIE
            shares.append(min(near.sum() / len(true), 1.0))
        return float(np.mean(shares))

    def _truth(self, kind: str, path: str, held: int) -> np.ndarray:
        with np.load(path, allow_pickle=False) as saved:
            return saved[kind][saved["held"].tolist().index(held)]

    @staticmethod
    def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
        began = time.perf_counter()
        answer = call()
        return (time.perf_counter() - began) * 1000, answer


class Raw:
    """What a memory searches, by faiss alone: the index of its snapshot, as widely; beside an exact one IndexFlatIP."""

    def __init__(self, memory: Path, vectors: np.ndarray) -> None:
        import faiss

        made = json.loads((memory / "index.json").read_text(encoding="utf-8"))["index"]
        self.parameters: Any = None
        self.kind = "exact" if made is None else made["kind"]
        if made is None:
            self.index: Any = faiss.IndexFlatIP(vectors.shape[1])
            self._fill(vectors)
        else:
            self.index = faiss.read_index(str(memory / made["file"]))
            self._look(made["effort"])

    def make_by_factory(
        self, vectors: np.ndarray, enough: Callable[[list[list[int]]], bool], queries: np.ndarray
    ) -> None:
        """Put one in its place as faiss's factory makes it: of hnsw a graph of its own with its defaults, looking no further
        than to find enough; of ivf the same cells, as widely, found by their centres in float32."""
        import faiss

        if self.kind == "hnsw":
            self.index = faiss.index_factory(vectors.shape[1], "HNSW32_SQfp16", faiss.METRIC_INNER_PRODUCT)
            self.index.train(np.array(vectors[:1000]))
            self._fill(vectors)
            effort = K
            self._look(effort)
            while not enough(self.search(queries)[1].tolist()) and effort < 2048:
                effort = effort * 5 // 4
                self._look(effort)
        else:
            centres, by_codes = faiss.IndexFlatIP(vectors.shape[1]), faiss.downcast_index(self.index.quantizer)
            centres.add(by_codes.refine_index.reconstruct_n(0, self.index.nlist))
            self.index.own_fields = False
            self.index.quantizer = centres
            self._kept = centres, by_codes

    def _fill(self, vectors: np.ndarray) -> None:
        for start in range(0, len(vectors), 50_000):
            self.index.add(np.array(vectors[start : start + 50_000]))

    def _look(self, effort: int) -> None:
        import faiss

        if self.kind == "hnsw":
            self.parameters = faiss.SearchParametersHNSW(efSearch=effort)
        else:
            self.parameters = faiss.SearchParametersIVF(nprobe=effort)

    def search(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.index.search(queries, K, params=self.parameters)


def resident() -> dict[str, int]:
    """Linux: bytes of memory of this process and its children, by kind."""
    total = {"rss": 0, "pss": 0, "anonymous": 0}
    processes = [os.getpid()]
    for process in processes:
        for task in Path(f"/proc/{process}/task").iterdir():
            processes += [int(child) for child in (task / "children").read_text().split()]
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]:
            name, amount = line.split()[:2]
            if (kind := name.rstrip(":").lower()) in total:
                total[kind] += int(amount) * 1024
    return total


class Failed(Exception):
    """A store has not done what it was asked."""


class Process:
    """A worker, from outside. folder: the store's; scratch: of the data, and a log; prefix: a command that runs it."""

    def __init__(
        self, store: str, folder: Path, data: Data, scratch: Path, threads: int, prefix: Sequence[str] = ()
    ) -> None:
        quiet = {
            "ANONYMIZED_TELEMETRY": "False",
            "HF_HUB_OFFLINE": "1",
            "DO_NOT_TRACK": "1",
            "PYTHONWARNINGS": "ignore",
        }
        cores = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"), str(threads))
        self._log = scratch / f"{store}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*prefix, sys.executable, __file__, store, str(folder), str(scratch), str(data.count)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, **quiet, **cores},
            )
        try:
            self.import_seconds: float = self._answer(600)
        except Failed:
            self.end()
            raise

    def __call__(self, do: str, *, patience: float = 300, **arguments: Any) -> Any:
        """Have something done. Raises `Failed` when it fails, or takes longer than so many seconds."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write((json.dumps({"do": do, **arguments}) + "\n").encode())
            self._process.stdin.flush()
        except OSError as error:
            raise Failed(f"{do}: it has ended") from error
        try:
            return self._answer(patience)
        except Failed as error:
            raise Failed(f"{do}: {error}") from None

    def _answer(self, patience: float) -> Any:
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(patience):
                self.end()
                raise Failed(f"not done after {patience / 60:.1f} minutes")
        line = self._process.stdout.readline()
        if not line:
            said = self._log.read_text(errors="replace").strip().splitlines()[-1:]
            raise Failed(f"it has ended, with status {self._process.wait()}: {said}")
        answer = json.loads(line)
        if "error" in answer:
            raise Failed(answer["error"])
        return answer["answer"]

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


def main() -> None:
    # What a store prints is not an answer.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    name, folder, data, documents = sys.argv[1:]
    worker = Worker(name, Path(folder), Data(Path(data), int(documents)))
    began = time.perf_counter()
    STORES[name].imports()
    answers.write(json.dumps({"answer": time.perf_counter() - began}) + "\n")
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            answer = {"answer": getattr(worker, asked.pop("do"))(**asked)}
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"[:300]}
        answers.write(json.dumps(answer) + "\n")
    os._exit(0)  # threads of some stores would keep it


if __name__ == "__main__":
    main()
