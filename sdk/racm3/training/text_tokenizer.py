"""The text tokenizer: byte-level BPE, so that every text comes back exactly as it went in.

The file holds text tokens only. Control tokens belong to the models that use it and live outside, where no text can
produce them.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from ..durable import replace_file
from ..errors import ConfigError


class TextSettings(BaseModel):
    """The `[tokenizer]` table of a generator recipe: the text tokenizer, learnt from the training texts."""

    model_config = ConfigDict(extra="forbid")

    vocabulary: int = Field(2048, ge=256, description="tokens; the first generator of a run decides")
    longest: int = Field(128, ge=1, description="tokens of a text at most; longer ones are cut")


def train_text_tokenizer(texts: Iterable[str], vocab_size: int, path: str | Path) -> Tokenizer:
    """Learn a vocabulary from texts (training texts only) and write it to `path`, a `tokenizer.json`.

    vocab_size: at most this many tokens, at least 256, one for each byte; fewer when the texts do not hold more. Case,
    white space and Unicode form are kept. The same texts give the same file, in any order.
    """
    if vocab_size < 256:
        raise ConfigError(f"A byte-level vocabulary of {vocab_size} tokens is too small.", "Give at least 256.")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    tokenizer.train_from_iterator(sorted(texts), trainer)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, tokenizer.to_str(pretty=True))
    return tokenizer
