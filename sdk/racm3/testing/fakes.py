"""Light components for tests: they rank by content and draw what they are asked, with no weights to load."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from ..document import Blank, Document, Image, MaskedText, Modality, Part, Text
from ..errors import ConfigError, GenerationError, ModalityError
from ..interfaces import Encoder, Generator, Output, Request, Retriever, Score
from ..options import Options
from ..seeds import stream_keys

if TYPE_CHECKING:
    import numpy as np

GRID = 4
_WORD = re.compile(r"\w+|[^\w\s]")


@lru_cache(maxsize=65536)
def _direction(feature: str, dim: int) -> np.ndarray:
    """A random but fixed direction for a feature: those of two features are nearly at right angles."""
    import numpy as np

    seed = int.from_bytes(hashlib.blake2b(feature.encode("utf-8", "replace"), digest_size=8).digest(), "little")
    vector = np.random.default_rng(seed).standard_normal(dim)
    vector.flags.writeable = False
    return vector


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower()) or [""]


def _unit(vector: np.ndarray) -> np.ndarray:
    import numpy as np

    return vector / max(float(np.linalg.norm(vector)), 1e-12)


class HashingRetriever(Retriever):
    """Hashes the words of texts, and a coarse grid of the colours of pictures, into one space.

    Documents that share words, or look alike from afar, come out near each other. Text and picture are normalised,
    averaged and normalised again, as the method has it.

    >>> from racm3 import Document
    >>> kite, whale = HashingRetriever().encode_document([Document("a red kite"), Document("a grey whale")])
    >>> query = HashingRetriever().encode_query([Document("whale")])[0]
    >>> bool(query @ whale > query @ kite)
    True
    """

    def __init__(self, dim: int = 64) -> None:
        self.dim = dim

    @property
    def encoder(self) -> Encoder:
        return Encoder(f"hashing-{self.dim}-grid-{GRID}", self.dim)

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
        import numpy as np

        vectors = np.zeros((len(documents), self.dim), np.float32)
        for row, document in enumerate(documents):
            texts = [self._text(text, dropout, rng) for text in document.texts if text.strip()]
            images = [self._image(image, dropout, rng) for image in document.images]
            modalities = [_unit(np.sum(found, axis=0)) for found in (texts, images) if found]
            if not modalities:
                raise ModalityError(f"{document!r} has neither text nor picture to encode.")
            vectors[row] = _unit(np.sum(modalities, axis=0))
        return vectors

    def _text(self, text: str, dropout: float, rng: np.random.Generator | None) -> np.ndarray:
        import numpy as np

        features = [_direction(word, self.dim) for word in _words(text)]
        kept = _kept(len(features), dropout, rng)
        return _unit(np.sum([feature for feature, keep in zip(features, kept, strict=True) if keep], axis=0))

    def _image(self, image: Image, dropout: float, rng: np.random.Generator | None) -> np.ndarray:
        import numpy as np

        colours = image.square(GRID).reshape(-1, 3) / 255 - 0.5  # [cells, 3]
        colours = colours * _kept(len(colours), dropout, rng)[:, None]
        # The last feature keeps a picture of middle grey, all of whose colours are 0, from having no direction.
        weights = np.append(colours.ravel(), 1e-3)
        directions = np.stack([_direction(f"\0grid:{index}", self.dim) for index in range(len(weights))])
        return _unit(weights @ directions)


def _kept(count: int, dropout: float, rng: np.random.Generator | None) -> np.ndarray:
    """Which of the features stay; at least one."""
    import numpy as np

    if rng is None or not dropout:
        return np.ones(count, bool)
    kept = rng.random(count) >= dropout
    kept[rng.integers(count)] |= not kept.any()
    return kept


class PaintingGenerator(Generator):
    """Paints its prompt: colours from the words, over a trace of the first picture in the context, plus the seed's own.

    A blank for text gets the first text of the context, or the words of the prompt.

    >>> from racm3 import Blank, Document, Options
    >>> from racm3.interfaces import Request
    >>> prompt = Document(["a red kite", Blank("image")])
    >>> first, second = PaintingGenerator().generate([Request(prompt)], options=Options(n=2, seed=1))[0]
    >>> first.document.image.size, first.document.image == second.document.image
    ((32, 32), False)
    """

    accepts: frozenset[Modality] = frozenset({"text", "image"})
    emits: frozenset[Modality] = frozenset({"text", "image"})

    def __init__(self, size: int = 32) -> None:
        self.size = size

    @property
    def fingerprint(self) -> str:
        return f"painting-{self.size}"

    def generate(self, requests: Sequence[Request], *, options: Options) -> list[list[Output]]:
        import numpy as np

        streams = stream_keys([request.prompt for request in requests])
        return [
            [
                self._fill(request, np.random.default_rng([options.seed, *stream, sample]), options)
                for sample in range(options.n)
            ]
            for request, stream in zip(requests, streams, strict=True)
        ]

    def score(self, requests: Sequence[Request], targets: Sequence[Document]) -> list[Score]:
        if len(requests) != len(targets):
            raise GenerationError(f"{len(requests)} requests and {len(targets)} targets: give one target per request.")
        scores = []
        for request, target in zip(requests, targets, strict=True):
            shapes = [[part.modality for part in document.parts] for document in (request.prompt, target)]
            if shapes[0] != shapes[1] or target.blanks:
                raise GenerationError(
                    f"The target {target!r} is not the prompt {request.prompt!r} with its blanks filled."
                )
            pairs = zip(request.prompt.parts, target.parts, strict=True)
            scored = [part for asked, part in pairs if isinstance(asked, Blank)] or list(target.parts)
            each = [self._likelihood(request, part) for part in scored]
            scores.append(Score(tuple(value for value, _ in each), tuple(tokens for _, tokens in each)))
        return scores

    def _fill(self, request: Request, rng: np.random.Generator, options: Options) -> Output:
        if not request.prompt.blanks:
            raise GenerationError(f"{request.prompt!r} has no blank to fill.", "Add Blank('image') or Blank('text').")
        parts: list[Part] = []
        likelihoods = []
        for part in request.prompt.parts:
            if isinstance(part, Blank):
                part = (
                    self._write(request, part, options) if part.modality == "text" else Image(self._paint(request, rng))
                )
                likelihoods.append(self._likelihood(request, part))
            parts.append(part)
        return Output(
            request.prompt.replace(parts=parts), sum(p for p, _ in likelihoods), sum(n for _, n in likelihoods)
        )

    def _write(self, request: Request, blank: Blank, options: Options) -> Text:
        text = self._words(request, options)
        return Text(f"{blank.before}{text}{blank.after}" if isinstance(blank, MaskedText) else text)

    def _words(self, request: Request, options: Options) -> str:
        texts = [hit.document.text for hit in request.context] + [request.prompt.text]
        text = next((text for text in texts if text.strip()), "a picture")
        return text[: [found.end() for found in _WORD.finditer(text)][: options.max_text_tokens][-1]]

    def _paint(self, request: Request, rng: np.random.Generator | None = None) -> np.ndarray:
        """A picture of the prompt, uint8 [size, size, 3]; without `rng` the one that all samples lie around."""
        import numpy as np

        canvas = np.zeros((self.size, self.size, 3))
        for word in _words(request.prompt.text):
            canvas += 255 / (1 + np.exp(-_direction(word, 3)))
        canvas /= len(_words(request.prompt.text))
        picture = next((hit.document.image for hit in request.context if hit.document.image is not None), None)
        if picture is not None:
            canvas = (canvas + 3 * picture.square(self.size)) / 4
        if rng is not None:
            canvas = canvas + rng.normal(0, 4, canvas.shape)
        return np.clip(canvas, 0, 255).astype(np.uint8)

    def _likelihood(self, request: Request, part: Part) -> tuple[float, int]:
        """Log-probability and tokens of a part: high when the prompt and the context foretell it."""
        import numpy as np

        if isinstance(part, Image):
            expected = self._paint(request).astype(float)
            # Floored, so that the mean of all samples does not count as certain.
            error = float(np.mean(np.abs(part.square(self.size) - expected))) / 255
            return -GRID * GRID * (0.1 + 10 * error), GRID * GRID
        words = _words(part.text) if isinstance(part, Text) else []
        known = {word for hit in request.context for word in _words(hit.document.text)} | set(
            _words(request.prompt.text)
        )
        return -sum(1.0 if word in known else 5.0 for word in words), len(words)
