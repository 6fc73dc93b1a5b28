"""Batches for the retriever: pairs of drawings of one thing by different hands, with texts, and made-up things.

A part of each batch is made up, so that the model has to look closely instead of memorising: pictures with their colour
channels exchanged, turned or mirrored count as things of their own, and names are put together from pieces of words.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .data import CHANNEL_ORDERS, TrainingSet, generator_at


class PairSampler:
    """Draws two rows of one entity: the same form of it by two sources, where there are such.

    An entity's forms are its distinct names; the first is its base form and comes up in at least half of the draws.
    """

    def __init__(self, data: TrainingSet) -> None:
        self.sources = data.sources or [str(row) for row in range(len(data))]
        names = data.names or data.texts
        self.entities: list[list[np.ndarray]] = []
        for rows in data.rows_by_entity():
            forms: dict[str, list[int]] = {}
            for row in rows:
                forms.setdefault(names[row], []).append(int(row))
            self.entities.append([np.array(form) for form in forms.values()])

    def __len__(self) -> int:
        return len(self.entities)

    def draw(self, entity: int, rng: np.random.Generator) -> tuple[int, int]:
        forms = self.entities[entity]
        form = 0 if len(forms) == 1 or rng.random() < 0.5 else int(rng.integers(len(forms)))
        first = int(rng.choice(forms[form]))
        for rows in (forms[form], np.concatenate(forms)):
            others = [row for row in rows if self.sources[row] != self.sources[first]]
            if others:
                return first, int(rng.choice(others))
        return first, first


class TextViews:
    """Different ways to say the same: the document's text, the name alone, the name with a keyword or two."""

    def __init__(self, data: TrainingSet) -> None:
        self.texts, self.names, self.keywords = data.texts, data.names or data.texts, data.keywords
        self.words = sorted({word for name in self.names for word in name.split()})
        # What stands around the name: ", in Noto style".
        self.frames = sorted(
            {t.replace(n, "{}", 1) for t, n in zip(self.texts, self.names, strict=True) if n in t} - {"{}"}
        )

    def of_row(self, row: int, rng: np.random.Generator) -> str:
        draw = rng.random()
        text = self.texts[row] if draw < 0.5 else self.names[row]
        if draw > 0.9 and self.keywords and self.keywords[row]:
            words = list(rng.permutation(self.keywords[row])[: int(rng.integers(1, 3))])
            text = ", ".join([text, *words])
        return _recase(text, rng)

    def made_up(self, n: int, rng: np.random.Generator) -> list[tuple[str, str]]:
        """n pairs of texts that name the same made-up thing; things 2i and 2i + 1 differ in a single word."""
        pairs: list[tuple[str, str]] = []
        words: list[str] = []
        for i in range(n):
            if i % 2 == 0:
                words = [self._word(rng) for _ in range(int(rng.integers(1, 5)))]
            else:
                words[int(rng.integers(len(words)))] = self._word(rng)
            name = " ".join(words)
            pairs.append((_recase(self._framed(name, rng), rng), _recase(self._framed(name, rng), rng)))
        return pairs

    def _word(self, rng: np.random.Generator) -> str:
        word = self.words[int(rng.integers(len(self.words)))]
        if rng.random() < 0.4:
            return word
        other = self.words[int(rng.integers(len(self.words)))]
        return word[: int(rng.integers(1, len(word) + 1))] + other[int(rng.integers(len(other))) :]

    def _framed(self, name: str, rng: np.random.Generator) -> str:
        if not self.frames or rng.random() < 0.5:
            return name
        return self.frames[int(rng.integers(len(self.frames)))].replace("{}", name, 1)


def _recase(text: str, rng: np.random.Generator) -> str:
    draw = rng.random()
    if draw < 0.85:
        return text
    return text.capitalize() if draw < 0.92 else text.lower() if draw < 0.97 else text.upper()


def draw_batch(
    data: TrainingSet, pairs: PairSampler, views: TextViews, *, size: int, made_up: float, seed: tuple[int, ...]
) -> dict[str, Any]:
    """pixels: uint8 [2 n, h, w, 3], n first drawings and then the n second ones; texts: 2 n in the same order.

    n is `size`, or the number of entities where there are fewer: no entity comes up twice, since the loss takes any two
    rows for different things. The first `real` rows of each half have a text that belongs to the picture.
    """
    rng = generator_at(*seed)
    n = min(size, len(pairs))
    real = max(1, n - round(made_up * n))  # the loss of captions is a mean over these
    pictures: list[list[np.ndarray]] = [[], []]
    texts: list[list[str]] = [[], []]
    for i, entity in enumerate(rng.permutation(len(pairs))[:n]):
        rows = pairs.draw(int(entity), rng)
        drawn = [np.asarray(data.pixels[row]) for row in rows]
        if i < real:
            for side, row in enumerate(rows):
                texts[side].append(views.of_row(row, rng))
        else:
            order, turns = CHANNEL_ORDERS[int(rng.integers(len(CHANNEL_ORDERS)))], int(rng.integers(4))
            mirrored = rng.random() < 0.5
            drawn = [np.rot90(p[..., order], turns) for p in drawn]
            drawn = [p[:, ::-1] if mirrored else p for p in drawn]
        for side in range(2):
            pictures[side].append(drawn[side])
    for one, other in views.made_up(n - real, rng):
        texts[0].append(one)
        texts[1].append(other)
    return {"pixels": np.stack(pictures[0] + pictures[1]), "texts": texts[0] + texts[1], "real": real}


def augment(pixels: np.ndarray, size: int, rng: np.random.Generator, strength: float) -> torch.Tensor:
    """Pictures uint8 [n, h, w, 3] to float [n, 3, size, size] from -1 to 1, each moved, recoloured, partly covered.

    Moved: shift, scale, aspect and rotation on white; 5 % are mirrored. Recoloured: contrast, brightness, saturation
    (one in ten is grey), and a gain per channel. Covered: a rectangle of one colour, in half of them.
    """
    n = len(pixels)
    images = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1  # [n, 3, h, w]

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.uniform(low, high, (n, *shape)).astype(np.float32))

    grey = images.mean(1, keepdim=True)
    saturation = 1 + strength * uniform(-0.7, 0.5, 1, 1, 1)
    saturation[torch.from_numpy(rng.random(n) < 0.1 * strength)] = 0.0
    gain = 1 + strength * (uniform(-0.25, 0.1, 1, 1, 1) + uniform(-0.1, 0.1, 3, 1, 1))
    images = ((grey + (images - grey) * saturation) * gain + strength * uniform(-0.1, 0.1, 1, 1, 1)).clamp_(-1, 1)

    h, w = pixels.shape[1:3]
    for i in np.flatnonzero(rng.random(n) < 0.5 * strength):
        high, wide = (int(side * rng.uniform(0.1, 0.4)) for side in (h, w))
        top, left = int(rng.integers(h - high)), int(rng.integers(w - wide))
        images[i, :, top : top + high, left : left + wide] = torch.from_numpy(
            rng.uniform(-1, 1, (3, 1, 1)).astype(np.float32)
        )

    angle = strength * uniform(-0.25, 0.25)
    scale, aspect = torch.exp(strength * uniform(-0.2, 0.25)), torch.exp(strength * uniform(-0.12, 0.12))
    flip = torch.from_numpy(np.where(rng.random(n) < 0.05 * strength, -1.0, 1.0).astype(np.float32))
    rows = torch.stack(
        [
            torch.stack(
                [flip * scale * aspect * angle.cos(), -scale * angle.sin(), strength * uniform(-0.15, 0.15)], 1
            ),
            torch.stack([flip * scale * angle.sin(), scale / aspect * angle.cos(), strength * uniform(-0.15, 0.15)], 1),
        ],
        1,
    )  # [n, 2, 3]
    grid = torch.nn.functional.affine_grid(rows, [n, 3, size, size], align_corners=False)
    # Sampling fills with zeros, so white is zero for a moment.
    return torch.nn.functional.grid_sample(images - 1, grid, align_corners=False) + 1
