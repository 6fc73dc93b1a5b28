"""What the training stages learn from: pictures with texts, in memory or memory-mapped."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

# The 24 variants of a picture: mirrored left and right or not, upside down or not, times the six orders of its colour
# channels. White, grey and black stay what they are; every other hue moves.
CHANNEL_ORDERS = ((0, 1, 2), (1, 2, 0), (2, 0, 1), (0, 2, 1), (2, 1, 0), (1, 0, 2))
VARIANTS = 4 * len(CHANNEL_ORDERS)


@dataclass(frozen=True)
class TrainingSet:
    """Pictures with texts. Documents that show the same thing share an entity.

    pixels: uint8 [n, size, size, 3]; texts: the document's own text; names: a shorter text for the same thing
    (defaults to the text); entities, sources: what is shown, and who drew or took it; keywords: further words for it.
    """

    pixels: np.ndarray
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


def variant(pixels: np.ndarray, number: int) -> np.ndarray:
    """Variant `number` (0..23, 0 is the original) of pictures, uint8 [..., size, size, 3]."""
    order = CHANNEL_ORDERS[number // 4]
    turned = pixels[..., order] if number >= 4 else pixels
    turned = turned[..., ::-1, :] if number % 2 else turned
    return turned[..., ::-1, :, :] if number // 2 % 2 else turned


def generator_at(seed: int, *position: int) -> np.random.Generator:
    """A random generator that depends only on the seed and a position (step, micro-batch, row ...)."""
    return np.random.default_rng([seed, *position])
