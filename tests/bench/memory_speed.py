"""FaissMemory beside raw faiss and beside other stores: searching, filtering, adding, opening, room.

    pip install chromadb lancedb pymilvus milvus-lite qdrant-client langchain-community
    python tests/bench/memory_speed.py --documents 100000
    python tests/bench/memory_speed.py --documents 1000000

Linux. Every store is in a process of its own and does the same as the others in turn, in rounds of random order, one of
them at a time. Writes memory_speed.<documents>.json beside this file and makes memory_speed.md of all of these; nothing
is fetched. A million documents take 40 GB of disk below --folder, and 16 GB of memory. Of fewer, the files of a store are
read before its turn, so that they are in memory whatever the system, or what it runs on, takes back in between; before
documents are added one by one also of more, where those of all stores that are added to fit in memory together.

--stores: by their names, or how these begin; as a rule all, and of a million documents racm3, chromadb and lancedb; what is not
installed is left out. --name: of a run that is kept beside another one of as many documents, whose stores would not fit into
memory together with its own. --limit-minutes: for the adding of one store, and for the making of its index. A store that does
not get so far is measured with what it holds, and the table says so; one that is seen from the beginning not to get so
far is given a third of the time.
--threads: cores that may be used; all of them unless said otherwise.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import random
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import memory_report
import numpy as np
from memory_data import DIM, FILTERS, TEXT, Data, nearest
from memory_stores import STORES, named
from memory_worker import ASKED, HELD_OUT, Failed, Process

MANY, QUICK = 500_000, ["racm3", "chromadb", "lancedb"]  # from so many documents on only these
BLOCKS = 10  # rounds of bulk adding
SLOT = 10  # queries of each store in a round of searching
ADDED = 40  # documents that each store is given one by one in a round: the first take longer, until a log has its size
OPENINGS = 3
SMALL = 1000  # documents of the store whose memory is taken off
SECTION = 8.0  # seconds that a store may search for in all rounds together
HERE = Path(__file__).parent


class Bench:
    """All of it in order; `result` is what is written."""

    def __init__(self, given: argparse.Namespace, data: Data) -> None:
        self.given, self.data, self.truth = given, data, str(given.folder / "truth.npz")
        self.order = random.Random(0)
        self.live: dict[str, Process] = {}
        self.warms = data.count < MANY
        self.result: dict[str, Any] = {
            "documents": data.count, "name": given.name, "warmed": self.warms, "stores": {}, "raw": {}, "not_run": {},
        }  # fmt: skip

    @property
    def stores(self) -> dict[str, dict[str, Any]]:
        return self.result["stores"]

    def start(self, store: str, folder: str = "full", prefix: list[str] | None = None) -> Process:
        path = self.path(store, folder)
        path.mkdir(parents=True, exist_ok=True)
        return Process(store, path, self.data, self.given.folder, self.given.threads, prefix or [])

    def path(self, store: str, folder: str) -> Path:
        return self.given.folder / store.replace(" ", "-") / folder

    @contextlib.contextmanager
    def trying(self, store: str, what: str) -> Iterator[None]:
        """A store that fails is out of what is measured then, with the reason, and the others go on."""
        try:
            yield
        except Failed as error:
            self.result["not_run"][f"{store}: {what}"] = str(error)
            self.say(f"{store}: {what}: {error}")
            if store in self.live:
                self.live.pop(store).end()

    def say(self, what: str) -> None:
        print(f"{time.monotonic() - self.given.began:6.0f} s  {what}", file=sys.stderr, flush=True)

    def shuffled(self, stores: Any) -> list[str]:
        names = list(stores)
        self.order.shuffle(names)
        return names

    # Adding

    def ingest(self, names: list[str]) -> None:
        count, limit = self.data.count, self.given.limit_minutes * 60
        makers = [name for name in names if not STORES[name].__name__.startswith("Racm3") or name == "racm3 exact"]
        limits: dict[str, float] = {}
        for name in makers:
            with self.trying(name, "small store"):
                small = self.start(name, "small")
                if not STORES[name].persistent:
                    self.live[name] = small  # it has to stay
                small("create")
                done = small("add", start=0, stop=SMALL, seconds=20)
                pace = done["held"] / done["seconds"]
                small("index")
                if STORES[name].persistent:
                    small("close")
                    small.end()
                    self.live[name] = self.start(name)
                else:
                    self.stores[name] = {"small_memory": small("memory", searches=100, seconds=10)}
                self.live[name]("create")
                self.stores.setdefault(name, {}).update(held=0, small=done["held"], ingest=[], ingest_seconds=0.0)
                limits[name] = limit if count / pace < limit else limit / 3
        edges = [count * block // BLOCKS for block in range(BLOCKS + 1)]
        for block in range(BLOCKS):
            for name in self.shuffled(self.live):
                store = self.stores[name]
                left = limits[name] - store["ingest_seconds"]
                if store["held"] < edges[block] or left <= 0:
                    store["ingest"].append(None)
                    continue
                with self.trying(name, "bulk adding"):
                    stop = edges[block + 1]
                    done = self.live[name]("add", start=edges[block], stop=stop, seconds=left, patience=left + 120)
                    store["ingest"].append((done["held"] - edges[block]) / done["seconds"])
                    store["held"] = done["held"]
                    store["ingest_seconds"] += done["seconds"]
            self.say(f"{edges[block + 1]:,} documents: { ({name: one['held'] for name, one in self.stores.items()}) }")
        self.index([name for name in makers if name in self.live], limit)
        for name in names:
            if name not in makers and self.stores.get("racm3 exact", {}).get("held"):
                for folder in ("small", "full"):
                    shutil.copytree(self.path("racm3 exact", folder), self.path(name, folder))
                with self.trying(name, "copy"):
                    self.live[name] = self.start(name)
                    self.live[name]("open")
                    self.stores[name] = {key: self.stores["racm3 exact"][key] for key in ("held", "small")}
                    self.index([name], limit)

    def index(self, names: list[str], limit: float) -> None:
        for name in names:
            with self.trying(name, "making the index"):
                self.stores[name]["index_seconds"] = self.live[name]("index", patience=2 * limit)
                self.say(f"{name}: its index took {self.stores[name]['index_seconds']:.1f} s")
                if STORES[name].persistent:
                    self.live[name]("close", patience=2 * limit)
                    self.live.pop(name).end()
                    files = [path for path in self.path(name, "full").rglob("*") if path.is_file()]
                    self.stores[name]["bytes"] = sum(path.stat().st_blocks * 512 for path in files)
                self.stores[name]["ready"] = True

    # Searching

    def searching(self) -> None:
        self.resume([name for name, store in self.stores.items() if store.get("ready") and name not in self.live])
        for kind in FILTERS:
            tuned, spent = list[str](), dict[str, float]()
            for name in list(self.live):
                with self.trying(name, f"search, {kind}"):
                    chosen = self.live[name]("tune", kind=kind, **self.against(name))
                    self.stores[name].setdefault("search", {})[kind] = {**chosen, "rounds": [], "recalls": []}
                    tuned.append(name)
            for number in range(self.given.rounds):
                for name in self.shuffled(tuned):
                    if name not in self.live or spent.get(name, 0) > SECTION:
                        self.stores[name]["search"][kind]["rounds"].append(None)
                        continue
                    with self.trying(name, f"search, {kind}"):
                        self.warm(name)
                        ask = {"kind": kind, "first": number * SLOT, "n": SLOT, "seconds": 1.0}
                        began = time.monotonic()
                        found = self.live[name]("searches", **ask, **self.against(name))
                        spent[name] = spent.get(name, 0) + time.monotonic() - began
                        self.stores[name]["search"][kind]["rounds"].append(median(found["ms"]))
                        self.stores[name]["search"][kind]["recalls"].append(found["recall"])
            self.say(f"searched, filter {kind}")

    def warm(self, name: str, always: bool = False) -> None:
        """Bring the files of a store into memory, where all stores fit."""
        if self.warms or always:
            for path in self.path(name, "full").rglob("*"):
                if path.is_file():
                    with path.open("rb", buffering=0) as file:
                        while file.read(2**24):
                            pass

    def against(self, name: str) -> dict[str, Any]:
        return {"truth": self.truth, "held": self.stores[name]["held"]}

    def beside_raw(self) -> None:
        """Rounds of racm3 and raw faiss in one process, so that nothing but the calls differs."""
        for name in [name for name in self.live if name in ("racm3 exact", "racm3 hnsw", "racm3 ivf")]:
            with self.trying(name, "beside raw faiss"):
                process = self.live[name]
                process("make_raw", by_factory=False, **self.against(name))
                raw: dict[str, Any] = {"recall": process("recall_raw", **self.against(name))}
                raw["one"] = self.rounds(name, SLOT, 1, {"as it comes": None})
                raw["one"] |= self.rounds(name, SLOT, 1, {"as it comes, after a pause": None}, rested=True)
                if name != "racm3 exact":
                    process("make_raw", by_factory=True, **self.against(name))
                    raw["recall_by_factory"] = process("recall_raw", **self.against(name))
                    raw["one"] |= self.rounds(name, SLOT, 1, {"by its factory": None})
                else:
                    # From so many queries on it uses BLAS: for one already, or not even for 200.
                    raw["one"] |= self.rounds(name, SLOT, 1, {"BLAS": 1})
                    raw["200"] = self.rounds(name, 1, 200, {"as it comes": None})
                    raw["200"] |= self.rounds(name, 1, 200, {"no BLAS": 10**9}, least=1)
                self.result["raw"][name] = raw
        self.say("beside raw faiss")

    def rounds(
        self, name: str, n: int, together: int, thresholds: dict[str, int | None], least: int = 5, rested: bool = False
    ) -> dict[str, dict[str, list]]:
        """By way of faiss: medians of both for each round, and of their differences. rested: see `Worker.beside_raw`."""
        answer: dict[str, dict[str, list]] = {}
        for way, threshold in thresholds.items():
            made: dict[str, list] = {"racm3": [], "raw": [], "more": []}
            began = time.monotonic()
            while len(made["raw"]) < self.given.rounds and (
                len(made["raw"]) < least or time.monotonic() - began < SECTION
            ):
                self.warm(name)
                turn = len(made["raw"])
                asked = {"first": turn * SLOT, "n": n, "together": together, "rested": rested or together > 1}
                times = self.live[name]("beside_raw", **asked, threshold=threshold, raw_begins=turn % 2 == 1)
                pairs = list(zip(times["racm3"], times["raw"], strict=True))
                made["racm3"].append(median(times["racm3"]))
                made["raw"].append(median(times["raw"]))
                made["more"].append(median(ours - raw for ours, raw in pairs))
            answer[way] = made
        return answer

    # Opening

    def openings(self) -> None:
        """In fresh processes, with the setting at which a store was searched."""
        ready = self.pause()
        for name in ready:
            self.stores[name].update(import_seconds=[], open=[])
        for opening in range(OPENINGS):
            for name in self.shuffled(ready):
                store = self.stores[name]
                knob = store.get("search", {}).get("none", {}).get("knob", STORES[name].knobs[-1])
                if opening == 0:
                    for folder, what in (("small", "small_memory"), ("full", "memory")):
                        with self.trying(name, what), self.start(name, folder) as process:
                            process("open_and_ask", knob=knob, filters=[])
                            store[what] = process("memory", searches=100, seconds=10)
                self.warm(name)
                with self.trying(name, "opening"), self.start(name) as process:
                    store["import_seconds"].append(process.import_seconds)
                    store["open"].append(process("open_and_ask", knob=knob))
        for name in self.live:
            with self.trying(name, "memory"):
                self.stores[name]["memory"] = self.live[name]("memory", searches=100, seconds=10)
        self.say("opened")

    def pause(self) -> list[str]:
        """End the processes of the stores that can be opened again; gives these."""
        names = [name for name, store in self.stores.items() if store.get("ready") and STORES[name].persistent]
        for name in [name for name in names if name in self.live]:
            with self.trying(name, "closing"):
                self.live[name]("close")
                self.live.pop(name).end()
        return names

    def resume(self, names: list[str]) -> None:
        for name in names:
            with self.trying(name, "opening again"):
                self.live[name] = self.start(name)
                self.live[name]("open")

    # Adding one by one

    def single_adds(self) -> None:
        ready = [name for name, store in self.stores.items() if store.get("open")]
        names = [name for name in ready if not name.startswith("racm3") or name == "racm3 exact"]
        room = 0.8 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        self.result["warmed_for_adding"] = sum(self.stores[name].get("bytes", 0) for name in names) < room
        self.resume(names)
        bare: list[float] = []
        with (self.given.folder / "bare").open("wb", buffering=0) as file:
            for number in range(self.given.rounds):
                for name in self.shuffled([*names, "bare"]):
                    if name == "bare":
                        bare.append(median(timed(lambda: written(file)) for _ in range(ADDED)))
                    elif name in self.live:
                        with self.trying(name, "adding one"):
                            self.warm(name, always=self.result["warmed_for_adding"])
                            # The first is not counted: it begins the writing.
                            first = self.data.count + number * (ADDED + 1)
                            times = self.live[name]("add_singly", start=first, n=ADDED + 1)[1:]
                            self.stores[name].setdefault("single", []).append(median(times))
        self.result["bare_fsync"] = bare
        self.say("added one by one")
        if shutil.which("strace"):
            for name in names:
                with self.trying(name, "counting of fsync"):
                    self.stores[name]["fsyncs"] = self.fsyncs(name)
        self.say("counted the fsyncs")

    def fsyncs(self, name: str) -> float:
        """How often a store asks the system to write to disk, for each document that is added singly."""
        log, calls = self.given.folder / "strace.txt", "fsync,fdatasync,msync,sync_file_range,syncfs,sync"
        strace = ["strace", "-f", "-qq", "-e", f"trace={calls}", "-o", str(log)]
        with self.start(name, "traced", strace) as process:
            process("create")
            process("add_singly", start=0, n=5)
            before = log.read_text().count("\n")
            process("add_singly", start=5, n=10)
            after = log.read_text().count("\n")
        return (after - before) / 10


def written(file: Any) -> None:
    file.write(bytes(TEXT + 4 * DIM + 64))  # as much as a document
    os.fsync(file.fileno())


def timed(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return (time.perf_counter() - began) * 1000


def installed(name: str) -> bool:
    try:
        return all(importlib.metadata.version(package) for package in STORES[name].packages)
    except importlib.metadata.PackageNotFoundError:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--stores", nargs="*")
    parser.add_argument("--name", default="")
    parser.add_argument("--limit-minutes", type=float)
    parser.add_argument("--rounds", type=int, default=20, help="of searching, at most 20")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--folder", type=Path, help="of what is stored meanwhile: on the disk that is to be measured")
    parser.add_argument("--out", type=Path, default=HERE)
    given = parser.parse_args()
    if given.limit_minutes is None:
        given.limit_minutes = 3 if given.documents < MANY else 6
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given.threads])
    given.began = time.monotonic()
    wanted = named(given.stores or (list(STORES) if given.documents < MANY else QUICK))
    given.folder = Path(tempfile.mkdtemp(prefix="racm3-speed-", dir=given.folder))
    bench = Bench(given, Data(given.folder, given.documents))
    try:
        names = [name for name in wanted if installed(name)]
        for name in STORES:
            if name not in names:
                bench.result["not_run"][name] = "not asked for" if name not in wanted else "not installed"
        bench.result["machine"] = memory_report.machine(given.threads)
        bench.ingest(names)
        held = sorted({store["held"] for store in bench.stores.values()})
        asked = bench.data.queries(ASKED + HELD_OUT, seed=0)
        np.savez(bench.truth, held=np.array(held), **nearest(bench.data, asked, held))  # type: ignore[arg-type]
        bench.say("computed what is nearest")
        bench.searching()
        bench.beside_raw()
        bench.openings()
        bench.single_adds()
    finally:
        for process in bench.live.values():
            process.end()
        shutil.rmtree(given.folder)
    command = ["python", "tests/bench/memory_speed.py", *sys.argv[1:]]
    bench.result |= {"command": shlex.join(command), "seconds": round(time.monotonic() - given.began)}
    path = given.out / ".".join(filter(None, ["memory_speed", str(given.documents), given.name, "json"]))
    path.write_text(json.dumps(memory_report.rounded(bench.result), indent=1) + "\n", encoding="utf-8")
    (given.out / "memory_speed.md").write_text(memory_report.table(given.out), encoding="utf-8")


if __name__ == "__main__":
    main()
