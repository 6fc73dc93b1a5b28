"""`Cm3Generator`: documents in, filled documents out (paper sections 3.2 and 4)."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from ...device import device_named
from ...document import Document, Image, MaskedText, Modality, Part, Text
from ...errors import ConfigError, GenerationError
from ...interfaces import Event, Generator, Output, Request, Score
from ...options import Options

if TYPE_CHECKING:
    from .decoding import Decoder, Row
    from .model import Checkpoint
    from .prefix_cache import PrefixCache
    from .requests import RequestReader

# A picture that is being drawn is shown about so many times.
_PREVIEWS = 8


@dataclass(frozen=True)
class _Loaded:
    """A checkpoint, and what works on it."""

    checkpoint: Checkpoint
    reader: RequestReader
    decoder: Decoder


class Cm3Generator(Generator):
    """A CM3 checkpoint: a Llama over text and image tokens that fills the blanks of prompts.

    checkpoint: a folder that `racm3 train generator` wrote, or a Hugging Face id. device: "auto", "cpu", "cuda" ...
    dtype: of the Transformer's weights; the image tokenizer stays in float32. batch_rows: rows decoded side by side
    (a sample takes one for each of its streams). prefix_cache_bytes: what is kept of documents that were read; the next
    call with the same context then starts at once. compile: torch.compile, which takes its time at the first use and
    raises `GenerationError` where it cannot be had; measure whether it pays: on CPUs it may not. Threads can share a
    generator.
    """

    accepts: frozenset[Modality] = frozenset({"text", "image"})
    emits: frozenset[Modality] = frozenset({"text", "image"})

    def __init__(
        self,
        *,
        checkpoint: str | Path,
        device: str = "auto",
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        batch_rows: int = 64,
        prefix_cache_bytes: int = 256 * 2**20,
        compile: bool = False,
    ) -> None:
        if batch_rows < 1 or prefix_cache_bytes < 0:
            raise ConfigError(
                f"batch_rows is at least 1, and prefix_cache_bytes 0: not {batch_rows} and {prefix_cache_bytes}."
            )
        self._source, self._device, self._dtype, self._batch_rows = str(checkpoint), device, dtype, batch_rows
        self._prefix_cache_bytes, self._compile = prefix_cache_bytes, compile
        self._loaded: _Loaded | None = None
        self._lock = threading.Lock()

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, *, batch_rows: int = 64) -> Cm3Generator:
        """A generator on a checkpoint that is in memory already."""
        generator = cls(checkpoint="", batch_rows=batch_rows)
        generator._loaded = generator._on(checkpoint)
        return generator

    def _on(self, checkpoint: Checkpoint) -> _Loaded:
        from .decoding import Decoder
        from .prefix_cache import PrefixCache
        from .requests import RequestReader
        from .transformer import Transformer

        prefixes = PrefixCache(self._prefix_cache_bytes)
        transformer = Transformer(checkpoint.model, compile=self._compile)
        decoder = Decoder(transformer, prefixes, batch_rows=self._batch_rows)
        return _Loaded(checkpoint, RequestReader(checkpoint), decoder)

    def _ready(self) -> _Loaded:
        """Loading happens on first use, once."""
        with self._lock:
            if self._loaded is None:
                from .model import Checkpoint, resolve_folder

                device, folder = device_named(self._device), resolve_folder(self._source)
                self._loaded = self._on(Checkpoint.load(folder, device=device, dtype=self._dtype))
            return self._loaded

    @property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint; loaded on first use."""
        return self._ready().checkpoint

    @property
    def prefix_cache(self) -> PrefixCache:
        """What is kept of documents that were read, with its counters."""
        return self._ready().decoder.prefixes

    @property
    def fingerprint(self) -> str:
        loaded = self._loaded
        if loaded is not None:
            return loaded.checkpoint.fingerprint
        from .model import fingerprint, resolve_folder

        return fingerprint(resolve_folder(self._source))

    def generate(self, requests: Sequence[Request], *, options: Options | None = None) -> list[list[Output]]:
        """`options.n` filled documents for each request; see `Generator.generate`.

        A context that does not fit is cut by whole documents, least relevant first, with a warning in the log; a document
        that is longer than all the room is left out alone.
        """
        options, loaded = options or Options(), self._ready()
        jobs, seen = loaded.reader.jobs(requests, options)
        rows = loaded.decoder.run(jobs, options)
        return self._outputs(requests, rows, seen)

    def stream(self, request: Request, *, options: Options | None = None) -> Iterator[Event]:
        """Events of one generation: "tokens" after each row of a picture or token of a text, "preview" after some rows.

        Closing the iterator ends the work; nothing is left behind.
        """
        options, loaded = options or Options(), self._ready()
        jobs, seen = loaded.reader.jobs([request], options)
        rows = loaded.decoder.rows(jobs, options)
        grid = loaded.checkpoint.image_tokenizer.grid
        shown = 0
        for _ in loaded.decoder.steps(rows, every=grid):
            texts = [[self._text(row, part) for part in _drawn(row, "text")] for row in rows[0]]
            yield Event("tokens", detail={"tokens": [row.tokens for row in rows[0]], "texts": texts})
            drawn = sum(map(_image_tokens, rows[0]))
            if drawn - shown >= len(rows[0]) * grid * -(-grid // _PREVIEWS):
                shown = drawn
                yield Event("preview", detail={"images": [self._preview(row) for row in rows[0] if _image_tokens(row)]})
        yield Event("done", outputs=self._outputs([request], rows, seen)[0])

    def score(self, requests: Sequence[Request], targets: Sequence[Document]) -> list[Score]:
        """Log-probability (nats) and token count of each part that is blank in the prompt; of all, if none is.

        A text counts the token that ends it; structural tokens, which the grammar forces, do not count.
        """
        from .scoring import score_prompts

        if len(requests) != len(targets):
            raise GenerationError(f"{len(requests)} requests and {len(targets)} targets: give one target per request.")
        loaded = self._ready()
        filled = [loaded.reader.scored(request, target) for request, target in zip(requests, targets, strict=True)]
        return score_prompts(loaded.decoder.transformer, loaded.decoder.prefixes, filled)

    # --- tokens to documents ------------------------------------------------------------------------------------

    def _outputs(
        self, requests: Sequence[Request], rows: Sequence[Sequence[Row]], seen: Sequence[tuple[int, ...]]
    ) -> list[list[Output]]:
        pictures = self._paint(
            [self._codes(row, part) for group in rows for row in group for part in _drawn(row, "image")]
        )
        return [
            [
                Output(self._document(request.prompt, row, pictures), row.log_probability, row.tokens, own)
                for row in group
            ]
            for request, group, own in zip(requests, rows, seen, strict=True)
        ]

    def _codes(self, row: Row, part: int) -> tuple[int, ...]:
        """The codes of a picture, with what has been drawn of it."""
        prompt = row.job.streams[0]
        drawn = [(b, ids) for (i, b), ids in zip(prompt.blanks, row.filled, strict=False) if i == part]
        return tuple(prompt.filled(part, drawn).tokens)

    def _paint(self, drawn: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], np.ndarray]:
        """Pictures, uint8 [size, size, 3], decoded together, by their codes."""
        different = list(dict.fromkeys(drawn))
        if not different:
            return {}
        return dict(zip(different, self.checkpoint.image_tokenizer.decode(np.array(different)), strict=True))

    def _document(self, prompt: Document, row: Row, pictures: dict[tuple[int, ...], np.ndarray]) -> Document:
        parts: list[Part] = list(prompt.parts)
        for part in _drawn(row, "image"):
            parts[part] = Image(pictures[self._codes(row, part)])
        for part in _drawn(row, "text"):
            given, text = parts[part], self._text(row, part)
            parts[part] = Text(f"{given.before}{text}{given.after}" if isinstance(given, MaskedText) else text)
        return prompt.replace(parts=parts)

    def _text(self, row: Row, part: int) -> str:
        """What is written of a text so far."""
        blanks = row.job.streams[0].blanks
        written = next((ids for (i, _), ids in zip(blanks, row.filled, strict=False) if i == part), [])
        return self.checkpoint.text_tokenizer.decode(written, skip_special_tokens=False)

    def _preview(self, row: Row) -> Image:
        """The last picture that was begun. What is not drawn yet is white, or as it was, if it is a region."""
        prompt, tokenizer = row.job.streams[0], self.checkpoint.image_tokenizer
        part = [i for (i, _), _ in zip(prompt.blanks, row.filled, strict=False) if prompt.parts[i].modality == "image"][
            -1
        ]
        pixels = self._paint([self._codes(row, part)]).popitem()[1].copy()
        if prompt.parts[part].blanks[0].stop - prompt.parts[part].blanks[0].start == tokenizer.tokens:
            done = next(len(ids) for (i, _), ids in zip(prompt.blanks, row.filled, strict=False) if i == part)
            pixels[done // tokenizer.grid * (tokenizer.size // tokenizer.grid) :] = 255
        return Image(pixels)


def _drawn(row: Row, modality: Modality) -> list[int]:
    """The parts of this modality with a blank, in order."""
    prompt = row.job.streams[0]
    return [i for i, part in enumerate(prompt.parts) if part.blanks and part.modality == modality]


def _image_tokens(row: Row) -> int:
    """How many image tokens were drawn."""
    blanks = row.job.streams[0].blanks
    parts = row.job.streams[0].parts
    return sum(len(ids) for (i, _), ids in zip(blanks, row.filled, strict=False) if parts[i].modality == "image")
