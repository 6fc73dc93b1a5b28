"""What the checks of a memory stand on: a memory opened at a place, documents, vectors, and the brute-force answer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..document import Document
from ..interfaces import Encoder, Hit, MemoryStore
from .contract import Contract, expect, expect_equal

DIM = 8
ENCODER = Encoder("contract-of-racm3", DIM)
SCORE_TOLERANCE = 1e-4  # backends sum in another order, and some store what they normalised again


def unit(seed: int, n: int, dim: int = DIM) -> np.ndarray:
    """Random unit vectors, float32 [n, dim]."""
    vectors = np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def axis(number: int, n: int = 1) -> np.ndarray:
    """The same unit vector n times, float32 [n, dim]: products of such vectors are exact in any arithmetic."""
    return np.tile(np.eye(DIM, dtype=np.float32)[number], (n, 1))


def texts(n: int, start: int = 0) -> list[Document]:
    """Documents d00000, d00001 ... with their number, and whether it is even, as metadata."""
    numbers = range(start, start + n)
    return [Document(f"text {i}", id=f"d{i:05d}", metadata={"i": i, "even": i % 2 == 0}) for i in numbers]


def picture(seed: int) -> np.ndarray:
    """A picture of noise, uint8 [5, 7, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def ids(found: Iterable[Hit | Document]) -> list[str]:
    return [item.id for item in found]


class MemoryGround(Contract):
    """Opens memories, and closes them after the check."""

    def open(self, path: Path) -> MemoryStore:
        """A memory that keeps its documents at a path: the same path opened again holds the same documents, another
        path is another memory. A backend without files names its collection by it: `path` is unique to a check."""
        raise NotImplementedError("A contract of a memory defines open(path).")

    def component_type(self) -> type:
        return type(self._opened(self.new_place()))

    def new_memory(self) -> MemoryStore:
        """An empty memory, bound to `ENCODER`."""
        memory = self._opened(self.new_place())
        memory.bind(ENCODER)
        return memory

    def filled(self, n: int, *, seed: int = 0) -> tuple[MemoryStore, list[Document], np.ndarray]:
        """A memory of n documents, with them and their vectors [n, dim]."""
        memory, documents, vectors = self.new_memory(), texts(n), unit(seed, n)
        memory.add(documents, vectors)
        return memory, documents, vectors

    def _opened(self, path: Path) -> MemoryStore:
        memory = self.open(path)
        expect(isinstance(memory, MemoryStore), f"open() gave {type(memory).__name__}, not a MemoryStore")
        self._closing.append(memory.close)
        return memory


def expect_nearest(
    hits: Sequence[Hit],
    query: np.ndarray,
    k: int,
    stored: Iterable[tuple[Document, np.ndarray]],
    *,
    keep: Callable[[Document], Any] = lambda document: True,
    what: str = "a search",
) -> None:
    """Compare hits with the brute-force answer over what is stored, of which only what `keep` lets through counts.

    Documents whose scores differ by less than rounding may come in either order.
    """
    scores = {document.id: float(np.dot(vector, query)) for document, vector in stored if keep(document)}
    best = sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))[:k]
    expect_equal(len(hits), len(best), f"{what} with k={k}: number of hits")
    expect_equal(len(set(ids(hits))), len(hits), f"{what} with k={k}: different documents")
    for rank, (hit, (id, score)) in enumerate(zip(hits, best, strict=True)):
        where = f"{what} with k={k}: the hit at rank {rank}, {hit.id!r},"
        expect(hit.id in scores, f"{where} should not be found at all")
        got = hit.score
        expect(got is not None, f"{where} has no score")
        assert got is not None
        true = scores[hit.id]
        expect(abs(got - true) < SCORE_TOLERANCE, f"{where} has score {got:.5f}; its inner product is {true:.5f}")
        expect(abs(true - score) < SCORE_TOLERANCE, f"{where} has inner product {true:.5f}; {id!r} has {score:.5f}")


def expect_same_documents(got: Sequence[Document | None], expected: Sequence[Document | None], what: str) -> None:
    """Compare documents with their parts, metadata and the types in it."""
    expect_equal(len(got), len(expected), f"{what}: number of documents")
    for one, other in zip(got, expected, strict=True):
        if one is None or other is None:
            expect_equal(one, other, what)
            continue
        expect_equal(one.id, other.id, f"{what}: id")
        expect_equal(one.parts, other.parts, f"{what}: parts of {other.id!r}")
        expect_equal(one.content_hash, other.content_hash, f"{what}: content hash of {other.id!r}")
        expect_equal(typed(one.metadata), typed(other.metadata), f"{what}: metadata of {other.id!r}")


def typed(metadata: Any) -> dict[str, Any]:
    """Metadata in which 1, 1.0 and True differ."""

    def one(value: Any) -> Any:
        return [one(item) for item in value] if isinstance(value, (list, tuple)) else (type(value).__name__, value)

    return {name: one(value) for name, value in metadata.items()}


def same_ids(found: Collection[Hit | Document], expected: Iterable[str], what: str) -> None:
    """Compare which documents were found, in any order."""
    expect_equal(sorted(ids(found)), sorted(expected), what)
