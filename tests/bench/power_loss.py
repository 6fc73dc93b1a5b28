"""What stores hold after the power failed: python tests/bench/power_loss.py [--states 1000] [--others 200] [--out FILE.json]

Linux, with strace. A store goes through additions, replacements, removals and reopenings, and says after each that it is
done; strace sees every write and every sync of it (recording.py). From that come the disks that a power failure at any
moment can leave: what was synced is there, of the rest any part (crash_states.py), by the rules of POSIX and by the kinder
ones of ext4. Each is opened in the ordinary way and compared with what was acknowledged: documents that are missing or
older than acknowledged (where the store opens at all), removed ones that are back, texts or vectors that were never stored
so, calls of which only half is there, and searches that find other than the nearest of what the store itself says it holds.
The shares say what can happen, and not how often it does. Exit status 1, and a sentence for each, when racm3 breaks a promise.

--store NAME: only these, of power_loss_stores.py; the others are left out where they are not installed. --states: distinct
disks for racm3 under each of the two file systems; --others: for the others. --out: the rows of stores that were not run
stay as they are in it.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import re
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from crash_states import MODELS, Disk, key_of, write_tree
from memory_steps import (
    EVERYTHING,
    State,
    Step,
    check,
    check_export,
    check_shards,
    imported,
    names,
    random_steps,
    seen,
    vectors,
)
from power_loss_stores import STORES, Racm3, Store
from recording import Recording, differences, parse
from results import machine
from strace import NotRecorded, record

EVERY = "racm3, everything"  # with flush, compact, reindex and exports, which the others lack
RELAXED = "racm3, durable=False"
REOPEN = Step("reopen")
PROMISES = (EVERY, "racm3", RELAXED)  # those whose promises are checked, one by one
PATIENCE = 60.0  # seconds that a store may take to open and answer
COLUMNS = {
    "states": "disks",
    "looked_for": "documents acknowledged",
    "failed": "cannot be opened or read",
    "losing": "lose documents",
    "lost": "documents lost",
    "back": "deleted ones back",
    "half": "damaged documents",
    "torn": "half of a call",
    "wrong": "wrong answers",
}


@cache
def steps_of(name: str) -> tuple[list[Step], list[State]]:
    """What is done, and what is stored before the first step and after each."""
    if name == EVERY:
        steps = [*EVERYTHING, REOPEN]
        steps += islice(random_steps(random.Random(6), _after(steps)[-1]), 25)
        steps += [REOPEN]
    else:
        first = names(1000, store_of(name).first)
        steps = [
            *([Step("add", first)] if first else []),
            *(Step("add", (one,)) for one in names(0, 10)), Step("add", names(10, 20)),
            Step("replace", ("d1", "d12", "d25")), Step("delete", ("d0", "d13")),
            *(Step("add", (one,)) for one in names(30, 5)), REOPEN, Step("add", names(35, 10)),
            Step("replace", ("d2", "d30")), Step("delete", ("d3", "d14", "d35")),
            *(Step("add", (one,)) for one in names(45, 5)), REOPEN, Step("add", ("d50",)),
        ]  # fmt: skip
    return steps, _after(steps)


def _after(steps: list[Step]) -> list[State]:
    states: list[State] = [{}]
    for step in steps:
        states.append(step.effect(states[-1]))
    return states


def store_of(name: str) -> type[Store]:
    return Racm3 if name == EVERY else STORES[name]


# The process that is recorded


def work(name: str, place: Path) -> None:
    words, folder = os.open(place / "words", os.O_WRONLY | os.O_CREAT), place / "disk.db"
    steps, states = steps_of(name)
    store = store_of(name)(folder)
    for step, state in zip(steps, states, strict=False):
        store = _done(store, step, state, folder)
        os.write(words, step.kind.encode())
    store.close()


def _done(store: Store, step: Step, state: State, folder: Path) -> Store:
    if step.kind == "reopen":
        store.close()
        return type(store)(folder)
    if step.kind == "add":
        store.put(dict.fromkeys(step.names, 0))
    elif step.kind == "replace":
        store.replace({name: state[name] + 1 for name in step.names})
    elif step.kind == "delete":
        store.delete(step.names)
    else:
        assert isinstance(store, Racm3)
        step.run(store.memory, state, folder)
    store.save()
    return store


# The process that opens what is left


def judge(name: str, folder: Path, done: int) -> dict[str, Any]:
    """What there is on a disk, where `done` steps had been acknowledged. "why": why it cannot be opened, which answers are
    wrong, and for racm3 everything that is not as promised."""
    _, states = steps_of(name)
    before, after = states[done], states[min(done + 1, len(states) - 1)]
    found = _nothing(name, done)
    try:
        store = store_of(name)(folder)
        try:
            contents = store.contents()
            wrong = _wrong_answers(store, contents)
        finally:
            store.close()
    except Exception as error:
        return found | {"failed": 1, "why": [_said(error)]}
    half = {one for one, version in contents.items() if version < 0}
    lost, back = set[str](), set[str]()
    for one in {**before, **after, **contents}.keys() - half:
        allowed = {before.get(one), after.get(one)}
        if contents.get(one) not in allowed:
            (back if allowed == {None} else lost).add(one)
    # Of a call that was under way all or nothing; of any other there is nothing that moves.
    moved = {contents.get(one) == after.get(one) for one in {**before, **after} if before.get(one) != after.get(one)}
    found |= {"losing": int(bool(lost)), "lost": len(lost), "back": len(back), "half": len(half), "wrong": len(wrong)}
    found |= {"torn": int(len(moved) > 1 and not (lost or back or half)), "why": wrong}
    if name in PROMISES:
        found["why"] = [_said(why) for why in _broken_promises(name, folder, done)]
    return found


def _nothing(name: str, done: int) -> dict[str, Any]:
    return dict.fromkeys(COLUMNS, 0) | {"states": 1, "looked_for": len(steps_of(name)[1][done]), "why": []}


def _said(why: object) -> str:
    """Without the paths of this machine, so that the same reason reads the same."""
    kind = f"{type(why).__name__}: " if isinstance(why, Exception) else ""
    return kind + re.sub(r"/[^\s'\",:]+/([^\s'\",:]+)[:\d]*", r"\1", str(why))


def _wrong_answers(store: Store, contents: State) -> list[str]:
    """Of searches, by what the store itself says it holds."""
    if -1 in contents.values():
        return []
    rows, wrong = vectors(contents), []
    for query in vectors({"one": 0, "two": 0}):
        order = np.argsort(-(rows @ query), kind="stable")[:4]
        best, answer = [[*contents][row] for row in order], store.nearest(query, 4) if contents else []
        if answer != best:
            wrong.append(f"a search finds {answer}, not {best}")
    return wrong


def _broken_promises(name: str, folder: Path, done: int) -> list[str]:
    """A memory holds what was acknowledged, with durable=False or what it held at some time before; and exports are whole."""
    steps, states = steps_of(name)
    exported = []
    for kind, checked, finished in (
        ("export", check_export, folder / "export" / "memory.db"),
        ("shards", check_shards, folder / "shards" / "export.json"),
    ):
        at = next((at for at, step in enumerate(steps) if step.kind == kind), len(steps))
        if done > at and not finished.exists():
            exported.append(f"{kind}: acknowledged, and not there")
        elif (folder / kind).exists():
            exported += checked(folder, states[at] if done > at else _held(folder))
    return exported + check(folder, states[0 if name == RELAXED else done : done + 2])[1]


def _held(folder: Path) -> State:
    from racm3.memories.faiss import FaissMemory

    with FaissMemory(folder / "memory") as memory:
        return seen(memory)


def serve(name: str) -> None:
    """Judge one disk after the other, as asked for in lines of standard input."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a store prints is no answer
    for line in sys.stdin:
        folder, done = json.loads(line)
        print(json.dumps(judge(name, Path(folder), done)), file=answers, flush=True)


class Judge:
    """A process that judges, and another one when it has died or hangs."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.process: subprocess.Popen[str] | None = None

    def __call__(self, folder: Path, done: int) -> dict[str, Any]:
        for _ in range(2):  # it may have died of the disk before, after it had answered
            if self.process is None:
                self.process = subprocess.Popen(
                    [sys.executable, __file__, "--judge", self.name],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                )  # fmt: skip
            assert self.process.stdin is not None and self.process.stdout is not None
            try:
                self.process.stdin.write(json.dumps([str(folder), done]) + "\n")
                self.process.stdin.flush()
                break
            except BrokenPipeError:
                self.close()
        assert self.process is not None and self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], PATIENCE)
        answer = self.process.stdout.readline() if ready else ""
        if answer:
            return json.loads(answer)
        self.close()
        why = "the process that opens it dies" if ready else "it takes more than a minute"
        return _nothing(self.name, done) | {"failed": 1, "why": [why]}

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


# All of them


def trial(name: str, base: Path, wanted: int, seed: int) -> dict[str, Any]:
    """Record a store, and judge so many distinct disks under each file system."""
    result: dict[str, Any] = {"version": store_of(name).version()}
    place = base / "recorded"
    (place / "disk.db").mkdir(parents=True)
    imported(place)
    done = record([sys.executable, __file__, "--work", name, place], base / "log", capture_output=True, text=True)
    if done.returncode:
        return result | {"not_judged": f"it fails under strace: {done.stderr.strip()[-500:]}"}
    try:
        recording = parse(base / "log", place / "disk.db", place / "words")
    except NotRecorded as reason:
        return result | {"not_judged": f"not everything that it does is recorded: {reason}"}
    (base / "log").unlink()
    # SQLite's -shm is a mapping, and made anew by whoever opens the database first.
    unlike = [
        one for one in differences(recording, place / "disk.db") if one not in recording.mapped or "-shm" not in one
    ]
    if unlike:
        return result | {"not_judged": f"the record does not come to what it wrote: {unlike[:3]}"}
    shutil.rmtree(place)
    judged = Judge(name)
    try:
        return result | _disks(name, recording, base, wanted, random.Random(seed), judged)
    finally:
        judged.close()


def _disks(
    name: str, recording: Recording, base: Path, wanted: int, draw: random.Random, judged: Callable[[Path, int], Any]
) -> dict[str, Any]:
    disk, known, numbers = Disk(recording), dict[tuple[str, int], dict[str, Any]](), iter(range(2**62))

    def judged_once(tree: dict[str, bytes | None], done: int) -> dict[str, Any]:
        key = key_of(tree), done
        if key not in known:
            folder = base / f"disk{next(numbers):06d}.db"  # another path each time: some stores cache by path
            write_tree(tree, folder)
            known[key] = judged(folder, done)
            shutil.rmtree(folder, ignore_errors=True)
        return known[key]

    whole = judged_once(recording.tree, len(recording.said))
    if any(whole[column] for column in COLUMNS if column not in ("states", "looked_for")) or whole["why"]:
        return {"not_judged": f"even without a power failure it is not as it should be: {whole}"}
    result: dict[str, Any] = {"changes": disk.changes, "syncs": disk.syncs}
    for model in MODELS:
        of_model = dict[tuple[str, int], dict[str, Any]]()
        for _ in range(20 * wanted):
            if len(of_model) == wanted:
                break
            moment = draw.choice(disk.said if draw.random() < 0.5 else disk.moments)
            tree, done = disk.after(moment, model, draw), disk.acknowledged(moment)
            of_model[key_of(tree), done] = judged_once(tree, done)
        result[model] = _summary(list(of_model.values()))
    return result | {"distinct_disks": len(known)}


def _summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    reasons = Counter(why[:300] for one in found for why in one["why"])
    total = {column: sum(one[column] for one in found) for column in COLUMNS}
    return total | {"why": dict(reasons.most_common(5))}


def table(result: dict[str, Any]) -> str:
    lines = []
    for model in MODELS:
        lines += ["", "| " + " | ".join([f"by the rules of {model}", *COLUMNS.values()]) + " |"]
        lines += ["|" + "---|" * (len(COLUMNS) + 1)]
        for name, one in result.items():
            cells = [str(one[model][column]) for column in COLUMNS] if model in one else [one["not_judged"]]
            lines += ["| " + " | ".join([f"{name} {one['version']}", *cells]) + " |"]
    return "\n".join(lines)


def _broken(found: dict[str, Any]) -> list[str]:
    if "not_judged" in found:
        return [found["not_judged"]]
    return [f"by the rules of {model}: {why}" for model in MODELS for why in found[model]["why"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", action="append", choices=[EVERY, *STORES])
    parser.add_argument("--states", type=int, default=1000)
    parser.add_argument("--others", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--judge", help=argparse.SUPPRESS)
    given = parser.parse_args()
    logging.getLogger("racm3").addHandler(logging.NullHandler())
    if given.work:
        return work(given.work[0], Path(given.work[1]))
    if given.judge:
        return serve(given.judge)
    result: dict[str, Any] = {}
    shared = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    for name in given.store or [EVERY, *STORES]:
        if store_of(name).version() is None:
            print(f"{name} is not installed", file=sys.stderr)
            continue
        base, begun = Path(tempfile.mkdtemp(prefix="racm3-power-", dir=shared)).resolve(), time.monotonic()
        try:
            result[name] = trial(name, base, given.states if name in PROMISES else given.others, given.seed)
        finally:
            shutil.rmtree(base)
        result[name]["seconds"] = round(time.monotonic() - begun, 1)
        result[name]["machine"] = machine()
        print(f"{name}: {json.dumps(result[name])}", file=sys.stderr)
    print(table(result))
    if given.out:
        known = json.loads(given.out.read_text(encoding="utf-8")) if given.out.exists() else {}
        every = {**known, **result}
        in_order = {name: every[name] for name in [EVERY, *STORES] if name in every}
        given.out.write_text(json.dumps(in_order, indent=1) + "\n", encoding="utf-8")
    broken = [f"{name}: {why}" for name in PROMISES if name in result for why in _broken(result[name])]
    print(*broken, sep="\n")
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
