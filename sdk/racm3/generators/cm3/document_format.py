"""Documents as token sequences (paper section 3.2; CM3, arXiv 2201.07520).

A document is hypertext. A text directly before an image is its `alt`; any other text stands in `<p>`:

    <s> <img alt=" TEXT " src=" IMAGE "> </s>
    <s> <p> TEXT </p> <img src=" IMAGE "> </s>

A span that is masked stands at the end, behind the sentinel that took its place:

    <s> <img alt=" <mask:0> " src=" IMAGE "> <mask:0> TEXT <eoss> </s>

Every structural piece is one control token. Positions are explicit: a document starts at a multiple of
`document_stride`, its first image at `image_offset` in it however long the caption, and a masked span keeps the positions
that it was cut from. A place in one picture then lies at a constant distance from the same place in any other, which
attention learns within minutes instead of hours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ...document import Modality
from .vocabulary import Vocabulary


@dataclass(frozen=True)
class TokenPart:
    """A part of a document as token ids: text ids, or image codes from 0 on."""

    modality: Modality
    tokens: Sequence[int]


@dataclass(frozen=True)
class Span:
    """Tokens `start:stop` of a part that are masked. A text of unknown length is the empty span 0:0."""

    part: int
    start: int
    stop: int


@dataclass(frozen=True)
class Segment:
    """Where a piece of a part lies in the sequence: `start:stop`, without the control tokens around it; may be empty."""

    part: int
    modality: Modality
    start: int
    stop: int


@dataclass(frozen=True)
class Gap:
    """A masked span: sentinel number, the part it is cut from, the position of its first token, and its tokens' ids."""

    number: int
    part: int
    modality: Modality
    position: int
    ids: tuple[int, ...]


@dataclass(frozen=True)
class TokenSequence:
    """Tokens of one document: ids and positions, int64 [n], where the parts lie, and what is masked."""

    ids: np.ndarray
    positions: np.ndarray
    segments: tuple[Segment, ...] = ()
    gaps: tuple[Gap, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class DocumentFormat:
    """Writes documents as token sequences; `document_stride` and `image_offset` are counted in positions."""

    vocabulary: Vocabulary
    document_stride: int = 128
    image_offset: int = 32

    def write(
        self, parts: Sequence[TokenPart], *, slot: int = 0, spans: Sequence[Span] = (), append: bool = True
    ) -> TokenSequence:
        """One document from position `slot` on, its spans masked.

        append: put the masked spans and `</s>` at the end, as in training; without it the sequence stops where a
        generator would go on. Spans must be disjoint and at most one per sentinel.
        """
        control = self.vocabulary.control
        out = _Writer(slot)
        out.put(control("<s>"))
        numbers = {span: number for number, span in enumerate(sorted(spans, key=lambda s: (s.part, s.start)))}
        for index, part in enumerate(parts):
            masked = [(number, span) for span, number in numbers.items() if span.part == index]
            if part.modality == "text":
                captions = index + 1 < len(parts) and parts[index + 1].modality == "image"
                out.put(control('<img alt="' if captions else "<p>"))
                self._put_part(out, index, part, masked)
                if not captions:
                    out.put(control("</p>"))
            else:
                captioned = index > 0 and parts[index - 1].modality == "text"
                # The token before the picture moves along: the first image token is predicted from it.
                out.at = max(out.at, slot + self.image_offset - 1)
                out.put(control('" src="' if captioned else '<img src="'))
                self._put_part(out, index, part, masked)
                out.put(control('">'))
        if append:
            for gap in out.gaps:
                out.at = gap.position - 1
                out.put(self.vocabulary.sentinel(gap.number))
                out.put_segment(gap.part, gap.modality, gap.ids)
                out.put(control("<eoss>"))
            out.at = max(out.positions) + 1
            out.put(control("</s>"))
        return TokenSequence(
            np.array(out.ids, np.int64), np.array(out.positions, np.int64), tuple(out.segments), tuple(out.gaps)
        )

    def _put_part(self, out: _Writer, index: int, part: TokenPart, masked: Sequence[tuple[int, Span]]) -> None:
        offset = self.vocabulary.first_image if part.modality == "image" else 0
        ids = (np.asarray(part.tokens, np.int64) + offset).tolist()
        done = 0
        for number, span in masked:
            if span.start > done:
                out.put_segment(index, part.modality, ids[done : span.start])
            out.gaps.append(Gap(number, index, part.modality, out.at, tuple(ids[span.start : span.stop])))
            out.put(self.vocabulary.sentinel(number))
            if part.modality == "image":
                # A picture has a fixed number of tokens, so the rest of it stays in its place. A text's length must
                # not show: what follows it closes up.
                out.at += span.stop - span.start - 1
            done = span.stop
        if done < len(ids) or not masked:
            out.put_segment(index, part.modality, ids[done:])

    def slot_after(self, sequence: TokenSequence) -> int:
        """The position at which the document after this one starts."""
        end = int(sequence.positions.max()) + 1
        return -(-end // self.document_stride) * self.document_stride


@dataclass
class _Writer:
    """Tokens and positions, side by side; `at` is the next position."""

    at: int
    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)

    def put(self, *tokens: int) -> None:
        self.ids.extend(tokens)
        self.positions.extend(range(self.at, self.at + len(tokens)))
        self.at += len(tokens)

    def put_segment(self, part: int, modality: Modality, ids: Sequence[int]) -> None:
        start = len(self.ids)
        self.put(*ids)
        self.segments.append(Segment(part, modality, start, len(self.ids)))
