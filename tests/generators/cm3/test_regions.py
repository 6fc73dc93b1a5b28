"""Gaps in pictures and texts: what is masked, what stays, and that decoding and scoring agree."""

from __future__ import annotations

import numpy as np
import PIL.Image
import pytest

from racm3.document import Blank, Document, Image, MaskedImage, MaskedText, Text
from racm3.errors import GenerationError, InvalidImage
from racm3.generators.cm3.decoding import Job, Row
from racm3.generators.cm3.document_format import DocumentFormat, Span, TokenPart
from racm3.generators.cm3.prompt import MAX_SPANS, Prompt, PromptPart
from racm3.generators.cm3.vocabulary import Vocabulary
from racm3.interfaces import Hit, Request
from racm3.options import Options

VOCABULARY = Vocabulary(50, 20)
FORMAT = DocumentFormat(VOCABULARY, 64, 16)
FIRST = VOCABULARY.first_image


def region(*cells: int, count: int = 16) -> np.ndarray:
    masked = np.zeros(count, bool)
    masked[list(cells)] = True
    return masked


def fed_with(prompt: Prompt, tokens_of) -> tuple[list[tuple[int, int]], Row]:
    """What a row is fed from its start on, when it draws the tokens that `tokens_of(blank number, place)` says."""
    row = Row(Job([prompt]), 0, Options())
    fed = list(zip(*(side.tolist() for side in prompt.start()), strict=True))
    while row.fills:
        if row.feed:
            (token,), (position,) = row.feed.pop(0)
            fed.append((token, position))
        else:
            row.accept(tokens_of(len(row.filled) - 1, len(row.filled[-1])), -1.0)
    return fed, row


def test_a_region_is_cut_out_in_the_trained_format():
    """Its spans keep their positions, and stand behind the document, each after its sentinel."""
    codes = list(range(16))
    prompt = Prompt(FORMAT, [PromptPart("text", [1, 2]), PromptPart.masked_image(codes, region(5, 6, 9, 10))])
    fed, row = fed_with(prompt, lambda number, place: FIRST + [[15, 14], [13, 12]][number][place])
    codes[5:7], codes[9:11] = [15, 14], [13, 12]
    trained = FORMAT.write(
        [TokenPart("text", [1, 2]), TokenPart("image", codes)], spans=[Span(1, 5, 7), Span(1, 9, 11)]
    )
    expected = list(zip(trained.ids.tolist(), trained.positions.tolist(), strict=True))
    assert fed == expected[: len(fed)]
    assert len(fed) == len(expected) - 3, "all but the last token, <eoss> and </s>"
    assert row.tokens == 4


def test_a_region_at_the_end_is_filled_from_left_to_right():
    prompt = Prompt(FORMAT, [PromptPart("text", [1, 2]), PromptPart.masked_image(range(16), region(*range(12, 16)))])
    assert prompt.left_to_right
    fed, row = fed_with(prompt, lambda number, place: FIRST + place)
    trained = FORMAT.write([TokenPart("text", [1, 2]), TokenPart("image", [*range(12), 0, 1, 2, 3])])
    assert fed == list(zip(trained.ids.tolist(), trained.positions.tolist(), strict=True))[: len(fed)]
    assert row.filled == [[FIRST, FIRST + 1, FIRST + 2, FIRST + 3]]


def test_many_runs_become_few_spans_whose_known_tokens_stay():
    masked = region(*range(0, 40, 2), count=64)
    part = PromptPart.masked_image([i % 20 for i in range(64)], masked)
    assert len(part.blanks) == MAX_SPANS
    inside = {i for b in part.blanks for i in range(b.start, b.stop)}
    known = {i for b in part.blanks for i in b.known}
    assert inside - known == set(np.flatnonzero(masked)) and not known & set(np.flatnonzero(masked))
    prompt = Prompt(FORMAT, [part])
    _, row = fed_with(prompt, lambda number, place: FIRST + 19)
    assert row.tokens == 20, "known tokens are not drawn"
    filled = prompt.filled(0, [(b, ids) for (_, b), ids in zip(prompt.blanks, row.filled, strict=True)])
    assert list(filled.tokens) == [19 if masked[i] else i % 20 for i in range(64)]


def test_a_gap_in_a_text_in_the_trained_format():
    prompt = Prompt(FORMAT, [PromptPart.blank_text([1, 2], [3]), PromptPart("image", range(16))])
    fed, _ = fed_with(prompt, lambda number, place: [7, 8, VOCABULARY.control("<eoss>")][place])
    trained = FORMAT.write([TokenPart("text", [1, 2, 7, 8, 3]), TokenPart("image", range(16))], spans=[Span(0, 2, 4)])
    assert fed == list(zip(trained.ids.tolist(), trained.positions.tolist(), strict=True))[: len(fed)]
    assert len(fed) == len(trained) - 2


def test_a_text_that_goes_on_stays_one_paragraph():
    prompt = Prompt(FORMAT, [PromptPart.blank_text([1, 2])])
    fed, _ = fed_with(prompt, lambda number, place: [7, VOCABULARY.control("</p>")][place])
    assert VOCABULARY.names([token for token, _ in fed]) == ["<s>", "<p>", "text:1", "text:2", "text:7"]


def test_no_more_gaps_than_sentinels():
    parts = [Blank("text"), "x"] * 17
    with pytest.raises(GenerationError, match="has 17 gaps; a document can have 16"):
        Prompt(FORMAT, [PromptPart.blank_text() if p != "x" else PromptPart("text", [1]) for p in parts])


# --- documents ------------------------------------------------------------------------------------------------------


def test_a_region_is_drawn_and_the_other_tokens_stay(generator, pictures):
    tokenizer = generator.checkpoint.image_tokenizer
    before = generator._ready().reader.codes(pictures[0])
    prompt = Document(["a red kite", MaskedImage(pictures[0], (4, 4, 12, 12))])
    decode, seen = tokenizer.decode, []
    tokenizer.decode = lambda ids: seen.append(ids) or decode(ids)
    try:
        outputs = generator.generate([Request(prompt)], options=Options(n=4, seed=1))[0]
    finally:
        del tokenizer.decode
    kept = np.ones((4, 4), bool)
    kept[1:3, 1:3] = False
    assert (seen[0][:, kept.ravel()] == before[kept.ravel()]).all()
    assert len(np.unique(seen[0][:, ~kept.ravel()], axis=0)) > 1
    assert all(output.tokens == 4 and isinstance(output.document.image, Image) for output in outputs)


@pytest.mark.parametrize("task", ["region", "region at the end", "gap", "continued", "region and gap"])
def test_what_is_drawn_has_the_log_probability_of_its_score(generator, pictures, task):
    """With documents in the context, all of which count."""
    tokenizer = generator.checkpoint.text_tokenizer
    before, after = "a red ", " over the beach"
    hole = {"region": (4, 4, 12, 12), "region at the end": (0, 8, 16, 16), "region and gap": (4, 0, 8, 16)}
    parts = {
        "region": ["a red kite", MaskedImage(pictures[0], hole["region"])],
        "region at the end": ["a red kite", MaskedImage(pictures[0], hole["region at the end"])],
        "gap": [MaskedText(before, after), pictures[0]],
        "continued": [MaskedText(before)],
        "region and gap": [MaskedText(before, after), MaskedImage(pictures[0], hole["region and gap"])],
    }[task]
    context = [Hit(Document(["a whale", pictures[1]])), Hit(Document(["a kite", pictures[2]]))]
    request = Request(Document(parts), context)
    job = generator._ready().reader.jobs([request], Options())[0][0]
    # Characters of one token each, so that a text is tokenised as it was drawn; it ends by its stop.
    from racm3.generators.cm3.scoring import score_prompts

    likely = [*tokenizer.encode("!?#%").ids, *(generator.checkpoint.vocabulary.control(n) for n in ("<eoss>", "</p>"))]
    import torch

    head = generator.checkpoint.model.lm_head
    bias = torch.zeros(head.out_features)
    bias[likely] = 50.0
    head.bias = torch.nn.Parameter(bias)
    try:
        decoder = generator._ready().decoder
        rows = decoder.run([job], Options(n=3, max_text_tokens=60))[0]
        prompt = job.streams[0]
        scores = score_prompts(decoder.transformer, decoder.prefixes, [(prompt, row.filled) for row in rows])
        outputs = generator.generate([request], options=Options(n=3, max_text_tokens=60))[0]
        if "text" in [prompt.parts[i].modality for i, _ in prompt.blanks] and task != "region and gap":
            again = generator.score([request] * 3, [output.document for output in outputs])
            assert [s.log_probability for s in again] == pytest.approx([o.log_probability for o in outputs], abs=1e-3)
    finally:
        head.bias = None
    for row, score in zip(rows, scores, strict=True):
        assert score.log_probability == pytest.approx(row.log_probability, abs=1e-3)
        assert sum(score.tokens) == row.tokens
    for output in outputs:
        for asked, part in zip(parts, output.document.parts, strict=True):
            if isinstance(asked, MaskedText):
                assert isinstance(part, Text)
                assert part.text.startswith(asked.before) and part.text.endswith(asked.after)


def test_a_region_sees_what_stands_around_it_and_in_the_context(generator, pictures):
    """Another picture around it, another caption or another document changes how likely the same region is."""
    box = (4, 4, 12, 12)

    def score(caption, picture, shown):
        array = np.asarray(picture.picture).copy()
        array[4:12, 4:12] = np.asarray(pictures[5].picture)[4:12, 4:12]
        target = Image(array)
        reader = generator._ready().reader
        codes = reader.codes(picture).copy().reshape(4, 4)
        codes[1:3, 1:3] = 3  # the same tokens in the region, whatever is around it
        reader.pictures[target.content_hash] = codes.ravel()
        request = Request(Document([caption, MaskedImage(picture, box)]), [Hit(Document(["x", shown]))])
        return generator.score([request], [Document([caption, target])])[0]

    base = score("a red kite", pictures[0], pictures[1])
    assert base.tokens == (4,)
    for other in (
        score("a whale", pictures[0], pictures[1]),
        score("a red kite", pictures[2], pictures[1]),
        score("a red kite", pictures[0], pictures[3]),
    ):
        assert abs(other.log_probability - base.log_probability) > 1e-3


def test_a_target_must_hold_the_text_around_the_gap(generator):
    prompt = Document(MaskedText("a red ", " beach"))
    for wrong in ("a red", "a redbeach", "a blue beach", "a red beach"):
        with pytest.raises(GenerationError, match="is not the prompt"):
            generator.score([Request(prompt)], [Document(wrong)])
    assert generator.score([Request(prompt)], [Document("a red and wide beach")])[0].tokens[0] > 1


@pytest.mark.parametrize(("width", "height"), [(20, 20), (37, 11), (8, 64), (100, 3)])
@pytest.mark.parametrize("grid", [2, 4, 7])
def test_the_cells_of_a_region_are_those_of_the_squared_picture(width, height, grid):
    rng = np.random.default_rng(width)
    mask = rng.random((height, width)) < 0.02
    mask[height // 2, width // 2] = True
    hole = MaskedImage(Image(np.zeros((height, width, 3), np.uint8)), mask)
    side = max(width, height)
    canvas = np.zeros((side, side), bool)
    top, left = (side - height) // 2, (side - width) // 2
    canvas[top : top + height, left : left + width] = mask
    expected = np.zeros((grid, grid), bool)
    for y, x in zip(*np.nonzero(canvas), strict=True):  # a cell has every pixel that it touches
        for i in range(grid):
            for j in range(grid):
                expected[i, j] |= (
                    i * side < grid * (y + 1)
                    and grid * y < (i + 1) * side
                    and (j * side < grid * (x + 1) and grid * x < (j + 1) * side)
                )
    assert np.array_equal(hole.cells(grid), expected)


def test_what_is_pasted_is_the_squared_drawing_without_its_margins():
    rng = np.random.default_rng(0)
    drawn = Image(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    hole = MaskedImage(Image(np.zeros((12, 40, 3), np.uint8)), (0, 0, 40, 12))
    squared = drawn.picture.resize((40, 40), PIL.Image.Resampling.BICUBIC).crop((0, 14, 40, 26))
    # Rounded in another order.
    assert np.abs(np.asarray(hole.paste(drawn).picture).astype(int) - np.asarray(squared)).mean() < 2


def test_equal_masks_are_equal_whoever_made_them():
    mask = np.zeros((4, 5), bool)
    mask[1:, 2:] = True
    pillows = np.asarray(PIL.Image.fromarray(mask).convert("1"))
    picture = Image(np.zeros((4, 5, 3), np.uint8))
    assert pillows.dtype == bool and pillows.tobytes() != mask.tobytes()
    assert MaskedImage(picture, pillows) == MaskedImage(picture, mask)


def test_a_region_of_a_very_long_picture_takes_no_square_of_it():
    picture = Image(np.zeros((4, 200_000, 3), np.uint8))
    hole = MaskedImage(picture, (100_000, 0, 100_100, 4))
    assert hole.cells(8).any() and hole.paste(Image(np.full((8, 8, 3), 9, np.uint8))).size == (200_000, 4)
    with pytest.raises(InvalidImage, match="is no region"):
        MaskedImage(picture, (0, 0, float("inf"), 1))


def test_an_edited_picture_may_be_above_the_usual_limit(monkeypatch):
    picture = Image(np.zeros((4, 4, 3), np.uint8), max_pixels=16)
    monkeypatch.setattr(Image.__init__, "__kwdefaults__", {**Image.__init__.__kwdefaults__, "max_pixels": 15})
    hole = MaskedImage(picture, (0, 0, 1, 1))
    assert hole.shown.size == hole.paste(Image(np.zeros((2, 2, 3), np.uint8))).size == (4, 4)
