"""Documents as tokens, prepared once: what the generator is trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import torch
from tokenizers import Tokenizer

from ..generators.cm3.document_format import TokenPart
from ..generators.cm3.image_tokenizer import ImageTokenizer
from ..interfaces import Progress
from .data import VARIANTS, TrainingSet, variant
from .neighbours import Neighbours
from .prepared_array import prepared_array

BLOCK = 1024

# What of a document is shown: all of it, or its text or its picture alone.
Shown: TypeAlias = Literal["both", "text", "image"]


@dataclass(frozen=True)
class PreparedDocuments:
    """Documents as tokens. images: [n, variants, tokens], codes; may lie on disk; texts: text ids; neighbours: see there.

    entities: for each training entity, the rows that show it. held_out: rows that are never trained on.
    """

    images: np.ndarray
    texts: Sequence[Sequence[int]]
    entities: list[np.ndarray]
    held_out: np.ndarray
    neighbours: Neighbours | None = None

    def parts(self, row: int, number: int = 0, shown: Shown = "both") -> list[TokenPart]:
        """The caption and the picture of a row, in a variant; or one of the two."""
        parts = [TokenPart("text", self.texts[row]), TokenPart("image", self.images[row, number])]
        return parts if shown == "both" else [part for part in parts if part.modality == shown]

    def random_rows(self, row: int, k: int, rng: np.random.Generator) -> list[int]:
        """k training documents other than `row`, each as likely as any other; fewer where there are not so many."""
        drawn = rng.choice(self._training, size=min(k + 1, len(self._training)), replace=False)
        return [int(other) for other in drawn if other != row][:k]

    @cached_property
    def _training(self) -> np.ndarray:
        return np.concatenate(self.entities)


def prepare_documents(
    data: TrainingSet,
    held_out: np.ndarray,
    text_tokenizer: Tokenizer,
    image_tokenizer: ImageTokenizer,
    neighbours: Neighbours | None = None,
    *,
    variants: int = VARIANTS,
    longest: int | None = None,
    path: Path | None = None,
    made_from: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> PreparedDocuments:
    """Tokens of all documents, their pictures in so many variants. held_out: rows that are not to be trained on.

    longest: text tokens at most; longer texts are cut. path: a .npy file for the image tokens, which stays on disk and is
    taken up again where it was left; made_from: see `prepared_array`. Without a path they are in memory.
    """
    dtype = np.uint16 if image_tokenizer.codes <= 2**16 else np.int32

    def encode(start: int, stop: int) -> np.ndarray:
        pictures = np.asarray(data.pixels[start:stop])
        images = np.empty((stop - start, variants, image_tokenizer.tokens), dtype)
        for number in range(variants):
            # In half precision one token in fifty falls to its second-nearest code: a variant may, an original not.
            with torch.autocast(image_tokenizer.codebook.device.type, dtype=torch.bfloat16, enabled=number > 0):
                images[:, number] = image_tokenizer.encode(np.ascontiguousarray(variant(pictures, number)))
        return images

    if path is None:
        images = encode(0, len(data))
    else:
        images = prepared_array(
            path, (len(data), variants, image_tokenizer.tokens), dtype, made_from or {}, encode, block=BLOCK,
            what="image tokens", progress=progress,
        )  # fmt: skip
    texts: list[Sequence[int]] = []
    for start in range(0, len(data), BLOCK):
        for encoding in text_tokenizer.encode_batch(list(data.texts[start : start + BLOCK])):
            texts.append(np.array(encoding.ids[:longest], np.int32))  # type: ignore[arg-type]
    apart = np.zeros(len(data), bool)
    apart[held_out] = True
    training = [rows[~apart[rows]] for rows in data.rows_by_entity()]
    return PreparedDocuments(images, texts, [rows for rows in training if len(rows)], held_out, neighbours)
