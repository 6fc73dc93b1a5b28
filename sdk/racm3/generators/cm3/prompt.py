"""What is to be decoded: a prompt behind its context, as known tokens and the blanks to fill, in order.

Blanks at the end of a prompt are filled from left to right (a caption, then its picture); any other blank is filled
through its mask, behind the document, with everything around it in view (method section 5).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from ...document import Modality
from ...errors import GenerationError
from .document_format import DocumentFormat, Segment, Span, TokenPart, TokenSequence
from .vocabulary import SENTINELS

# A region of a picture is cut from it in at most so many spans: more sentinels than training shows are of no use.
MAX_SPANS = 8


@dataclass(frozen=True)
class Blanked:
    """Tokens `start:stop` of a part that are to be filled; a text, whose length is unknown, has none (start = stop).

    known: which of a picture's tokens inside are not to be drawn, as they stay what they are.
    """

    start: int
    stop: int
    known: frozenset[int] = frozenset()


@dataclass(frozen=True)
class PromptPart(TokenPart):
    """A part of a prompt: its tokens, what of them is blank, and whether the model sees it (guidance hides the rest)."""

    blanks: tuple[Blanked, ...] = ()
    hidden: bool = False

    @classmethod
    def blank_text(cls, before: Sequence[int] = (), after: Sequence[int] = ()) -> PromptPart:
        """A text with a gap; all of it, when nothing stands around it."""
        return cls("text", (*before, *after), (Blanked(len(before), len(before)),))

    @classmethod
    def blank_image(cls, length: int) -> PromptPart:
        """A picture of so many tokens, all of which are to be drawn."""
        return cls("image", (0,) * length, (Blanked(0, length),))

    @classmethod
    def masked_image(cls, codes: Sequence[int], masked: np.ndarray) -> PromptPart:
        """A picture of which some tokens (bool [tokens]) are to be drawn, in at most `MAX_SPANS` spans.

        Where the region has more runs, those nearest to each other become one, whose known tokens are kept.
        """
        at = np.flatnonzero(masked)
        runs = [(int(run[0]), int(run[-1]) + 1) for run in np.split(at, np.flatnonzero(np.diff(at) > 1) + 1)]
        while len(runs) > MAX_SPANS:
            near = min(range(len(runs) - 1), key=lambda i: runs[i + 1][0] - runs[i][1])
            runs[near : near + 2] = [(runs[near][0], runs[near + 1][1])]
        blanks = (
            Blanked(start, stop, frozenset(i for i in range(start, stop) if not masked[i])) for start, stop in runs
        )
        return cls("image", tuple(codes), tuple(blanks))


@dataclass(frozen=True)
class Fill:
    """One blank. `lead` (ids and positions) is fed first; the drawn tokens stand from `position` on.

    length: the exact number of tokens of a picture; None for a text, which ends before the control token `stop`.
    known: ids of tokens that are not drawn, by their place in the blank.
    """

    part: int
    modality: Modality
    lead: tuple[tuple[int, int], ...]
    position: int
    length: int | None
    stop: int
    known: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Prompt:
    """The parts of a prompt and the token sequences of its context, furthest first."""

    format: DocumentFormat
    parts: Sequence[PromptPart]
    context: Sequence[TokenSequence] = ()

    def __post_init__(self) -> None:
        masks = sum(part.hidden for part in self.parts) + (0 if self.left_to_right else len(self.blanks))
        if masks > SENTINELS:
            raise GenerationError(
                f"The prompt has {masks} gaps; a document can have {SENTINELS}.", "Fill them in several calls."
            )

    @cached_property
    def blanks(self) -> list[tuple[int, Blanked]]:
        """What is to be filled, with the number of its part, in order."""
        return [(number, blank) for number, part in enumerate(self.parts) for blank in part.blanks]

    @cached_property
    def left_to_right(self) -> bool:
        """Whether nothing known stands behind a blank: all can be filled in the order of reading."""
        if not self.blanks:
            return True
        first = self.blanks[0][0]
        ends = all(
            len(part.blanks) == 1 and part.blanks[0].stop == len(part.tokens) and not part.blanks[0].known
            for part in self.parts[first:]
        )
        return ends and all(part.blanks[0].start == 0 for part in self.parts[first + 1 :])

    @property
    def slot(self) -> int:
        """The position at which the prompt's own document starts."""
        return self.format.slot_after(self.context[-1]) if self.context else 0

    def hiding(self, parts: Iterable[int]) -> Prompt:
        """The same prompt with these known parts behind masks."""
        hidden = set(parts)
        return replace(self, parts=[replace(p, hidden=p.hidden or i in hidden) for i, p in enumerate(self.parts)])

    def start(self) -> tuple[np.ndarray, np.ndarray]:
        """Ids and positions, int64 [n], of the prompt's own document up to the first token that is drawn."""
        own = self.document()
        stop = self._begin(own, 0) if self.left_to_right else len(own)
        lead = np.array(self.fill(0, ()).lead, np.int64).reshape(-1, 2)
        return np.concatenate([own.ids[:stop], lead[:, 0]]), np.concatenate([own.positions[:stop], lead[:, 1]])

    def fill(self, number: int, filled: Sequence[Sequence[int]]) -> Fill:
        """Blank `number`, given what the blanks before it were filled with (ids)."""
        index, blank = self.blanks[number]
        modality = self.parts[index].modality
        length = blank.stop - blank.start if modality == "image" else None
        first_image, control = self.format.vocabulary.first_image, self.format.vocabulary.control
        known = {i - blank.start: self.parts[index].tokens[i] + first_image for i in blank.known}
        own = self.document(filled)
        if self.left_to_right:
            here = self._begin(own, number)
            began = self._begin(own, number - 1) + len(filled[number - 1]) if number else here
            lead = tuple(zip(own.ids[began:here].tolist(), own.positions[began:here].tolist(), strict=True))
            captions = index + 1 < len(self.parts) and self.parts[index + 1].modality == "image"
            stop = control('" src="') if captions else control("</p>")
            return Fill(index, modality, lead, int(own.positions[here - 1]) + 1, length, stop, known)
        masks = self._masks()
        gap = own.gaps[masks.index((index, blank))]
        lead = ((self.format.vocabulary.sentinel(gap.number), gap.position - 1),)
        if number:
            before = own.gaps[masks.index(self.blanks[number - 1])]
            lead = ((control("<eoss>"), before.position + len(filled[number - 1])), *lead)
        return Fill(index, modality, lead, gap.position, length, control("<eoss>"), known)

    def document(self, filled: Sequence[Sequence[int]] = ()) -> TokenSequence:
        """The prompt's own document. Unfilled pictures are placeholders, unfilled texts empty; masks stay masks."""
        spans = [Span(i, mask.start, mask.stop) for i, mask in self._masks()]
        parts: list[TokenPart] = list(self.parts)
        if self.left_to_right:
            for (index, blank), ids in zip(self.blanks, filled, strict=False):
                parts[index] = self.filled(index, [(blank, ids)])
        return self.format.write(parts, slot=self.slot, spans=spans, append=False)

    def complete(self, filled: Sequence[Sequence[int]]) -> tuple[TokenSequence, list[np.ndarray]]:
        """The filled document as training writes it, and of each blank where its drawn tokens stand in it: int64 [n].

        A text's drawn tokens include the one that ends it.
        """
        parts: list[TokenPart] = list(self.parts)
        for index in {index for index, _ in self.blanks}:
            drawn = [(b, ids) for (i, b), ids in zip(self.blanks, filled, strict=True) if i == index]
            parts[index] = self.filled(index, drawn)
        spans, masks = [], self._masks()
        for index, mask in masks:
            whole = (index, mask) in self.blanks and self.parts[index].modality == "text"
            stop = mask.start + len(filled[self.blanks.index((index, mask))]) if whole else mask.stop
            spans.append(Span(index, mask.start, stop))
        own = self.format.write(parts, slot=self.slot, spans=spans)
        gaps = own.segments[len(own.segments) - len(masks) :]
        places = []
        for number, (index, blank) in enumerate(self.blanks):
            if self.left_to_right:
                start = self._begin(own, number)
            else:
                start = gaps[masks.index((index, blank))].start
            ends = 1 if self.parts[index].modality == "text" else 0
            every = np.arange(start, start + len(filled[number]) + ends)
            known = [i - blank.start for i in blank.known]
            places.append(np.delete(every, known))
        return own, places

    def filled(self, index: int, drawn: Sequence[tuple[Blanked, Sequence[int]]]) -> TokenPart:
        """A part with what was drawn (ids) in its blanks; a picture of which little was drawn keeps placeholders."""
        part = self.parts[index]
        tokens = list(part.tokens)
        shift = self.format.vocabulary.first_image if part.modality == "image" else 0
        for blank, ids in reversed(drawn):
            stop = blank.start + len(ids) if part.modality == "image" else blank.stop
            tokens[blank.start : stop] = [token - shift for token in ids]
        return TokenPart(part.modality, tokens)

    def extent(self, max_text_tokens: int) -> int:
        """How many positions the prompt's own document takes at most, with its blanks filled."""
        parts: list[TokenPart] = list(self.parts)
        for index, blank in self.blanks:
            if parts[index].modality == "text":
                parts[index] = self.filled(index, [(blank, [0] * max_text_tokens)])
        spans = []
        for index, mask in self._masks():
            long = max_text_tokens if (index, mask) in self.blanks and self.parts[index].modality == "text" else 0
            spans.append(Span(index, mask.start, mask.stop + long))
        return int(self.format.write(parts, spans=spans).positions.max()) + 1

    def steps(self, max_text_tokens: int) -> int:
        """How many tokens are fed at most after the start."""
        longest = [max_text_tokens if b.start == b.stop else b.stop - b.start for _, b in self.blanks]
        filled = [[0] * length for length in longest]
        leads = sum(len(self.fill(number, filled[:number]).lead) for number in range(1, len(longest)))
        return sum(longest) + leads

    def _masks(self) -> list[tuple[int, Blanked]]:
        """What stands behind a mask, in the order of the sentinels: hidden parts, and blanks with something after them."""
        hidden = [(i, Blanked(0, len(part.tokens))) for i, part in enumerate(self.parts) if part.hidden]
        blanks = [] if self.left_to_right else self.blanks
        return sorted([*hidden, *blanks], key=lambda mask: (mask[0], mask[1].start))

    def _begin(self, own: TokenSequence, number: int) -> int:
        """Where blank `number` begins in a document that is filled from left to right."""
        index, blank = self.blanks[number]
        segment: Segment = next(s for s in own.segments if s.part == index)
        return segment.start + blank.start
