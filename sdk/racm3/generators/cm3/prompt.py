"""What is to be decoded: a prompt behind its context, as known tokens and the blanks to fill, in order.

Blanks at the end of a prompt are filled from left to right (a caption, then its picture); any other blank is filled
through its mask, behind the document, with everything around it in view (method section 5).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...document import Modality
from .document_format import DocumentFormat, Segment, Span, TokenPart, TokenSequence


@dataclass(frozen=True)
class Fill:
    """One blank. `lead` (ids and positions) is fed first; the drawn tokens stand from `position` on.

    length: the exact number of tokens of a picture; None for a text, which ends before the control token `stop`.
    """

    part: int
    modality: Modality
    lead: tuple[tuple[int, int], ...]
    position: int
    length: int | None
    stop: int


@dataclass(frozen=True)
class Prompt:
    """The parts of a prompt (tokens None: a blank) and the token sequences of its context, furthest first."""

    format: DocumentFormat
    modalities: Sequence[Modality]
    tokens: Sequence[Sequence[int] | None]
    image_length: int
    context: Sequence[TokenSequence] = ()

    @property
    def blanks(self) -> list[int]:
        """The parts that are to be filled."""
        return [part for part, tokens in enumerate(self.tokens) if tokens is None]

    @property
    def left_to_right(self) -> bool:
        """Whether all blanks stand at the end."""
        return self.blanks == list(range(len(self.tokens)))[-len(self.blanks) :]

    def extent(self, max_text_tokens: int) -> int:
        """How many positions the prompt's own document takes at most, with its blanks filled."""
        longest = {"image": self.image_length, "text": max_text_tokens}
        parts, spans = [], []
        for index, (modality, tokens) in enumerate(zip(self.modalities, self.tokens, strict=True)):
            if tokens is None and not self.left_to_right:
                spans.append(Span(index, 0, longest[modality]))
            parts.append(TokenPart(modality, [0] * longest[modality] if tokens is None else tokens))
        return int(self.format.write(parts, spans=spans).positions.max()) + 1

    def start(self) -> tuple[np.ndarray, np.ndarray]:
        """Ids and positions, int64 [n], of all that is known before the first blank is filled."""
        own = self.document({})
        stop = _segment(own, self.blanks[0]).start if self.left_to_right else len(own)
        sequences = [*self.context, TokenSequence(own.ids[:stop], own.positions[:stop])]
        return np.concatenate([s.ids for s in sequences]), np.concatenate([s.positions for s in sequences])

    def fill(self, number: int, filled: Mapping[int, Sequence[int]]) -> Fill:
        """Blank `number`, given what the blanks before it were filled with (ids by part)."""
        part = self.blanks[number]
        modality = self.modalities[part]
        length = self.image_length if modality == "image" else None
        control = self.format.vocabulary.control
        own = self.document(filled)
        if self.left_to_right:
            here = _segment(own, part).start
            began = _segment(own, self.blanks[number - 1]).stop if number else here
            lead = tuple(zip(own.ids[began:here].tolist(), own.positions[began:here].tolist(), strict=True))
            captions = modality == "text" and part + 1 < len(self.tokens) and self.modalities[part + 1] == "image"
            stop = control('" src="' if captions else "</p>")
            return Fill(part, modality, lead, int(own.positions[here - 1]) + 1, length, stop)
        gap = own.gaps[number]
        sentinel = (self.format.vocabulary.sentinel(number), gap.position - 1)
        lead = (sentinel,)
        if number:
            before = own.gaps[number - 1]
            lead = ((control("<eoss>"), before.position + len(filled[before.part])), sentinel)
        return Fill(part, modality, lead, gap.position, length, control("<eoss>"))

    def document(self, filled: Mapping[int, Sequence[int]]) -> TokenSequence:
        """The prompt's own document. Unfilled pictures are placeholders, unfilled texts empty; masks stay masks."""
        first_image = self.format.vocabulary.first_image
        parts, spans = [], []
        for index, (modality, tokens) in enumerate(zip(self.modalities, self.tokens, strict=True)):
            if tokens is None:
                placeholder = [0] * self.image_length if modality == "image" else []
                if self.left_to_right and index in filled:
                    placeholder = [t - first_image if modality == "image" else t for t in filled[index]]
                if not self.left_to_right:
                    spans.append(Span(index, 0, len(placeholder)))
                tokens = placeholder
            parts.append(TokenPart(modality, tokens))
        slot = self.format.slot_after(self.context[-1]) if self.context else 0
        return self.format.write(parts, slot=slot, spans=spans, append=False)


def _segment(sequence: TokenSequence, part: int) -> Segment:
    return next(segment for segment in sequence.segments if segment.part == part)
