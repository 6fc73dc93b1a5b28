"""Memories whose files are not as they were written: what is stored in them is found, or they say what is wrong.

The cases of memory_fuzz.py about `FaissMemory`. Each damages a sound memory, asks for everything that can be asked, and
gives "sound" when all of it was right and nothing refused, or else the first error; anything else is `Wrong`.
"""

from __future__ import annotations

import random
import shutil
import sqlite3
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from memory_steps import State, Step, document, fresh, names, vectors, wrong_answers
from mutations import ODD, Wrong, mutated, reworded

from racm3.document import Document
from racm3.errors import RACM3Error
from racm3.memories.faiss import FaissMemory
from racm3.memories.folder import DATABASE

WAL = DATABASE + "-wal"
FEW = 5  # of the memories, that have few documents

Files = dict[str, bytes]


class Base(NamedTuple):
    """A sound memory. earlier: its files some changes before; states: all that it has ever held."""

    files: Files
    earlier: Files
    states: list[State]


def bases(scratch: Path) -> list[Base]:
    """Memories as they stand on a disk: in use, closed, with a graph, as shipped, with small pages, hence deep trees, and
    with so many documents that searches do not look at all of them."""
    made = [base(scratch, closed=False), base(scratch), base(scratch, index="hnsw")]
    shipped, dense = made[1]._replace(files={}, earlier={}), made[1]._replace(files={}, earlier={})
    for name in ("files", "earlier"):
        with FaissMemory(put(scratch / "from", getattr(made[1], name))) as memory:
            memory.export_read_only(scratch / "shipped", snapshot=True)
        getattr(shipped, name).update(taken(scratch / "shipped"))
        shutil.rmtree(scratch / "shipped")
        folder = put(scratch / "dense", getattr(made[1], name))
        connection = sqlite3.connect(folder / DATABASE)
        for statement in ("journal_mode = DELETE", "page_size = 512"):
            connection.execute(f"PRAGMA {statement}")
        connection.execute("VACUUM")
        connection.close()
        getattr(dense, name).update(taken(folder))
    return [*made, shipped, dense, base(scratch, documents=120)]


def base(scratch: Path, *, index: str | None = None, closed: bool = True, documents: int = 9) -> Base:
    folder, state, states = scratch / "base", State(), [State()]
    fresh(folder)
    first = [
        Step("bind"),
        Step("add", names(0, documents)),
        Step("replace", ("d1", "d5")),
        Step("flush"),
        Step("delete", ("d0",)),
    ]
    then = [Step("flush"), Step("add", names(documents, 4)), Step("replace", ("d2", "d8")), Step("delete", ("d3",))]
    found = []
    for steps in (first, then):
        memory = FaissMemory(folder)
        for step in steps:
            step.run(memory, state, folder)
            state = step.effect(state)
            states.append(state)
            if index and step.kind == "add":
                memory.reindex(index)
        if closed:
            memory.close()
        found.append(taken(folder))
        memory.close()
    return Base(found[1], found[0], states)


def taken(folder: Path) -> Files:
    """The files of a folder, but for those that say who is using it."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name[0] != "."]
    files = {str(path.relative_to(folder)): path.read_bytes() for path in paths if not path.name.endswith("-shm")}
    if WAL in files:
        files[WAL] = resalted(files[WAL])
    return files


def resalted(wal: bytes) -> bytes:
    """A log of SQLite with other salts, which it draws at random; so that a seed tells everything."""
    made, size = bytearray(wal), int.from_bytes(wal[8:12], "big")
    order = ">" if wal[3] & 1 else "<"
    sums = (0, 0)

    def add(data: bytes) -> tuple[int, int]:
        one, two = sums
        for first, second in struct.iter_unpack(f"{order}II", data):
            one = (one + first + two) % 2**32
            two = (two + second + one) % 2**32
        return one, two

    made[16:24] = bytes(8)
    sums = add(made[:24])
    made[24:32] = struct.pack(">II", *sums)
    for frame in range(32, len(wal) - 24 - size + 1, 24 + size):
        if wal[frame + 8 : frame + 16] != wal[16:24]:  # left over from before
            continue
        made[frame + 8 : frame + 16] = bytes(8)
        sums = add(made[frame : frame + 8])
        sums = add(made[frame + 24 : frame + 24 + size])
        made[frame + 16 : frame + 24] = struct.pack(">II", *sums)
    return bytes(made)


def put(folder: Path, files: Files) -> Path:
    fresh(folder)
    for name, data in files.items():
        if "/" in name:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


@cache
def stored(name: str, version: int) -> tuple[Document, list[bytes], np.ndarray]:
    made = document(name, version)
    return made, [image.data for image in made.images], vectors({name: version})[0]


def check(
    found: Document | None, known: set[tuple[str, int]], *, vector: np.ndarray | None = None, name: str | None = None
) -> None:
    """A document is one that was stored, with its vector, under the name that was asked for; else `Wrong`."""
    if found is None:
        return
    version = found.metadata.get("version")
    if (found.id, version) not in known or name not in (None, found.id):
        raise Wrong(f"document {found.id!r}, version {version!r}, was never stored as {name!r}")
    same, pictures, row = stored(found.id, version)  # type: ignore[arg-type]
    if found != same or [image.data for image in found.images] != pictures:
        raise Wrong(f"document {found.id!r} has another content")
    if vector is not None and not np.array_equal(vector, row):
        raise Wrong(f"document {found.id!r} has another vector")


class Examined:
    """Everything that can be asked of a memory, and whether the answers are right. errors: what was refused, in order."""

    def __init__(self, folder: Path, states: list[State], *, read_only: bool, changes: bool) -> None:
        self.errors: list[RACM3Error] = []
        self.said: list[str] = []  # by verify
        self.known = {one for state in states for one in state.items()}
        self.states, self.held = states, State()
        memory = self.ask(lambda: FaissMemory(folder, read_only=read_only))
        if memory is None:
            return
        with memory:
            self.use(memory)
            if changes:
                copy = folder.with_name("copy")
                fresh(copy)
                self.ask(lambda: memory.export_read_only(copy))
            if changes and not read_only:
                self.ask(lambda: memory.add([document("new", 0)], vectors({"new": 0})))
                self.ask(lambda: memory.delete(["d1", "d4", "new"]))
                for act in (memory.compact, memory.flush, lambda: memory.reindex("exact")):
                    self.ask(act)
            self.ask(memory.close)

    def ask(self, question: Callable[[], Any]) -> Any:
        try:
            return question()
        except RACM3Error as error:
            self.errors.append(error)
            return None

    def use(self, memory: FaissMemory) -> None:
        queries, ids = vectors({"one": 0, "two": 0}), sorted({name for name, _ in self.known})
        self.ask(lambda: memory.encoder)
        for keys in ({}, {"where": {"even": True}}, {"exclude": [["d4"], ["d5"]]}):
            for query, hits in zip(queries, self.ask(lambda: memory.search(queries, k=4, **keys)) or (), strict=False):  # noqa: B023
                for hit in hits:
                    self.vector(hit.vector, query, hit.score)
                    check(self.ask(lambda: hit.document), self.known, name=hit.id)  # noqa: B023
        for hit in self.ask(lambda: memory.random(2, rng=np.random.default_rng(0))) or ():
            self.vector(hit.vector)
            check(self.ask(lambda: hit.document), self.known, name=hit.id)  # noqa: B023
        for name, found in zip(ids, self.ask(lambda: memory.get(ids)) or (), strict=False):
            check(found, self.known, name=name)
        self.ask(lambda: [check(found, self.known, vector=vector) for found, vector in memory.items()])
        self.ask(lambda: len(memory))
        self.ask(memory.stats)
        self.said = self.ask(memory.verify) or []
        if not self.errors and not self.said:
            self.held = {found.id: int(found.metadata["version"]) for found, _ in memory.items()}  # type: ignore[arg-type]
            if not any(list(self.held.items()) == list(state.items()) for state in self.states):
                raise Wrong(f"it holds {self.held}, and verify finds nothing wrong")
            if wrong := wrong_answers(memory, self.held):
                raise Wrong("; ".join(wrong))

    def vector(self, vector: np.ndarray, query: np.ndarray | None = None, score: float | None = None) -> None:
        if not any(np.array_equal(vector, stored(*one)[2]) for one in self.known):
            raise Wrong("a hit has a vector that was never stored")
        if score is not None and abs(score - float(vector @ query)) > 1e-6:
            raise Wrong("the score of a hit is another than the inner product")

    @property
    def outcome(self) -> str:
        if self.errors:
            return type(self.errors[0]).__name__
        return "told by verify" if self.said else "sound"


def stores(made: list[Base], folder: Path, draw: random.Random) -> str:
    """The database, or the log of what is not in it yet."""
    one = draw.choice(made[:FEW])
    files = {**one.files}
    for name in list(files):
        if name.startswith("index") and draw.random() < 0.3:
            del files[name]
    name = WAL if WAL in files and draw.random() < 0.5 else DATABASE
    files[name] = mutated(files[name], draw.choice((one, one, draw.choice(made[:FEW]))).earlier.get(name, b""), draw)
    return Examined(put(folder, files), one.states, read_only=draw.random() < 0.5, changes=draw.random() < 0.2).outcome


def rows(made: list[Base], folder: Path, draw: random.Random) -> str:
    """What stands in a table, most often in the manifest: changed through SQLite, so that its file is sound."""
    one = draw.choice(made[:FEW])
    put(folder, one.files)
    connection = sqlite3.connect(folder / DATABASE, isolation_level=None)
    table = draw.choice(["manifest"] * 4 + ["sqlite_sequence", "documents", "contents", "parts", "fields", "tags"])
    columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
    keys = connection.execute(f"SELECT {columns[0]}, {columns[1]} FROM {table}").fetchall()
    for _ in range(draw.choice((1, 1, 2))):
        key, column, value = draw.choice(keys), draw.choice(columns), draw.choice(ODD)
        which = f"({columns[0]}, {columns[1]}) = (?, ?)"
        if table == "manifest" and draw.random() < 0.8:
            column = "value"
        try:
            if draw.random() < 0.1:
                connection.execute(f"DELETE FROM {table} WHERE {which}", key)
            else:
                connection.execute(f"UPDATE {table} SET {column} = ? WHERE {which}", (value, *key))
        except sqlite3.IntegrityError:  # SQLite does not let it in
            pass
    connection.close()
    return Examined(folder, one.states, read_only=draw.random() < 0.5, changes=draw.random() < 0.2).outcome


def snapshots(made: list[Base], folder: Path, draw: random.Random) -> str:
    """What a memory has beside its database, which can be built anew: then nothing is refused."""
    one = draw.choice(made)
    files = {**one.files}
    beside = sorted(name for name in files if not name.startswith(DATABASE))
    name, other = draw.choice(beside), draw.choice((one, draw.choice(made)))
    if draw.random() < 0.5 and name.endswith(".json"):
        files[name] = reworded(files[name], draw)
    else:
        match = [data for called, data in sorted(other.earlier.items()) if called.endswith(name[-6:])]
        files[name] = mutated(files[name], draw.choice(match or [b""]), draw)
    for called in beside:
        if draw.random() < 0.03:
            del files[called]
        elif draw.random() < 0.03:
            files[called] = other.earlier.get(called, b"")
    found = Examined(put(folder, files), one.states, read_only=draw.random() < 0.5, changes=draw.random() < 0.2)
    if found.errors or (found.held != one.states[-1] and not found.said):
        raise Wrong(f"a sound database was of no use: {[str(error) for error in found.errors]}")
    return found.outcome
