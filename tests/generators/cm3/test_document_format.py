"""The document format: the very sequences, their positions, and what masking does to them."""

from __future__ import annotations

import numpy as np
import pytest

from racm3.generators.cm3.document_format import DocumentFormat, Span, TokenPart
from racm3.generators.cm3.masking import MaskingSettings, draw_spans
from racm3.generators.cm3.vocabulary import Vocabulary

VOCABULARY = Vocabulary(text_tokens=50, image_tokens=30)
FORMAT = DocumentFormat(VOCABULARY, document_stride=16, image_offset=6)


def text(*tokens):
    return TokenPart("text", tokens)


def image(*codes):
    return TokenPart("image", codes)


def spelled(sequence):
    """The sequence as "name@position" words; text token 7 is t7, image token 7 is i7."""
    names = VOCABULARY.names(sequence.ids.tolist())
    short = [name.replace("text:", "t").replace("image:", "i") for name in names]
    return " ".join(f"{name}@{at}" for name, at in zip(short, sequence.positions.tolist(), strict=True))


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([text(1, 2)], "<s>@0 <p>@1 t1@2 t2@3 </p>@4 </s>@5"),
        ([text()], "<s>@0 <p>@1 </p>@2 </s>@3"),
        ([image(3, 4)], '<s>@0 <img src="@5 i3@6 i4@7 ">@8 </s>@9'),
        ([text(1, 2), image(3, 4)], '<s>@0 <img alt="@1 t1@2 t2@3 " src="@5 i3@6 i4@7 ">@8 </s>@9'),
        ([image(3, 4), text(1)], '<s>@0 <img src="@5 i3@6 i4@7 ">@8 <p>@9 t1@10 </p>@11 </s>@12'),
        (
            [text(1), text(2), image(3), image(4), text(5)],
            '<s>@0 <p>@1 t1@2 </p>@3 <img alt="@4 t2@5 " src="@6 i3@7 ">@8 <img src="@9 i4@10 ">@11 '
            "<p>@12 t5@13 </p>@14 </s>@15",
        ),
    ],
    ids=["text", "empty text", "picture", "caption and picture", "picture and text", "interleaved"],
)
def test_documents_are_written_as_hypertext(parts, expected):
    assert spelled(FORMAT.write(parts)) == expected


@pytest.mark.parametrize(
    ("parts", "spans", "expected"),
    [
        (
            [text(1, 2), image(3, 4)],
            [Span(0, 0, 2)],
            '<s>@0 <img alt="@1 <mask:0>@2 " src="@5 i3@6 i4@7 ">@8 <mask:0>@1 t1@2 t2@3 <eoss>@4 </s>@9',
        ),
        (
            [text(1, 2), image(3, 4)],
            [Span(1, 0, 2)],
            '<s>@0 <img alt="@1 t1@2 t2@3 " src="@5 <mask:0>@6 ">@8 <mask:0>@5 i3@6 i4@7 <eoss>@8 </s>@9',
        ),
        (
            [image(1, 2, 3, 4)],
            [Span(0, 1, 3)],
            '<s>@0 <img src="@5 i1@6 <mask:0>@7 i4@9 ">@10 <mask:0>@6 i2@7 i3@8 <eoss>@9 </s>@11',
        ),
        (
            [text(1, 2, 3, 4, 5)],
            [Span(0, 1, 3)],
            "<s>@0 <p>@1 t1@2 <mask:0>@3 t4@4 t5@5 </p>@6 <mask:0>@2 t2@3 t3@4 <eoss>@5 </s>@7",
        ),
        (
            [text(1, 2, 3), image(4, 5, 6)],
            [Span(1, 2, 3), Span(0, 0, 1)],
            '<s>@0 <img alt="@1 <mask:0>@2 t2@3 t3@4 " src="@5 i4@6 i5@7 <mask:1>@8 ">@9 '
            "<mask:0>@1 t1@2 <eoss>@3 <mask:1>@7 i6@8 <eoss>@9 </s>@10",
        ),
        (
            [text(), image(3)],
            [Span(0, 0, 0)],
            '<s>@0 <img alt="@1 <mask:0>@2 " src="@5 i3@6 ">@7 <mask:0>@1 <eoss>@2 </s>@8',
        ),
    ],
    ids=["caption", "picture", "inside a picture", "inside a text", "two, numbered in reading order", "unknown text"],
)
def test_masked_spans_stand_at_the_end_at_the_positions_that_they_were_cut_from(parts, spans, expected):
    assert spelled(FORMAT.write(parts, spans=spans)) == expected


def test_without_append_the_sequence_stops_where_a_generator_goes_on():
    parts = [text(1, 2, 3), image(4, 5)]
    for spans in ([], [Span(0, 0, 3)], [Span(0, 1, 2), Span(1, 0, 1)]):
        whole, begun = FORMAT.write(parts, spans=spans), FORMAT.write(parts, spans=spans, append=False)
        assert whole.ids[: len(begun)].tolist() == begun.ids.tolist()
        assert whole.positions[: len(begun)].tolist() == begun.positions.tolist()
        rest = VOCABULARY.names(whole.ids[len(begun) :].tolist())
        assert rest[0] == ("<mask:0>" if spans else "</s>")


def test_the_first_image_token_stands_still_however_long_the_caption():
    for slot in (0, 16, 48):
        for length in range(4):
            sequence = FORMAT.write([text(*range(length)), image(7, 8)], slot=slot)
            assert sequence.positions[sequence.segments[1].start] == slot + FORMAT.image_offset


def test_a_caption_beyond_its_room_moves_the_picture_and_nothing_overlaps():
    for length in range(4, 12):
        sequence = FORMAT.write([text(*range(length)), image(7, 8)])
        assert sequence.positions[sequence.segments[1].start] == length + 3
        assert (np.diff(sequence.positions) > 0).all()


def test_each_document_starts_at_a_multiple_of_the_stride():
    slot, starts = 0, []
    for length in (1, 9, 12, 30, 2):
        sequence = FORMAT.write([text(*range(length)), image(7, 8)], slot=slot)
        starts.append(int(sequence.positions[0]))
        slot = FORMAT.slot_after(sequence)
        assert slot > sequence.positions.max()
    assert starts == [0, 16, 32, 64, 112]


def test_a_document_that_ends_at_the_stride_leaves_no_empty_slot():
    sequence = FORMAT.write([text(*range(12))])
    assert (len(sequence), FORMAT.slot_after(sequence)) == (16, 16)


def test_the_length_of_a_masked_text_does_not_show():
    """Nothing that stands before the masked tokens tells how many there are."""
    for length in range(1, 5):
        known = FORMAT.write([text(1, *[9] * length, 2), image(7, 8)], spans=[Span(0, 1, 1 + length)], append=False)
        assert spelled(known) == '<s>@0 <img alt="@1 t1@2 <mask:0>@3 t2@4 " src="@5 i7@6 i8@7 ">@8'


def random_documents(count):
    rng = np.random.default_rng(0)
    for _ in range(count):
        parts = []
        for _ in range(rng.integers(1, 5)):
            if rng.random() < 0.5:
                parts.append(text(*rng.integers(50, size=rng.integers(0, 12)).tolist()))
            else:
                parts.append(image(*rng.integers(30, size=9).tolist()))
        yield parts, draw_spans(parts, MaskingSettings(rate=3.0), rng), int(rng.integers(4)) * 16


def test_putting_the_gaps_back_gives_the_unmasked_document():
    masked_documents = 0
    for parts, spans, slot in random_documents(400):
        plain, masked = FORMAT.write(parts, slot=slot), FORMAT.write(parts, slot=slot, spans=spans)
        masked_documents += bool(spans)
        assert len(masked.gaps) == len(spans)
        known = len(FORMAT.write(parts, slot=slot, spans=spans, append=False))
        gaps = {VOCABULARY.sentinel(gap.number): gap.ids for gap in masked.gaps}
        whole = [i for token in masked.ids[:known].tolist() for i in gaps.get(token, (token,))]
        assert whole == plain.ids[:-1].tolist()
    assert masked_documents > 200


def test_picture_tokens_keep_their_positions_masked_or_not():
    for parts, spans, slot in random_documents(200):
        pictures_only = [span for span in spans if parts[span.part].modality == "image"]
        plain, masked = FORMAT.write(parts, slot=slot), FORMAT.write(parts, slot=slot, spans=pictures_only)
        for part in range(len(parts)):
            pairs = [
                sorted(
                    (int(s.positions[i]), int(s.ids[i]))
                    for segment in s.segments if segment.part == part
                    for i in range(segment.start, segment.stop)
                )
                for s in (plain, masked)
            ]  # fmt: skip
            assert pairs[0] == pairs[1]


def test_a_single_masked_text_span_keeps_its_positions():
    for parts, spans, slot in random_documents(200):
        for span in spans:
            plain, masked = FORMAT.write(parts, slot=slot), FORMAT.write(parts, slot=slot, spans=[span])
            home = next(s for s in plain.segments if s.part == span.part).start + span.start
            gap, moved = masked.gaps[0], masked.segments[-1]
            expected = plain.positions[home : home + span.stop - span.start].tolist()
            assert masked.positions[moved.start : moved.stop].tolist() == expected
            assert gap.position == expected[0]
            # The sentinel announces it from one position before, the end stands one behind.
            assert masked.positions[moved.start - 1] == expected[0] - 1
            assert masked.positions[moved.stop] == expected[-1] + 1


def test_segments_hold_exactly_the_tokens_of_their_part():
    for parts, spans, slot in random_documents(200):
        sequence = FORMAT.write(parts, slot=slot, spans=spans)
        inside = np.zeros(len(sequence), bool)
        for segment in sequence.segments:
            inside[segment.start : segment.stop] = True
            assert segment.modality == parts[segment.part].modality
        control = ~VOCABULARY.text_mask() & ~VOCABULARY.image_mask()
        assert (control[sequence.ids] == ~inside).all()
        for number, part in enumerate(parts):
            offset = VOCABULARY.first_image if part.modality == "image" else 0
            found = [
                int(token) - offset
                for segment in sequence.segments if segment.part == number
                for token in sequence.ids[segment.start : segment.stop]
            ]  # fmt: skip
            assert sorted(found) == sorted(part.tokens)
            assert any(segment.part == number for segment in sequence.segments)
        for gap, segment in zip(sequence.gaps, sequence.segments[len(sequence.segments) - len(spans) :], strict=True):
            assert gap.ids == tuple(sequence.ids[segment.start : segment.stop].tolist())
