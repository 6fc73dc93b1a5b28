"""What is done with a memory in memory_faults.py and power_loss.py, and what must be there afterwards."""

from __future__ import annotations

import random
import shutil
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from racm3.document import Document, Image
from racm3.errors import MemoryStoreError
from racm3.interfaces import Encoder
from racm3.memories import approximate, shards
from racm3.memories.faiss import FaissMemory
from racm3.memories.shards import Export, export_memory, import_memory

DIM = 8
ENCODER = Encoder("faults", DIM)
IMPORTED = "imported"  # beside the memory: shards
LIMIT = 5.0  # seconds that opening and checking may take

approximate.SMALL = 0  # a graph, and not a scan, of however few documents

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
