"""`Cm3Generator`: documents in, filled documents out (paper sections 3.2 and 4)."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from ...document import Blank, Document, Image, Modality, Text
from ...errors import GenerationError, ModalityError
from ...interfaces import Generator, Hit, Options, Output, Request, Score
from .document_format import Span, TokenPart, TokenSequence
from .prompt import Prompt

if TYPE_CHECKING:
    from .decoding import Row
    from .model import Checkpoint

logger = logging.getLogger("racm3.generators.cm3")

# Token ids of this many pictures are kept: the same documents come back as context again and again.
_KEPT_PICTURES = 4096


class Cm3Generator(Generator):
    """A CM3 checkpoint: a Llama over text and image tokens that fills the blanks of prompts.

    checkpoint: a folder that `racm3 train generator` wrote, or a Hugging Face id. device: "auto", "cpu", "cuda" ...
    dtype: of the Transformer's weights; the image tokenizer stays in float32. batch_rows: samples decoded side by side.
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
    ) -> None:
        self._source, self._device, self._dtype, self._batch_rows = str(checkpoint), device, dtype, batch_rows
        self._checkpoint: Checkpoint | None = None
        self._pictures: OrderedDict[str, np.ndarray] = OrderedDict()
        self._lock = threading.RLock()

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, *, batch_rows: int = 64) -> Cm3Generator:
        """A generator on a checkpoint that is in memory already."""
        generator = cls(checkpoint="", batch_rows=batch_rows)
        generator._checkpoint = checkpoint
        return generator

    @property
    def checkpoint(self) -> Checkpoint:
        """The loaded checkpoint; loading happens on first use."""
        with self._lock:
            if self._checkpoint is None:
                import torch

                from .model import Checkpoint, resolve_folder

                device = self._device
                if device == "auto":
                    device = "cuda" if torch.cuda.is_available() else "cpu"
                self._checkpoint = Checkpoint.load(resolve_folder(self._source), device=device, dtype=self._dtype)
            return self._checkpoint

    @property
    def fingerprint(self) -> str:
        if self._checkpoint is not None:
            return self._checkpoint.fingerprint
        from .model import fingerprint, resolve_folder

        return fingerprint(resolve_folder(self._source))

    def generate(self, requests: Sequence[Request], *, options: Options | None = None) -> list[list[Output]]:
        """`options.n` filled documents for each request; see `Generator.generate`.

        A context that does not fit is cut by whole documents, least relevant first, with a warning in the log.
        """
        from .decoding import Decoder

        options = options or Options()
        with self._lock:
            prompts = [self._prompt(request, options.max_text_tokens) for request in requests]
            rows = Decoder(self.checkpoint.model, batch_rows=self._batch_rows).run(prompts, options)
            pictures = self._paint([row for group in rows for row in group])
            return [
                [self._output(request.prompt, row, pictures) for row in group]
                for request, group in zip(requests, rows, strict=True)
            ]

    def score(self, requests: Sequence[Request], targets: Sequence[Document]) -> list[Score]:
        """Log-probability (nats) and token count of each part that is blank in the prompt; of all, if none is.

        A text counts the token that ends it; structural tokens, which the grammar forces, do not count.
        """
        from .scoring import score_sequences

        if len(requests) != len(targets):
            raise GenerationError(f"{len(requests)} requests and {len(targets)} targets: give one target per request.")
        with self._lock:
            prepared = [self._scored(request, target) for request, target in zip(requests, targets, strict=True)]
            return score_sequences(self.checkpoint, prepared, batch_rows=self._batch_rows)

    # --- documents to tokens ------------------------------------------------------------------------------------

    def token_parts(self, document: Document) -> list[TokenPart | None]:
        """The parts of a document as tokens; None where it is blank."""
        return [self._tokens(part) for part in document.parts]

    def _tokens(self, part: Text | Image | Blank) -> TokenPart | None:
        if isinstance(part, Blank):
            return None
        if isinstance(part, Text):
            # Half a surrogate pair is no character; a str may hold one all the same.
            text = part.text.encode("utf-8", "replace").decode("utf-8")
            return TokenPart("text", self.checkpoint.text_tokenizer.encode(text).ids)
        codes = self._pictures.get(part.content_hash)
        if codes is None:
            tokenizer = self.checkpoint.image_tokenizer
            codes = tokenizer.encode(part.square(tokenizer.size)[None])[0]
        self._pictures[part.content_hash] = codes
        self._pictures.move_to_end(part.content_hash)
        if len(self._pictures) > _KEPT_PICTURES:
            self._pictures.popitem(last=False)
        return TokenPart("image", codes.tolist())

    def _prompt(self, request: Request, max_text_tokens: int) -> Prompt:
        if not request.prompt.blanks:
            raise GenerationError(
                "The prompt has no blank to fill.", "Add Blank('image') or Blank('text') where something is wanted."
            )
        parts = self.token_parts(request.prompt)
        prompt = Prompt(
            self.checkpoint.format,
            [part.modality for part in request.prompt.parts],
            [None if part is None else part.tokens for part in parts],
            self.checkpoint.image_tokenizer.tokens,
        )
        return replace(prompt, context=self._context(request.context, self._room(prompt.extent(max_text_tokens))))

    def _room(self, extent: int) -> int:
        """Positions that are left for the context, before a document of so many: a multiple of the stride."""
        limit = self.checkpoint.model.config.max_position_embeddings
        if extent > limit:
            raise GenerationError(
                f"The prompt with its blanks filled takes up to {extent} positions; the model holds {limit}.",
                "Make the prompt shorter, or lower max_text_tokens.",
            )
        stride = self.checkpoint.format.document_stride
        return (limit - extent) // stride * stride

    def _context(self, hits: Sequence[Hit], room: int) -> list[TokenSequence]:
        """The documents as token sequences, the most relevant last: nearest to the prompt."""
        format, end = self.checkpoint.format, 0
        chosen: list[list[TokenPart]] = []
        for hit in hits:
            parts = self.token_parts(hit.document)
            if any(part is None for part in parts):
                raise ModalityError(f"The context document '{hit.id}' has a blank.", "Only prompts may have blanks.")
            whole = [part for part in parts if part is not None]
            end = -(-end // format.document_stride) * format.document_stride
            end += int(format.write(whole).positions.max()) + 1
            if end > room:
                logger.warning("the context is cut to %d of %d documents: no more fit", len(chosen), len(hits))
                break
            chosen.append(whole)
        sequences: list[TokenSequence] = []
        for whole in reversed(chosen):
            slot = format.slot_after(sequences[-1]) if sequences else 0
            sequences.append(format.write(whole, slot=slot))
        return sequences

    def _scored(self, request: Request, target: Document) -> tuple[list[TokenSequence], TokenSequence, list[int]]:
        """Context, target sequence, and the parts that count."""
        blanks = [i for i, part in enumerate(request.prompt.parts) if isinstance(part, Blank)]
        shapes = [[part.modality for part in d.parts] for d in (request.prompt, target)]
        if shapes[0] != shapes[1] or target.blanks:
            raise GenerationError(f"The target {target!r} is not the prompt {request.prompt!r} with its blanks filled.")
        parts = [part for part in self.token_parts(target) if part is not None]
        counted = blanks or list(range(len(parts)))
        last = list(range(len(parts)))[-len(counted) :]
        spans = [] if counted == last else [Span(i, 0, len(parts[i].tokens)) for i in counted]
        format = self.checkpoint.format
        plain = format.write(parts, spans=spans)
        context = self._context(request.context, self._room(int(plain.positions.max()) + 1))
        slot = format.slot_after(context[-1]) if context else 0
        return context, format.write(parts, slot=slot, spans=spans), counted

    # --- tokens to documents ------------------------------------------------------------------------------------

    def _paint(self, rows: Sequence[Row]) -> dict[tuple[int, ...], Image]:
        """The pictures that were drawn, decoded together, by their tokens."""
        first_image = self.checkpoint.vocabulary.first_image
        drawn = {
            tuple(ids): None
            for row in rows
            for part, ids in row.filled.items()
            if row.prompt.modalities[part] == "image"
        }
        if not drawn:
            return {}
        pixels = self.checkpoint.image_tokenizer.decode(np.array(list(drawn)) - first_image)
        return {ids: Image(picture) for ids, picture in zip(drawn, pixels, strict=True)}

    def _output(self, prompt: Document, row: Row, pictures: dict[tuple[int, ...], Image]) -> Output:
        parts: list[Text | Image | Blank] = list(prompt.parts)
        for part, ids in row.filled.items():
            if row.prompt.modalities[part] == "image":
                parts[part] = pictures[tuple(ids)]
            else:
                parts[part] = Text(self.checkpoint.text_tokenizer.decode(ids, skip_special_tokens=False))
        return Output(prompt.replace(parts=parts), row.log_probability, row.tokens, len(row.prompt.context))


