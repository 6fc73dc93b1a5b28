"""What a memory is after faults: python tests/bench/memory_faults.py [--every 1] [--moments 2000] [--out FILE.json]

Linux, with a C compiler. A process goes through everything that changes a memory, and at each call of it that changes a
file (faults.c, preloaded, counts them) it is killed, killed in the middle of the write, or the disk is full, broken, or
takes half of a write; then it is killed at random moments of random work. After each of these the memory is opened and
compared with what was acknowledged: the documents, their vectors, every checksum, and what searches find; and an import or
an export that was stopped is begun again. Exit status 1,
and a sentence for each, when anything is other than promised.

--every: of the calls only each n-th; 0: none. --moments: random kills.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import logging
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from racm3.document import Document, Image
from racm3.errors import MemoryStoreError, RACM3Error
from racm3.interfaces import Encoder
from racm3.memories import approximate, shards
from racm3.memories.faiss import FaissMemory
from racm3.memories.shards import Export, export_memory, import_memory

KINDS = ("none", "kill", "tear", "full", "broken", "short")  # as in faults.c
DIM = 8
ENCODER = Encoder("faults", DIM)
IMPORTED = "imported"  # beside the memory: shards
CHAIN = 25  # random kills that one memory goes through
LIMIT = 5.0  # seconds that opening and checking may take

State = dict[str, int]  # id -> version, in the order of adding


class Step(NamedTuple):
    """Something that is done with a memory. names: the documents that it is about."""

    kind: str
    names: tuple[str, ...] = ()

    def run(self, memory: FaissMemory, state: State, place: Path) -> None:
        if self.kind == "bind":
            memory.bind(ENCODER)
        elif self.kind == "add":
            memory.add([document(name, 0) for name in self.names], vectors(dict.fromkeys(self.names, 0)))
        elif self.kind == "replace":
            new = {name: state[name] + 1 for name in self.names}
            memory.add([document(*one) for one in new.items()], vectors(new), on_duplicate="replace")
        elif self.kind == "delete":
            memory.delete(self.names)
        elif self.kind == "search":
            memory.search(vectors({"query": 0}), k=3, where={"even": True})
        elif self.kind == "export":
            memory.export_read_only(place / "export", snapshot=True)
        elif self.kind == "shards":
            export_memory(memory, place / "shards", shard_bytes=2**14)
        elif self.kind == "import":
            import_memory(place.parent / IMPORTED, memory)
        elif self.kind in approximate.NAMES:
            memory.reindex(self.kind)
        else:
            {"flush": memory.flush, "compact": memory.compact}[self.kind]()

    def between(self, state: State) -> list[State]:
        """What a memory may hold when the step was not finished, besides what it held before it and holds after it."""
        if self.kind != "import":
            return []
        missing = [name for name in self.names if name not in state]
        return [{**state, **dict.fromkeys(missing[:n], 0)} for n in range(1, len(missing) + 1)]

    def effect(self, state: State) -> State:
        if self.kind == "import":
            return {**state, **{name: 0 for name in self.names if name not in state}}
        left = {name: version for name, version in state.items() if name not in self.names}
        if self.kind == "add":
            return {**left, **dict.fromkeys(self.names, 0)}
        return {**left, **{name: state[name] + 1 for name in self.names}} if self.kind == "replace" else left


def document(name: str, version: int) -> Document:
    seed = zlib.crc32(f"{name} {version}".encode())
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    parts = [f"{name}, version {version}", *([Image(pixels)] if seed % 2 else [])]
    return Document(parts, id=name, metadata={"even": seed % 4 < 2, "version": version})


def vectors(state: State) -> np.ndarray:
    rows = [np.random.default_rng(zlib.crc32(f"{one} vector".encode())).standard_normal(DIM) for one in state.items()]
    made = np.array(rows, dtype=np.float32).reshape(-1, DIM)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def names(first: int, n: int, letter: str = "d") -> tuple[str, ...]:
    return tuple(f"{letter}{number}" for number in range(first, first + n))


# Everything of ours that touches the disk, and some of it twice: the second time there is something to take away.
EVERYTHING = [
    Step("bind"), Step("add", names(0, 4)), Step("search"), Step("flush"), Step("add", names(4, 3)),
    Step("replace", ("d1", "d5")), Step("delete", ("d0", "d6")), Step("flush"), Step("add", names(7, 2)),
    Step("compact"), Step("hnsw"), Step("import", names(0, 5, "i")), Step("ivf"), Step("exact"), Step("export"), Step("shards"),
]  # fmt: skip


def random_steps(draw: random.Random, state: State) -> Iterator[Step]:
    fresh = max((int(name[1:]) for name in state if name[0] == "d"), default=0) + 1
    while True:
        kind = draw.choices(
            ["add", "replace", "delete", "search", "flush", "compact", "hnsw", "ivf", "exact", "import"],
            [16, 6, 4, 4, 4, 2, 1, 1, 1, 1],
        )[0]
        if kind == "add":
            step = Step(kind, names(fresh, draw.randint(1, 20)))
            fresh += len(step.names)
        elif kind in ("replace", "delete"):
            step = Step(kind, tuple(draw.sample(sorted(state), min(len(state), draw.randint(1, 5)))))
        else:
            step = Step(kind, names(0, 5, "i") if kind == "import" else ())
        yield step
        state = step.effect(state)


# One process


def work(place: Path, steps: Iterator[Step], state: State, say: Callable[[Any], None], *, survives: bool) -> None:
    """Open a memory and do what is asked, telling of each step that is done; at the end tell how many calls there were.

    survives: a step may fail by an error of ours; then what was there can still be read, and it succeeds when the disk
    is well again.
    """
    shim = ctypes.CDLL(None)

    def attempt(do: Callable[[], Any], meanwhile: Callable[[], None]) -> Any:
        try:
            return do()
        except RACM3Error as error:
            if not survives:
                raise
            said = str(error)
        meanwhile()
        shim.faults_arm(bytes(place), 0, 0)
        say(["failed", said])
        return do()

    memory = attempt(lambda: FaissMemory(place / "memory"), lambda: None)
    say("open")
    for step in steps:

        def still_there() -> None:
            if list(memory.items()) != [] and (found := seen(memory)) not in [state, *step.between(state)]:  # noqa: B023
                say(["wrong", f"after a failed {step.kind} there is {found}, not {state}"])  # noqa: B023

        attempt(lambda: step.run(memory, state, place), still_there)  # noqa: B023
        say(step.kind)
        state = step.effect(state)
    memory.close()
    say(["calls", shim.faults_count()])


def in_child(place: Path, kind: str, at: int, task: Callable[[Callable[[Any], None]], None], after: float = 0) -> list:
    """Run a task in a process that meets a fault at a call (or is killed after so many seconds); gives what it said."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)

            def say(what: Any) -> None:
                os.write(writing, (json.dumps(what) + "\n").encode())

            ctypes.CDLL(None).faults_arm(bytes(place), KINDS.index(kind), at)
            try:
                task(say)
            except BaseException as error:
                say(["wrong", f"{type(error).__name__}: {error}"])
        finally:
            os._exit(0)
    os.close(writing)
    if after:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    with os.fdopen(reading) as pipe:
        said = [json.loads(line) for line in pipe]
    os.waitpid(child, 0)
    return said


# What is there afterwards


def seen(memory: FaissMemory) -> State:
    """What a memory holds; -1 stands for a document, or a vector, that was never stored so."""
    state: State = {}
    for found, vector in memory.items():
        version = int(found.metadata.get("version", -1))  # type: ignore[arg-type]
        same = found == document(found.id, version) and np.array_equal(vector, vectors({found.id: version})[0])
        state[found.id] = version if same else -1
    return state


def check(place: Path, allowed: list[State]) -> tuple[State, list[str]]:
    """What a memory holds after a fault, and what is other than promised. allowed: without and with the last step."""
    started, wrong = time.monotonic(), []
    state: State = {}
    try:
        with FaissMemory(place / "memory") as memory:
            state = seen(memory)
            if not any(list(state.items()) == list(one.items()) for one in allowed):
                lost = [name for name in allowed[0] if name not in state and all(name in one for one in allowed)]
                wrong.append(f"lost {lost}" if lost else f"it holds {state}, which is none of {allowed}")
            wrong += memory.verify()
            memory.bind(ENCODER)
            wrong += wrong_answers(memory, state)
            new = f"after{len(state)}-{max(state.values(), default=0)}"
            memory.add([document(new, 0)], vectors({new: 0}), on_duplicate="replace")
            state = Step("add", (new,)).effect(state)
            wrong += wrong_answers(memory, state)
    except Exception as error:
        wrong.append(f"{type(error).__name__}: {error}")
    if time.monotonic() - started > LIMIT:
        wrong.append(f"it took {time.monotonic() - started:.1f} s")
    return state, wrong


def wrong_answers(memory: FaissMemory, state: State) -> list[str]:
    stored, wrong = vectors(state), []
    queries = vectors({"one": 0, "two": 0})
    for where in (None, {"even": True}):
        fits = [where is None or document(*one).metadata["even"] is True for one in state.items()]
        for query, hits in zip(queries, memory.search(queries, k=4, where=where), strict=True):
            rows = zip((stored @ query).tolist(), state, fits, strict=True)
            best = sorted((-score, name) for score, name, fit in rows if fit)[:4]
            if [hit.id for hit in hits] != [name for _, name in best]:
                wrong.append(f"a search finds {[hit.id for hit in hits]}, not {[name for _, name in best]}")
            wrong += [
                f"document {hit.id} is another" for hit in hits if hit.document != document(hit.id, state[hit.id])
            ]
    return wrong


def check_export(place: Path, state: State) -> list[str]:
    """An export that was begun is whole, or can be made again."""
    target = place / "export"
    try:
        if not (target / "memory.db").exists():
            with FaissMemory(place / "memory") as memory:
                memory.export_read_only(target)
        with FaissMemory(target, read_only=True) as memory:
            return [*memory.verify(), *([] if seen(memory) == state else ["the export holds something else"])]
    except Exception as error:
        return [f"export: {type(error).__name__}: {error}"]


def check_shards(place: Path, state: State) -> list[str]:
    """Shards that were begun are whole, or refused and written anew."""
    target = place / "shards"
    try:
        try:
            export = Export(target)
        except MemoryStoreError:
            with FaissMemory(place / "memory") as memory:
                export = export_memory(memory, target)
        with FaissMemory() as copy:
            import_memory(export, copy)
            return [] if seen(copy) == state else ["the shards hold something else"]
    except Exception as error:
        return [f"shards: {type(error).__name__}: {error}"]


def check_import(place: Path, state: State) -> list[str]:
    """An import that was stopped goes on where it is begun again."""
    step = Step("import", names(0, 5, "i"))
    try:
        with FaissMemory(place / "memory") as memory:
            step.run(memory, state, place)
            return [] if seen(memory) == step.effect(state) else [f"after another import it holds {seen(memory)}"]
    except Exception as error:
        return [f"import: {type(error).__name__}: {error}"]


# All of them


def at_every_call(base: Path, every: int, wrong: list[str]) -> dict[str, int]:
    """Every kind of fault at every call that changes a file: how many of each."""
    done: dict[str, int] = {}

    def everything(say: Callable[[Any], None], survives: bool = False) -> None:
        work(base, iter(EVERYTHING), {}, say, survives=survives)

    calls = in_child(base, "none", 0, everything)[-1][1]
    for kind in KINDS[1:]:
        survives = kind not in ("kill", "tear")
        for at in range(1, calls + 1, every):
            fresh(base)
            said = in_child(base, kind, at, lambda say, survives=survives: everything(say, survives))  # type: ignore[misc]
            steps = [one for one in said if isinstance(one, str)][1:]
            state: State = {}
            for step in EVERYTHING[: len(steps)]:
                state = step.effect(state)
            allowed = [state]
            if survives and len(steps) < len(EVERYTHING):
                wrong.append(f"{kind} at call {at}: it did not get further than {steps[-1:]}: {said[-1]}")
            elif not survives and len(steps) < len(EVERYTHING):
                step = EVERYTHING[len(steps)]
                allowed += [*step.between(state), step.effect(state)]
            exported = check_export(base, state) if (base / "export").exists() else []
            exported += check_shards(base, state) if (base / "shards").exists() else []
            found, problems = check(base, allowed)
            problems = exported + problems + check_import(base, found)
            problems += [one[1] for one in said if one[0] == "wrong"]
            wrong += [f"{kind} at call {at}, after {steps[-1:]}: {problem}" for problem in problems]
            done[kind] = done.get(kind, 0) + 1
    return {"calls": calls, **done}


def at_random_moments(base: Path, moments: int, seed: int, wrong: list[str]) -> dict[str, int]:
    """Kills under load. Counts also those in the middle of a step, and the documents that had been acknowledged."""
    draw, state, documents = random.Random(seed), dict[str, int](), 0
    for moment in range(moments):
        if moment % CHAIN == 0:
            fresh(base)
            state = {}
        plan = draw.randrange(2**32)

        def load(say: Callable[[Any], None], plan: int = plan, state: State = state) -> None:
            work(base, _bound(random_steps(random.Random(plan), state)), state, say, survives=False)

        said = in_child(base, "none", 0, load, after=0.002 + draw.random() * 0.1)
        wrong += [f"moment {moment}: {one[1]}" for one in said if one[0] == "wrong"]
        steps = _bound(random_steps(random.Random(plan), state))
        for _ in [one for one in said if isinstance(one, str)][1:]:
            state = next(steps).effect(state)
        documents += len(state)
        step = next(steps)
        found, problems = check(base, [state, *step.between(state), step.effect(state)])
        wrong += [f"moment {moment}: {problem}" for problem in problems]
        state = found
    return {"moments": moments, "acknowledged_documents_looked_for": documents}


def _bound(steps: Iterator[Step]) -> Iterator[Step]:
    yield Step("bind")
    yield from steps


def imported(base: Path) -> None:
    """Shards to import, in several transactions."""
    shards.BATCH = 2
    state = dict.fromkeys(names(0, 5, "i"), 0)
    with FaissMemory() as memory:
        memory.bind(ENCODER)
        memory.add([document(*one) for one in state.items()], vectors(state))
        export_memory(memory, base / IMPORTED)


def fresh(base: Path) -> None:
    shutil.rmtree(base, ignore_errors=True)
    base.mkdir()


def preloaded() -> None:
    """Start this program again with faults.c in it."""
    built = Path(tempfile.mkdtemp(prefix="racm3-faults-")) / "faults.so"
    source = Path(__file__).with_name("faults.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(built), str(source), "-ldl"], check=True)
    environment = {**os.environ, "LD_PRELOAD": str(built), "OMP_NUM_THREADS": "1"}
    try:
        sys.exit(subprocess.run([sys.executable, *sys.argv], env=environment).returncode)
    finally:
        shutil.rmtree(built.parent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--moments", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if not hasattr(ctypes.CDLL(None), "faults_arm"):
        preloaded()
    approximate.SMALL = 0  # a graph, and not a scan, of however few documents
    logging.getLogger("racm3").addHandler(logging.NullHandler())
    # What is written before a kill is there after it on any file system; on this one no time goes by in waiting for disks.
    shared = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    base = Path(tempfile.mkdtemp(prefix="racm3-faults-", dir=shared))
    started, wrong = time.monotonic(), list[str]()
    try:
        with FaissMemory() as memory:  # whatever is loaded on first use is loaded before the first fork
            memory.bind(ENCODER)
            memory.add([document("d0", 0)], vectors({"d0": 0}))
            memory.search(vectors({"d0": 0}), k=1)
        imported(base)
        result: dict[str, Any] = {}
        if given.every:
            result["at_every_call"] = at_every_call(base / "store", given.every, wrong)
        if given.moments:
            result["at_random_moments"] = at_random_moments(base / "store", given.moments, given.seed, wrong)
    finally:
        shutil.rmtree(base)
    result |= {"wrong": wrong, "seconds": round(time.monotonic() - started, 1)}
    result["machine"] = f"{platform.platform()}, Python {platform.python_version()}, {os.cpu_count()} CPUs"
    print(json.dumps(result, indent=1))
    if given.out:
        given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
