"""Requests as tokens: prompts with their blanks, behind as many context documents as fit."""

from __future__ import annotations

import logging
import threading
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ...document import Document, Image, MaskedImage, MaskedText, Part, Text
from ...errors import GenerationError, ModalityError
from ...interfaces import Hit, Request
from ...options import Options
from ...retrieval import NotGrounded
from ...seeds import stream_keys
from .decoding import Job
from .document_format import TokenPart, TokenSequence
from .prompt import Prompt, PromptPart

if TYPE_CHECKING:
    from .model import Checkpoint

logger = logging.getLogger("racm3.generators.cm3")

# Token ids of this many pictures are kept: the same documents come back as context again and again.
_KEPT_PICTURES = 4096


class RequestReader:
    """Turns requests into jobs for the decoder, with the tokens of one checkpoint. Threads can share it."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint, self.format = checkpoint, checkpoint.format
        self.pictures: OrderedDict[str, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    # --- parts --------------------------------------------------------------------------------------------------

    def parts(self, document: Document) -> list[PromptPart]:
        """The parts of a document as tokens, with what is blank in them."""
        return [self._part(part) for part in document.parts]

    def _part(self, part: Part) -> PromptPart:
        if isinstance(part, Text):
            return PromptPart("text", self.text_ids(part.text))
        if isinstance(part, Image):
            return PromptPart("image", self.codes(part).tolist())
        if isinstance(part, MaskedText):
            return PromptPart.blank_text(self.text_ids(part.before), self.text_ids(part.after))
        if isinstance(part, MaskedImage):
            masked = part.cells(self.checkpoint.image_tokenizer.grid).ravel()
            return PromptPart.masked_image(self.codes(part.image).tolist(), masked)
        if part.modality == "text":
            return PromptPart.blank_text()
        return PromptPart.blank_image(self.checkpoint.image_tokenizer.tokens)

    def text_ids(self, text: str) -> list[int]:
        # Half a surrogate pair is no character; a str may hold one all the same.
        return self.checkpoint.text_tokenizer.encode(text.encode("utf-8", "replace").decode("utf-8")).ids

    def codes(self, image: Image) -> np.ndarray:
        """The image tokens of a picture, int64 [tokens]; remembered by its content."""
        with self._lock:
            codes = self.pictures.get(image.content_hash)
            if codes is not None:
                self.pictures.move_to_end(image.content_hash)
                return codes
        tokenizer = self.checkpoint.image_tokenizer
        codes = tokenizer.encode(image.square(tokenizer.size)[None])[0]
        with self._lock:
            self.pictures[image.content_hash] = codes
            if len(self.pictures) > _KEPT_PICTURES:
                self.pictures.popitem(last=False)
        return codes

    # --- prompts ------------------------------------------------------------------------------------------------

    def jobs(self, requests: Sequence[Request], options: Options) -> tuple[list[Job], list[tuple[int, ...]]]:
        """A job for each request, and which of its documents it sees."""
        keys = stream_keys([request.prompt for request in requests])
        made = [self._job(request, options, key) for request, key in zip(requests, keys, strict=True)]
        return [job for job, _ in made], [seen for _, seen in made]

    def _job(self, request: Request, options: Options, key: tuple[int, ...]) -> tuple[Job, tuple[int, ...]]:
        if not request.prompt.blanks:
            raise GenerationError(
                "The prompt has no blank to fill.", "Add Blank('image') or Blank('text') where something is wanted."
            )
        prompt = Prompt(self.format, self.parts(request.prompt))
        room = self.room(prompt.extent(options.max_text_tokens))
        groups, seen = self.groups(request.context, room, options.group_size)
        streams = [replace(prompt, context=context) for context in groups]
        guided = options.guidance != 1 or options.decoding != "sample"
        hidden = unprompted(prompt) if guided else []
        if hidden:
            streams += [stream.hiding(hidden) for stream in streams]
        context_guided = options.context_guidance != 1 and bool(seen)
        if context_guided:
            streams.append(prompt)
        return Job(streams, bool(hidden), context_guided, key), seen

    def scored(self, request: Request, target: Document) -> tuple[Prompt, list[list[int]]]:
        """A prompt behind its context, and the ids that a target has in its blanks; all parts, if the prompt has none."""
        shapes = [[part.modality for part in document.parts] for document in (request.prompt, target)]
        wrong = GenerationError(f"The target {target!r} is not the prompt {request.prompt!r} with its blanks filled.")
        if shapes[0] != shapes[1] or target.blanks:
            raise wrong
        asked = self.parts(request.prompt)
        if not request.prompt.blanks:
            blank = {
                "text": PromptPart.blank_text(),
                "image": PromptPart.blank_image(self.checkpoint.image_tokenizer.tokens),
            }
            asked = [blank[part.modality] for part in asked]
        filled: list[list[int]] = []
        first_image = self.format.vocabulary.first_image
        for given, part, wanted in zip(request.prompt.parts, asked, target.parts, strict=True):
            if part.blanks and isinstance(wanted, Image):
                codes = self.codes(wanted) + first_image
                kept = {i: code + first_image for i, code in enumerate(part.tokens)}
                for b in part.blanks:
                    filled.append([kept[i] if i in b.known else int(codes[i]) for i in range(b.start, b.stop)])
            elif part.blanks and isinstance(wanted, Text):
                text = wanted.text
                if isinstance(given, MaskedText):
                    inside = len(given.before) + len(given.after) <= len(text)
                    if not (inside and text.startswith(given.before) and text.endswith(given.after)):
                        raise wrong
                    text = text[len(given.before) : len(text) - len(given.after)]
                filled.append(self.text_ids(text))
        prompt = Prompt(self.format, asked)
        room = self.room(int(prompt.complete(filled)[0].positions.max()) + 1)
        (context,), seen = self.groups(request.context, room)
        if len(seen) < len(request.context):
            left_out = next(hit.id for number, hit in enumerate(request.context) if number not in seen)
            warnings.warn(
                f"A score rests on {len(seen)} of {len(request.context)} documents: '{left_out}' does not fit the context.",
                NotGrounded,
                stacklevel=2,
            )
        return replace(prompt, context=context), filled

    # --- context ------------------------------------------------------------------------------------------------

    def room(self, extent: int) -> int:
        """Positions that are left for the context, before a document of so many: a multiple of the stride."""
        limit = self.checkpoint.model.config.max_position_embeddings
        if extent > limit:
            raise GenerationError(
                f"The prompt with its blanks filled takes up to {extent} positions; the model holds {limit}.",
                "Make the prompt shorter, or, where a text is to be written, lower max_text_tokens.",
            )
        return (limit - extent) // self.format.document_stride * self.format.document_stride

    def groups(
        self, hits: Sequence[Hit], room: int, size: int | None = None
    ) -> tuple[list[list[TokenSequence]], tuple[int, ...]]:
        """The documents as token sequences, in groups of `size` that each fit, and which of them these are.

        At least one group, which may be empty. In a group the most relevant comes last, nearest to the prompt. size None:
        one group. A document that is longer than the room is left out, and so are all from the first on that finds no
        room behind the others.
        """
        groups: list[list[list[PromptPart]]] = [[]]
        seen: list[int] = []
        stride, end = self.format.document_stride, 0
        for number, hit in enumerate(hits):
            parts = self.parts(hit.document)
            if any(part.blanks for part in parts):
                raise ModalityError(f"The context document '{hit.id}' has a blank.", "Only prompts may have blanks.")
            length = int(self.format.write(parts).positions.max()) + 1
            if length > room:
                logger.warning("'%s' is left out: it is longer than the context", hit.id)
                continue
            after = -(-end // stride) * stride + length
            if size is not None and groups[-1] and (after > room or len(groups[-1]) == size):
                groups.append([])
                after = length
            if after > room:
                logger.warning("the context is cut to %d of %d documents: no more fit", len(seen), len(hits))
                break
            groups[-1].append(parts)
            seen.append(number)
            end = after
        return [self._written(group) for group in groups if group or len(groups) == 1], tuple(seen)

    def _written(self, group: Sequence[Sequence[TokenPart]]) -> list[TokenSequence]:
        sequences: list[TokenSequence] = []
        for parts in reversed(group):
            slot = self.format.slot_after(sequences[-1]) if sequences else 0
            sequences.append(self.format.write(parts, slot=slot))
        return sequences


def unprompted(prompt: Prompt) -> list[int]:
    """The parts that guidance hides: the texts before a picture is drawn, else the pictures, else whatever is known.

    The context documents stay, and so does what is known of the very part that is filled (CM3Leon, section 3).
    """
    wanted = {prompt.parts[part].modality for part, _ in prompt.blanks}
    known = [i for i, part in enumerate(prompt.parts) if not part.blanks and part.tokens]
    other = "text" if "image" in wanted else "image"
    return [i for i in known if prompt.parts[i].modality == other] or known
