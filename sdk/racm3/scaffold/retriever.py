"""A retriever for texts: words are hashed to fixed random directions, which are summed. Put your model in their place."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

import numpy as np

from racm3 import Document, Retriever
from racm3.errors import ConfigError, ModalityError
from racm3.interfaces import Encoder


class ExampleRetriever(Retriever):
    """dim: the width of the vectors. Pictures are not looked at."""

    def __init__(self, dim: int = 128) -> None:
        if dim < 1:
            raise ConfigError(f"dim is the width of the vectors, at least 1, not {dim}.")
        self.dim = dim

    @property
    def encoder(self) -> Encoder:
        # All that changes a vector is in the fingerprint: raise the number with every change of the method.
        return Encoder(f"example-1-{self.dim}", self.dim)

    def encode_document(self, documents: Sequence[Document], *, batch_size: int | None = None) -> np.ndarray:
        return self._encode(documents, 0.0, None)

    def encode_query(
        self,
        queries: Sequence[Document],
        *,
        batch_size: int | None = None,
        dropout: float = 0.0,
        rng: np.random.Generator | None = None,
    ) -> np.ndarray:
        if not 0 <= dropout < 1:
            raise ConfigError(f"A dropout of {dropout} is not a share.", "Give a number from 0 up to, but not, 1.")
        if dropout and rng is None:
            raise ConfigError("Query dropout is random, and needs rng.", "Give a numpy.random.Generator.")
        return self._encode(queries, dropout, rng)

    def _encode(self, documents: Sequence[Document], dropout: float, rng: np.random.Generator | None) -> np.ndarray:
        vectors = np.zeros((len(documents), self.dim), np.float32)
        for row, document in enumerate(documents):
            words = re.findall(r"\w+|[^\w\s]", document.text.lower())
            if not words:
                raise ModalityError(f"{document!r} has no text to encode.", "This retriever encodes texts alone.")
            if dropout and rng is not None:
                kept = [word for word in words if rng.random() >= dropout]
                words = kept or [words[int(rng.integers(len(words)))]]
            total = np.sum([self._direction(word) for word in words], axis=0)
            vectors[row] = total / np.linalg.norm(total)
        return vectors

    def _direction(self, word: str) -> np.ndarray:
        seed = zlib.crc32(word.encode("utf-8", "surrogatepass"))
        return np.random.default_rng(seed).standard_normal(self.dim)
