"""What a memory is after faults: python tests/bench/memory_faults.py [--every 1] [--moments 2000] [--out FILE.json]

Linux, with a C compiler. A process goes through everything that changes a memory, and at each call of it that changes a
file (faults.c, preloaded, counts them) it is killed, killed in the middle of the write, or the disk is full, broken, or
takes half of a write; then it is killed at random moments of random work. After each of these the memory is opened and
compared with what was acknowledged: the documents, their vectors, every checksum, and what searches find; and an import or
an export that was stopped is begun again. Exit status 1, and a sentence for each, when anything is other than promised.

--every: of the calls only each n-th; 0: none. --moments: random kills.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from memory_steps import (
    ENCODER,
    EVERYTHING,
    State,
    Step,
    check,
    check_export,
    check_import,
    check_shards,
    document,
    fresh,
    imported,
    random_steps,
    seen,
    vectors,
)
from results import finish

from racm3.errors import RACM3Error
from racm3.memories.faiss import FaissMemory

KINDS = ("none", "kill", "tear", "full", "broken", "short")  # as in faults.c
CHAIN = 25  # random kills that one memory goes through


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
    finish(result, given.out, wrong=wrong)


if __name__ == "__main__":
    main()
