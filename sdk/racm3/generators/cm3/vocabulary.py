"""The vocabulary: text tokens, then control tokens, then image tokens (paper section 3.2).

Text ids are those of `tokenizer.json`. Control and image ids lie above them and are in no tokenizer, so no text can
ever produce one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...errors import CheckpointError, WeightsNotFound

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SENTINELS = 16
CONTROL = (
    "<pad>", "<s>", "</s>", "<p>", "</p>", '<img alt="', '<img src="', '" src="', '">', "<eoss>",
    *(f"<mask:{i}>" for i in range(SENTINELS)),
)  # fmt: skip


@dataclass(frozen=True)
class Vocabulary:
    """Which id is what. text_tokens, image_tokens: how many there are of each."""

    text_tokens: int
    image_tokens: int

    @property
    def size(self) -> int:
        return self.text_tokens + len(CONTROL) + self.image_tokens

    @property
    def first_image(self) -> int:
        """The id of image token 0."""
        return self.text_tokens + len(CONTROL)

    def control(self, name: str) -> int:
        """The id of a control token, such as `control("<eoss>")`."""
        return self.text_tokens + CONTROL.index(name)

    def sentinel(self, number: int) -> int:
        """The id of `<mask:number>`."""
        return self.control(f"<mask:{number}>")

    def text_mask(self) -> np.ndarray:
        """bool [size]: the text tokens."""
        return np.arange(self.size) < self.text_tokens

    def image_mask(self) -> np.ndarray:
        """bool [size]: the image tokens."""
        return np.arange(self.size) >= self.first_image

    def names(self, ids: Sequence[int], tokenizer: Tokenizer | None = None) -> list[str]:
        """Readable names of ids, for a look at a sequence."""
        names = []
        for token in ids:
            if token < self.text_tokens:
                names.append(tokenizer.decode([token]) if tokenizer is not None else f"text:{token}")
            elif token < self.first_image:
                names.append(CONTROL[token - self.text_tokens])
            else:
                names.append(f"image:{token - self.first_image}")
        return names


def load_text_tokenizer(path: str | Path) -> Tokenizer:
    """Open a `tokenizer.json`; `WeightsNotFound` or `CheckpointError` say what is wrong with it."""
    from tokenizers import Tokenizer

    path = Path(path)
    if not path.is_file():
        raise WeightsNotFound(f"No text tokenizer at {path}.", "A checkpoint folder holds tokenizer.json.")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises plain Exception
        raise CheckpointError(
            f"The text tokenizer {path} cannot be read: {error}", "Copy the whole checkpoint folder again."
        ) from error
