"""What the training stages learn from: pictures with texts, in memory or memory-mapped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..document import Document, Image

# The 24 variants of a picture: mirrored left and right or not, upside down or not, times the six orders of its colour
# channels. White, grey and black stay what they are; every other hue moves.
CHANNEL_ORDERS = ((0, 1, 2), (1, 2, 0), (2, 0, 1), (0, 2, 1), (2, 1, 0), (1, 0, 2))
VARIANTS = 4 * len(CHANNEL_ORDERS)
BLOCK = 1024  # pictures that are read at a time
MEASURED = 1000  # documents that held-out figures are taken on, at most


class PixelRows:
    """Chosen rows of a picture array that stays on disk: a number reads a picture, a slice or rows give a view.

    `np.asarray(view)` reads a view. Several rows may be one picture, as of a picture with several captions.
    """

    def __init__(self, pixels: np.ndarray, rows: np.ndarray) -> None:
        self.pixels, self.rows = pixels, np.asarray(rows, np.int64)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.rows), *self.pixels.shape[1:])

    def __getitem__(self, key: Any) -> Any:
        chosen = self.rows[key]
        return PixelRows(self.pixels, chosen) if isinstance(chosen, np.ndarray) else self.pixels[chosen]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.pixels[self.rows], dtype)


@dataclass(frozen=True)
class TrainingSet:
    """Pictures with texts. Documents that show the same thing share an entity.

    pixels: uint8 [n, size, size, 3], an array or a view of one; texts: the document's own text; names: a shorter text for
    the same thing (defaults to the text); entities, sources: what is shown, and who drew or took it; keywords: further
    words for it.
    """

    pixels: np.ndarray | PixelRows
    ids: list[str]
    texts: list[str]
    entities: list[str]
    names: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    keywords: list[list[str]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    def rows_by_entity(self) -> list[np.ndarray]:
        """Row numbers of each entity, in the order in which the entities first appear."""
        rows: dict[str, list[int]] = {}
        for row, entity in enumerate(self.entities):
            rows.setdefault(entity, []).append(row)
        return [np.array(r) for r in rows.values()]

    def select(self, rows: np.ndarray) -> TrainingSet:
        """Some rows, as a set of their own; no picture is read."""
        pixels = self.pixels[rows] if isinstance(self.pixels, PixelRows) else PixelRows(self.pixels, rows)
        kept: dict[str, Any] = {
            name: [values[row] for row in rows] if (values := getattr(self, name)) else []
            for name in ("ids", "texts", "entities", "names", "sources", "keywords")
        }
        return TrainingSet(pixels, **kept)

    def groups(self) -> list[str]:
        """For each row a key that it shares with the pictures of its thing by the same hand: neither may be retrieved for
        the other, as it would give the answer away."""
        sources = self.sources or [""] * len(self)
        return [f"{entity}/{source}" for entity, source in zip(self.entities, sources, strict=True)]


class DocumentRows(Sequence[Document]):
    """The rows of a training set as documents, each made when it is asked for."""

    def __init__(self, data: TrainingSet) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return [self[r] for r in range(*row.indices(len(self)))]
        return Document([self.data.texts[row], Image(np.asarray(self.data.pixels[row]))], id=self.data.ids[row])


@dataclass(frozen=True)
class Corpus:
    """What a stage is trained on: documents, and which rows of them (int64) are never trained on."""

    data: TrainingSet
    held_out: np.ndarray
    digest: str = ""  # of the documents, pictures included, and of what is held out; made by default

    def __post_init__(self) -> None:
        if not self.digest:
            named = json.dumps([self.data.ids, self.data.texts, self.held_out.tolist()])
            digest = hashlib.sha256(named.encode())
            for start in range(0, len(self.data), BLOCK):
                digest.update(np.ascontiguousarray(self.data.pixels[start : start + BLOCK]).data)
            object.__setattr__(self, "digest", digest.hexdigest())

    @property
    def training(self) -> np.ndarray:
        """The rows that are trained on."""
        return np.setdiff1d(np.arange(len(self.data)), self.held_out)

    @property
    def measured(self) -> np.ndarray:
        """The held-out rows that figures are taken on: `MEASURED` at most, spread evenly over all of them."""
        rows = self.held_out
        if len(rows) <= MEASURED:
            return rows
        return rows[np.linspace(0, len(rows) - 1, MEASURED).astype(np.int64)]


def variant(pixels: np.ndarray, number: int) -> np.ndarray:
    """Variant `number` (0..23, 0 is the original) of pictures, uint8 [..., size, size, 3]."""
    order = CHANNEL_ORDERS[number // 4]
    turned = pixels[..., order] if number >= 4 else pixels
    turned = turned[..., ::-1, :] if number % 2 else turned
    return turned[..., ::-1, :, :] if number // 2 % 2 else turned


def generator_at(seed: int, *position: int) -> np.random.Generator:
    """A random generator that depends only on the seed and a position (step, micro-batch, row ...)."""
    return np.random.default_rng([seed, *position])
