"""Decoding: the positions of training, the grammar, log-probabilities, and independence of the batch."""

from __future__ import annotations

import itertools
import random
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch

from racm3.generators.cm3.decoding import Decoder, Job, Row
from racm3.generators.cm3.document_format import DocumentFormat, Span, TokenPart
from racm3.generators.cm3.prefix_cache import PrefixCache
from racm3.generators.cm3.prompt import Prompt, PromptPart
from racm3.generators.cm3.scoring import score_prompts
from racm3.generators.cm3.transformer import Transformer
from racm3.generators.cm3.vocabulary import Vocabulary
from racm3.options import Options

PICTURE = list(range(16))
CAPTION = [65, 66, 67]

# What each task's prompt is made of; None is a blank. The last column: whether it is filled from left to right.
TASKS = {
    "text to image": ([("text", CAPTION), ("image", None)], True),
    "caption through the mask": ([("text", None), ("image", PICTURE)], False),
    "caption, then its picture": ([("text", None), ("image", None)], True),
    "text alone": ([("text", None)], True),
    "picture alone": ([("image", None)], True),
    "text after a picture": ([("image", PICTURE), ("text", None)], True),
    "two pictures": ([("image", None), ("image", None)], True),
    "picture before a known text": ([("image", None), ("text", CAPTION)], False),
    "text in the middle": ([("text", CAPTION), ("text", None), ("image", PICTURE)], False),
    "two captions through masks": ([("text", None), ("image", PICTURE), ("text", None), ("image", PICTURE)], False),
    "picture, text, picture": ([("image", None), ("text", CAPTION), ("image", None)], False),
}
EVERY_TASK = pytest.mark.parametrize("task", TASKS)


def contexts(format, count):
    """That many documents, side by side."""
    sequences = []
    for number in range(count):
        parts = [TokenPart("text", [70 + number] * (number + 1)), TokenPart("image", np.roll(PICTURE, number + 1))]
        sequences.append(format.write(parts, slot=format.slot_after(sequences[-1]) if sequences else 0))
    return sequences


def part_for(modality, tokens):
    if tokens is not None:
        return PromptPart(modality, tokens)
    return PromptPart.blank_text() if modality == "text" else PromptPart.blank_image(16)


def prompt_for(format, parts, documents=0):
    return Prompt(format, [part_for(*part) for part in parts], contexts(format, documents))


def job_for(prompt, key=()):
    return Job([prompt], key=key)


def blank_parts(prompt):
    return [part for part, _ in prompt.blanks]


def finished(prompt, filled, first_image):
    """The filled document as training writes it: all blanks here are whole parts."""
    drawn = dict(zip(blank_parts(prompt), filled, strict=True))
    parts = []
    for index, part in enumerate(prompt.parts):
        shift = first_image if index in drawn and part.modality == "image" else 0
        parts.append(TokenPart(part.modality, [token - shift for token in drawn.get(index, part.tokens)]))
    spans = [] if prompt.left_to_right else [Span(i, 0, len(parts[i].tokens)) for i in drawn]
    return prompt.format.write(parts, slot=prompt.slot, spans=spans)


class Spy:
    """A transformer that remembers what it was fed, and what it made of the last token."""

    def __init__(self, checkpoint):
        self.transformer = Transformer(checkpoint.model)
        self.ids, self.positions, self.last = [], [], []

    def __getattr__(self, name):
        return getattr(self.transformer, name)

    def __call__(self, ids, positions, attend):
        self.ids += ids.tolist()
        self.positions += positions.tolist()
        hidden = self.transformer(ids, positions, attend)
        self.last.append(hidden[-1])
        return hidden

    def fed(self):
        """(id, position) of all that the only row was fed."""
        return list(zip(self.ids, self.positions, strict=True))


@contextmanager
def biased(model, ids, amount):
    """Makes some tokens likelier, in decoding and in scoring."""
    bias, before = torch.zeros(model.config.vocab_size), model.lm_head.bias
    bias[ids] = amount
    model.lm_head.bias = torch.nn.Parameter(bias if before is None else bias + before)
    try:
        yield
    finally:
        model.lm_head.bias = before


def run(checkpoint, prompts, batch_rows=8, **options):
    options = Options(**{"max_text_tokens": 6, **options})
    jobs = [job_for(prompt, (number,)) for number, prompt in enumerate(prompts)]
    return Decoder(Transformer(checkpoint.model), batch_rows=batch_rows).run(jobs, options)


def scores_of(checkpoint, prompts, rows):
    filled = [(p, row.filled) for p, row in zip(prompts, rows, strict=True)]
    return score_prompts(Transformer(checkpoint.model), PrefixCache(), filled)


# --- what is fed is what training showed -------------------------------------------------------------------------


@EVERY_TASK
def test_a_prompt_is_filled_from_left_to_right_when_its_blanks_stand_last(checkpoint, task):
    parts, left_to_right = TASKS[task]
    assert prompt_for(checkpoint.format, parts).left_to_right is left_to_right


@pytest.mark.parametrize("documents", [0, 2])
@EVERY_TASK
def test_decoding_feeds_ids_and_positions_as_training_does(checkpoint, task, documents):
    prompt = prompt_for(checkpoint.format, TASKS[task][0], documents)
    spy = Spy(checkpoint)
    row = Decoder(spy).run([job_for(prompt)], Options(max_text_tokens=6, seed=1))[0][0]
    own = finished(prompt, row.filled, checkpoint.vocabulary.first_image)
    sequences = [*prompt.context, own]
    expected = list(
        zip(
            np.concatenate([s.ids for s in sequences]).tolist(),
            np.concatenate([s.positions for s in sequences]).tolist(),
            strict=True,
        )
    )
    fed = spy.fed()
    assert fed == expected[: len(fed)]
    # All was fed but what follows the last token drawn.
    last = [s for s in own.segments if s.part == prompt.blanks[-1][0]][-1]
    assert len(fed) == sum(len(s) for s in prompt.context) + last.stop - 1


def test_the_caption_prompt_is_the_one_of_the_paper(checkpoint):
    """`<img alt="<mask:0>" src="IMAGE"><mask:0>`, and then the caption."""
    vocabulary = checkpoint.vocabulary
    prompt = prompt_for(checkpoint.format, TASKS["caption through the mask"][0])
    spy = Spy(checkpoint)
    Decoder(spy).run([job_for(prompt)], Options(max_text_tokens=1))
    names = vocabulary.names([token for token, _ in spy.fed()])
    assert names == [
        "<s>", '<img alt="', "<mask:0>", '" src="', *(f"image:{i}" for i in range(16)), '">', "<mask:0>",
    ]  # fmt: skip


def test_rows_feed_the_training_form_of_any_document():
    """Any mix of parts, blanks and context; the tokens are given instead of drawn."""
    draw = random.Random(0)
    vocabulary = Vocabulary(50, 20)
    several = 0
    for _ in range(300):
        format = DocumentFormat(vocabulary, draw.choice([16, 64]), draw.choice([4, 32]))
        parts = []
        for _ in range(draw.randrange(1, 5)):
            if draw.random() < 0.5:
                parts.append(TokenPart("image", draw.choices(range(20), k=16)))
            else:
                parts.append(TokenPart("text", draw.choices(range(50), k=draw.randrange(40))))
        blanks = sorted(draw.sample(range(len(parts)), draw.randrange(1, len(parts) + 1)))
        several += len(blanks) > 1
        known = [(p.modality, None if i in blanks else p.tokens) for i, p in enumerate(parts)]
        prompt = prompt_for(format, known, draw.randrange(3))
        row = Row(job_for(prompt), 0, Options(max_text_tokens=100))
        fed = [pair for s in prompt.context for pair in zip(s.ids.tolist(), s.positions.tolist(), strict=True)]
        fed += zip(*(side.tolist() for side in prompt.start()), strict=True)
        while row.fills:
            if row.feed:
                (token,), (position,) = row.feed.pop(0)
                fed.append((token, position))
                continue
            (fill,) = row.fills
            tokens, at = parts[fill.part].tokens, len(row.filled[-1])
            shift = vocabulary.first_image if fill.modality == "image" else 0
            row.accept(tokens[at] + shift if at < len(tokens) else fill.stop, -1.0)
        own = finished(prompt, row.filled, vocabulary.first_image)
        sequences = [*prompt.context, own]
        expected = zip(
            np.concatenate([s.ids for s in sequences]).tolist(),
            np.concatenate([s.positions for s in sequences]).tolist(),
            strict=True,
        )
        assert fed == list(expected)[: len(fed)]
        assert row.log_probability == -row.tokens
        assert int(own.positions.max()) - prompt.slot < prompt.extent(40)
        assert len(fed) - len(prompt.start()[0]) - sum(map(len, prompt.context)) <= prompt.steps(40)
    assert several > 50


# --- grammar ----------------------------------------------------------------------------------------------------


@EVERY_TASK
def test_blanks_are_filled_with_their_kind_whatever_the_model_would_rather_write(checkpoint, task):
    """Forbidden tokens are made likeliest; still a picture holds 16 image tokens, and a text text."""
    vocabulary = checkpoint.vocabulary
    text, image = (torch.from_numpy(mask()) for mask in (vocabulary.text_mask, vocabulary.image_mask))
    prompt = prompt_for(checkpoint.format, TASKS[task][0])
    stops = [vocabulary.control(name) for name in ("<eoss>", "</p>", '" src="')]
    forbidden = {"image": ~image, "text": ~text}
    for modality in {prompt.parts[part].modality for part in blank_parts(prompt)}:
        ids = forbidden[modality].nonzero().squeeze(1)
        ids = ids[~torch.isin(ids, torch.tensor(stops))]
        with biased(checkpoint.model, ids, 100.0):
            row = run(checkpoint, [prompt])[0][0]
        for part, tokens in zip(blank_parts(prompt), row.filled, strict=True):
            if prompt.parts[part].modality == "image":
                assert len(tokens) == 16 and bool(image[tokens].all())
            else:
                assert len(tokens) <= 6 and bool(text[tokens].all())


@pytest.mark.parametrize(
    ("task", "stop"),
    [
        ("text alone", "</p>"),
        ("text after a picture", "</p>"),
        ("caption, then its picture", '" src="'),
        ("caption through the mask", "<eoss>"),
        ("text in the middle", "<eoss>"),
    ],
)
def test_a_text_ends_before_its_own_stop_and_at_no_other(checkpoint, task, stop):
    vocabulary = checkpoint.vocabulary
    prompt = prompt_for(checkpoint.format, TASKS[task][0])
    with biased(checkpoint.model, [vocabulary.control(stop)], 100.0):
        row = run(checkpoint, [prompt])[0][0]
    assert row.filled[0] == []
    assert row.tokens == 1 + 16 * (len(prompt.blanks) - 1)  # the stop is drawn, and counts
    assert row.log_probability <= 0
    others = [vocabulary.control(name) for name in ("<eoss>", "</p>", '" src="', "</s>") if name != stop]
    with biased(checkpoint.model, [vocabulary.control(stop)], -100.0), biased(checkpoint.model, others, 100.0):
        assert len(run(checkpoint, [prompt])[0][0].filled[0]) == 6


def test_a_text_may_end_by_itself_before_its_limit(checkpoint):
    prompt = prompt_for(checkpoint.format, TASKS["text alone"][0])
    with biased(checkpoint.model, [checkpoint.vocabulary.control("</p>")], 4.0):
        rows = run(checkpoint, [prompt], n=20, max_text_tokens=60)[0]
    lengths = [len(row.filled[0]) for row in rows]
    assert 0 < np.mean(lengths) < 60 and len(set(lengths)) > 3
    assert [row.tokens for row in rows] == [length + (length < 60) for length in lengths]


@pytest.mark.parametrize("limit", [1, 5])
def test_a_text_has_no_more_tokens_than_allowed(checkpoint, limit):
    prompt = prompt_for(checkpoint.format, TASKS["caption, then its picture"][0])
    with biased(checkpoint.model, [checkpoint.vocabulary.control('" src="')], -100.0):
        row = run(checkpoint, [prompt], max_text_tokens=limit)[0][0]
    assert len(row.filled[0]) == row.tokens - 16 == limit
    assert len(row.filled[1]) == 16


# --- log-probabilities ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@EVERY_TASK
def test_the_log_probability_of_a_sample_is_its_score(checkpoint, task, temperature):
    """What decoding adds up token by token, a single pass over the finished document finds again."""
    vocabulary = checkpoint.vocabulary
    prompt = prompt_for(checkpoint.format, TASKS[task][0], 2)
    stops = [vocabulary.control(name) for name in ("<eoss>", "</p>", '" src="')]
    # Every text ends by its stop, which a score counts; at its limit it would end without.
    with biased(checkpoint.model, stops, 6.0):
        rows = run(checkpoint, [prompt], n=2, temperature=temperature, max_text_tokens=30, top_p=0.9)[0]
        scores = scores_of(checkpoint, [prompt] * 2, rows)
    for row, score in zip(rows, scores, strict=True):
        assert score.log_probability == pytest.approx(row.log_probability, abs=1e-3)
        assert sum(score.tokens) == row.tokens
        assert row.log_probability < 0


def test_temperature_and_truncation_do_not_change_the_log_probability_of_what_is_drawn(checkpoint):
    """It is the model's own: samples drawn in different ways can be compared."""
    prompt = prompt_for(checkpoint.format, TASKS["picture alone"][0])
    greedy = run(checkpoint, [prompt], temperature=0)[0][0]
    cold = run(checkpoint, [prompt], temperature=1e-6)[0][0]
    single = run(checkpoint, [prompt], top_k=1)[0][0]
    for other in (cold, single):
        assert other.filled == greedy.filled
        assert other.log_probability == pytest.approx(greedy.log_probability, abs=1e-5)
    assert greedy.log_probability < -1


# --- the batch does not matter ----------------------------------------------------------------------------------


def all_prompts(checkpoint):
    """Prompts of all tasks and of very different lengths."""
    return [
        prompt_for(checkpoint.format, parts, documents)
        for documents, (parts, _) in zip([0, 2, 1] * 4, TASKS.values(), strict=False)
    ]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_is_the_same_alone_and_among_others(checkpoint, temperature):
    """Prefixes are padded; padding is never attended to."""
    prompts = all_prompts(checkpoint)
    assert len({sum(map(len, prompt.context)) + len(prompt.start()[0]) for prompt in prompts}) > 6
    alone, together = (
        run(checkpoint, prompts, batch_rows=rows, n=2, seed=5, temperature=temperature) for rows in (1, 16)
    )
    for one, other in zip(itertools.chain(*alone), itertools.chain(*together), strict=True):
        assert one.filled == other.filled
        assert one.tokens == other.tokens
        assert one.log_probability == pytest.approx(other.log_probability, abs=1e-4)


def test_rows_come_back_in_the_order_of_the_prompts(checkpoint):
    prompts = all_prompts(checkpoint)
    rows = run(checkpoint, prompts, n=2)
    assert [[row.job.streams[0] is prompt for row in group] for prompt, group in zip(prompts, rows, strict=True)] == [
        [True, True]
    ] * len(prompts)


def test_progress_counts_the_rows(checkpoint):
    seen = []
    jobs = [job_for(prompt_for(checkpoint.format, TASKS["text alone"][0]))] * 3
    Decoder(Transformer(checkpoint.model), batch_rows=2).run(jobs, Options(max_text_tokens=1), seen.append)
    assert seen == [2, 3]


def test_samples_differ_and_a_seed_repeats_them(checkpoint):
    prompt = prompt_for(checkpoint.format, TASKS["picture alone"][0])
    rows = run(checkpoint, [prompt, prompt], n=3, seed=7)
    drawn = [tuple(row.filled[0]) for group in rows for row in group]
    assert len(set(drawn)) == 6
    assert [tuple(row.filled[0]) for row in run(checkpoint, [prompt, prompt], n=3, seed=7)[0]] == drawn[:3]
    # More samples do not change the first ones.
    assert [tuple(row.filled[0]) for row in run(checkpoint, [prompt], n=5, seed=7)[0]][:3] == drawn[:3]
    assert [tuple(row.filled[0]) for row in run(checkpoint, [prompt], n=3, seed=8)[0]] != drawn[:3]


# --- another document must change the logits ---------------------------------------------------------------------


@pytest.mark.parametrize("changed", [0, 1], ids=["the furthest", "the nearest"])
@pytest.mark.parametrize("task", ["text to image", "caption through the mask"])
def test_another_document_changes_the_logits_in_decoding(checkpoint, task, changed):
    prompts = [prompt_for(checkpoint.format, TASKS[task][0], 2) for _ in range(2)]
    context = list(prompts[1].context)
    parts = [TokenPart("text", [90] * (changed + 1)), TokenPart("image", PICTURE[::-1])]
    context[changed] = checkpoint.format.write(parts, slot=int(context[changed].positions[0]))
    prompts[1] = replace(prompts[1], context=context)
    answers = []
    for prompt in prompts:
        spy = Spy(checkpoint)
        Decoder(spy).run([job_for(prompt)], Options(temperature=0, max_text_tokens=3))
        with torch.inference_mode():
            answers.append([spy.logits(state, 0, checkpoint.vocabulary.size) for state in spy.last[1:]])
    for one, other in zip(*answers, strict=False):
        assert (one - other).abs().max() > 1e-3


def test_without_a_mask_the_library_would_hide_the_documents(checkpoint):
    """Why a mask is always given: transformers takes a gap in the positions for the border of a packed sequence."""
    format = checkpoint.format
    differences = []
    for mask in (True, False):
        answers = []
        for shift in (1, 2):
            context = format.write([TokenPart("text", CAPTION), TokenPart("image", np.roll(PICTURE, shift))])
            prompt = replace(prompt_for(format, [("text", CAPTION), ("image", None)]), context=[context])
            own = prompt.start()
            ids = torch.from_numpy(np.concatenate([context.ids, own[0]]))[None]
            positions = torch.from_numpy(np.concatenate([context.positions, own[1]]))[None]
            with torch.inference_mode():
                # It looks for packed sequences where there is neither a mask nor a cache.
                output = checkpoint.model(
                    input_ids=ids, position_ids=positions, attention_mask=torch.ones_like(ids) if mask else None,
                    use_cache=False,
                )  # fmt: skip
            answers.append(output.logits[0, -1])
        differences.append(float((answers[0] - answers[1]).abs().max()))
    assert differences[0] > 1e-3
    assert differences[1] == 0
