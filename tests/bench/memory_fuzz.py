"""What becomes of damaged files: python tests/bench/memory_fuzz.py [--cases 200000] [--seed 0] [--out FILE.json]

Files that racm3 reads are changed at random (mutations.py), and then used in every way: memories (the database and its
log; the rows of its tables; the index beside it), pictures, and shards to import or to read. Each case has to end in right
answers or in an error of ours: a document or a vector that was never stored so, any other exception, a process that dies, one that
takes longer than 5 s or more than 1.25 GiB is a finding. Exit status 1, and a sentence for each, when there is one.

Linux. Cases run in processes of their own. A finding names its case, which is run alone, with its files left in place, by
--case, as in `--case stores:1234`. --only: one kind of file. The outcomes that are counted: "sound", nothing was refused
and everything is as it was (the damage met nothing that matters, or what can be rebuilt); else the first error that came.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import logging
import os
import random
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

# Cases run in forks, and OpenMP's threads, which the memories here have been made with, do not come along: whoever waits for
# them waits for ever. Set before anything loads it.
os.environ["OMP_NUM_THREADS"] = "1"

from damaged_memories import bases, rows, snapshots, stores
from damaged_pictures import images, pictures
from damaged_shards import exports, imports, readings
from memory_steps import fresh
from mutations import Wrong
from results import finish

from racm3.memories import approximate, index

SECONDS = 5.0  # that a case may take
MEMORY = 5 * 2**28  # bytes that a case may take: a WebP of as many pixels as are allowed needs 1.1 GiB
CHUNK = 2000  # cases that a process runs before another one takes its place


class Target(NamedTuple):
    share: float  # of all cases
    prepare: Callable[[Path], Any]
    case: Callable[[Any, Path, random.Random], str]


TARGETS = {
    "stores": Target(0.40, bases, stores),
    "rows": Target(0.10, bases, rows),
    "snapshots": Target(0.10, bases, snapshots),
    "images": Target(0.25, pictures, images),
    "imports": Target(0.10, exports, imports),
    "readings": Target(0.05, exports, readings),
}


@cache
def prepared(prepare: Callable[[Path], Any], scratch: Path) -> Any:
    return prepare(scratch)


def run(name: str, made: Any, seed: int, number: int, folder: Path) -> str:
    fresh(folder)
    return TARGETS[name].case(made, folder, random.Random(f"{seed} {name} {number}"))


def worker(name: str, made: Any, seed: int, numbers: range, folder: Path, pipe: int) -> None:
    """Run cases, and say of each how it ended."""
    faulthandler.enable()
    warnings.simplefilter("ignore")
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + 4 * MEMORY, resource.RLIM_INFINITY))  # rather than the machine's
    before = peak()
    for number in numbers:
        started, wrong = spent("self"), ""
        try:
            outcome = run(name, made, seed, number, folder)
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            outcome, wrong = "wrong", str(error)
            if not isinstance(error, Wrong):
                wrong = f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
        grown = peak() - before
        if grown > MEMORY:
            outcome, wrong = "wrong", wrong or f"it took {grown / 2**20:.0f} MiB"
        said = [number, outcome, wrong[:500], round(spent("self") - started, 3), grown]
        os.write(pipe, json.dumps(said).encode() + b"\n")
        if grown > MEMORY:
            return


def peak() -> int:
    """The most memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def supervised(name: str, seed: int, cases: int, scratch: Path) -> dict[str, Any]:
    """Run the cases of one target in processes, whatever becomes of these."""
    made = prepared(TARGETS[name].prepare, scratch)
    outcomes, findings, slowest, grown = Counter[str](), list[dict[str, Any]](), 0.0, 0
    started, number, slow = time.monotonic(), 0, -1

    def finding(what: str) -> None:
        findings.append({"case": f"{name}:{number}", "what": what})
        print(f"{name}:{number}: {what}", file=sys.stderr, flush=True)

    while number < cases:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.close(reading)
                worker(name, made, seed, range(number, min(number + CHUNK, cases)), scratch / "case", writing)
            finally:
                os._exit(0)
        os.close(writing)
        for line in lines(reading, child):
            if line is None:
                os.kill(child, signal.SIGKILL)
                break
            number, outcome, wrong, seconds, most = json.loads(line)
            outcomes[outcome] += 1
            slowest, grown = max(slowest, seconds), max(grown, most)
            if wrong:
                finding(wrong)
            number += 1
        else:
            line = b""
        os.close(reading)
        status = os.waitpid(child, 0)[1]
        if line is None and slow != number:
            slow = number  # once more
        elif line is None or os.WIFSIGNALED(status):
            outcomes["wrong"] += 1
            finding(f"longer than {SECONDS} s" if line is None else signal.Signals(os.WTERMSIG(status)).name)
            number += 1
    return {
        "cases": cases,
        "outcomes": dict(outcomes.most_common()),
        "slowest_s": slowest,
        "most_memory_mib": round(grown / 2**20),
        "seconds": round(time.monotonic() - started, 1),
        "findings": findings,
    }


def lines(pipe: int, process: int) -> Iterator[bytes | None]:
    """Lines as they come; None when none comes in time."""
    rest, started = b"", spent(process)
    while True:
        if select.select([pipe], [], [], SECONDS / 10)[0]:
            got = os.read(pipe, 2**16)
            if not got:
                return
            *whole, rest = (rest + got).split(b"\n")
            yield from whole
            started = spent(process)
        elif spent(process) - started > SECONDS:
            yield None
            return


def spent(process: int | str) -> float:
    """Seconds on the clock, without those in which a process had to wait for a processor."""
    waited = Path(f"/proc/{process}/schedstat").read_text().split()[1]
    return time.monotonic() - int(waited) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=TARGETS)
    parser.add_argument("--case")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    approximate.SMALL, index.SCAN = 0, 64  # an index is made of, and looked into for, however few documents
    logging.getLogger("racm3").addHandler(logging.NullHandler())
    shared = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    scratch = Path(tempfile.mkdtemp(prefix="racm3-fuzz-", dir=shared))
    if given.case:
        name, _, number = given.case.partition(":")
        print(scratch / "case")
        print(run(name, TARGETS[name].prepare(scratch), given.seed, int(number), scratch / "case"))
        return
    result: dict[str, Any] = {"seed": given.seed}
    try:
        for name, target in TARGETS.items():
            if given.only in (None, name):
                cases = given.cases if given.only else round(given.cases * target.share)
                result[name] = supervised(name, given.seed, cases, scratch)
    finally:
        shutil.rmtree(scratch)
    ran = [result[name] for name in TARGETS if name in result]
    result["cases"] = sum(one["cases"] for one in ran)
    result["findings"] = sum(len(one["findings"]) for one in ran)
    finish(result, given.out, wrong=result["findings"])


if __name__ == "__main__":
    main()
