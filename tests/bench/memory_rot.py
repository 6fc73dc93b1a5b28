"""Which flipped bits are found: python tests/bench/memory_rot.py [--bits 4000] [--seed 0] [--out FILE.json]

In every file of a memory (closed, in use, and shipped) and of an export, one bit after the other is flipped, all of them or
--bits at random, and the memory is opened and verified. Each flip is counted as one of

told        an error of ours at opening, or a sentence of `verify`
no data     nothing noticed it, and nothing was to be noticed: every table and the schema read as they did. Such bits are
            room that no row uses, and counters of SQLite
as it was   a value has changed that no answer depends on; each of them is listed
wrong       anything else; the last changes being gone, for one

Exit status 1 when there is any of the last kind.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import shutil
import sqlite3
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from damaged_memories import WAL, Base, Examined, Files, bases, put
from damaged_shards import exports
from mutations import Wrong
from results import finish

from racm3.errors import RACM3Error
from racm3.memories import approximate
from racm3.memories.faiss import FaissMemory
from racm3.memories.folder import DATABASE
from racm3.memories.shards import Export

Tables = dict[str, list[Any]]


def tables(folder: Path) -> Tables:
    """Everything that SQL can say of a database."""
    connection = sqlite3.connect(f"file:{folder / DATABASE}?mode=ro", uri=True)
    connection.text_factory = bytes
    try:
        found: Tables = {
            f"PRAGMA {name}": connection.execute(f"PRAGMA {name}").fetchall()
            for name in ("application_id", "user_version")
        }
        found["sqlite_master"] = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master").fetchall()
        for name in ("manifest", "sqlite_sequence", "documents", "contents", "parts", "fields", "tags"):
            found[name] = connection.execute(f"SELECT * FROM {name}").fetchall()
        return found
    finally:
        connection.close()


def memory_after(folder: Path, base: Base, before: Tables) -> tuple[str, str]:
    """What became of a memory, and which value has changed unnoticed."""
    try:
        with FaissMemory(folder, read_only=True) as memory:
            if memory.verify():
                return "told", ""
    except RACM3Error:
        return "told", ""
    now = tables(folder)
    if now == before:
        return "no data", ""
    changed = "; ".join(
        f"{name}: {old!r:.100} is {new!r:.100}"
        for name in before
        for old, new in zip(before[name], now[name], strict=False)
        if old != new
    )
    try:
        found = Examined(folder, base.states, read_only=True, changes=False)
    except Wrong as error:
        return "wrong", f"{error}: {changed}"
    if found.errors:
        return "told", ""
    return ("as it was" if found.held == base.states[-1] else "wrong", changed)


def export_after(folder: Path) -> tuple[str, str]:
    try:
        Export(folder).check()
    except RACM3Error:
        return "told", ""
    return "wrong", "an export is taken for sound"


def flipped(folder: Path, files: Files, name: str, bits: int, base: Base | None, draw: random.Random) -> dict[str, Any]:
    """What becomes of the files when bits of one of them flip, one at a time."""
    counts, listed = Counter[str](), Counter[str]()
    before = {} if base is None else tables(put(folder, files))
    every = range(8 * len(files[name]))
    for bit in draw.sample(every, bits) if 0 < bits < len(every) else every:
        data = bytearray(files[name])
        data[bit // 8] ^= 1 << bit % 8
        put(folder, {**files, name: bytes(data)})
        outcome, changed = export_after(folder) if base is None else memory_after(folder, base, before)
        counts[outcome] += 1
        if outcome in ("as it was", "wrong"):
            listed[f"{outcome}: {changed}"] += 1
    tried = sum(counts.values())
    shares = {outcome: round(count / tried, 4) for outcome, count in counts.most_common()}
    return {"bytes": len(files[name]), "flips": tried, "counts": dict(counts), "shares": shares, "listed": dict(listed)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bits", type=int, default=4000, help="of each file; 0: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    approximate.SMALL = 0  # a graph, and not a scan, of however few documents
    logging.getLogger("racm3").addHandler(logging.NullHandler())
    shared = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    scratch = Path(tempfile.mkdtemp(prefix="racm3-rot-", dir=shared))
    started, result = time.monotonic(), dict[str, Any]()
    try:
        in_use, closed, graph, shipped, *_ = bases(scratch)
        named = {"closed": closed, "in use": in_use, "graph": graph, "shipped": shipped}
        for kind, base in named.items():
            for name in sorted(base.files):
                if kind in ("closed", "shipped") or (kind == "in use") == (name in (DATABASE, WAL)):
                    draw = random.Random(f"{given.seed} {kind} {name}")
                    result[f"{kind}: {name}"] = flipped(scratch / "rot", base.files, name, given.bits, base, draw)
        for name, _ in sorted((files := exports(scratch)[0]).items()):
            draw = random.Random(f"{given.seed} export {name}")
            result[f"export: {name}"] = flipped(scratch / "rot", files, name, given.bits, None, draw)
    finally:
        shutil.rmtree(scratch)
    wrong = sum(one["counts"].get("wrong", 0) for one in result.values())
    told = sum(one["counts"].get("told", 0) for one in result.values())
    flips = sum(one["flips"] for one in result.values())
    result |= {"flips": flips, "told": told, "wrong": wrong, "seconds": round(time.monotonic() - started, 1)}
    finish(result, given.out, wrong=wrong)


if __name__ == "__main__":
    main()
