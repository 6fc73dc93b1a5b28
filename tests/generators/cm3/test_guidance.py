"""Several streams for one sample: guidance, contrast, groups of documents; and the limits on texts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from racm3.document import Blank, Document, MaskedImage
from racm3.errors import GenerationError
from racm3.generators.cm3.generator import Cm3Generator
from racm3.interfaces import Hit, Request
from racm3.options import Options

TO_IMAGE = Document(["a red kite", Blank("image")])


def hits(pictures, count=2):
    return [Hit(Document([f"a grey whale {i}", pictures[i]], id=f"d{i}")) for i in range(count)]


def jobs(generator, prompt, context=(), **options):
    return generator._ready().reader.jobs([Request(prompt, context)], Options(**options))[0][0]


def names(generator, prompt):
    ids = [token for s in [*prompt.context, prompt.document()] for token in s.ids.tolist()]
    return generator.checkpoint.vocabulary.names(ids)


def next_logits(generator, prompt, drawn):
    """What the library gives for the next image token, after the prompt's start and drawn tokens: [image tokens]."""
    own, fill = prompt.start(), prompt.fill(0, ())
    ids = np.concatenate([*(s.ids for s in prompt.context), own[0], drawn]).astype(np.int64)
    at = fill.position + np.arange(len(drawn))
    positions = np.concatenate([*(s.positions for s in prompt.context), own[1], at]).astype(np.int64)
    ids, positions = torch.from_numpy(ids)[None], torch.from_numpy(positions)[None]
    with torch.no_grad():
        logits = generator.checkpoint.model(
            input_ids=ids, position_ids=positions, attention_mask=torch.ones_like(ids)
        ).logits[0, -1]
    return logits[generator.checkpoint.vocabulary.first_image :].log_softmax(-1)


# --- what the streams are ---------------------------------------------------------------------------------------------


def test_the_unconditional_stream_hides_the_caption_and_keeps_the_documents(generator, pictures):
    job = jobs(generator, TO_IMAGE, hits(pictures), guidance=3.0)
    prompted, unprompted = job.streams
    assert job.guided
    assert [s.ids.tolist() for s in unprompted.context] == [s.ids.tolist() for s in prompted.context]
    assert len(unprompted.context) == 2
    own = generator.checkpoint.vocabulary.names(unprompted.start()[0].tolist())
    assert own == ["<s>", '<img alt="', "<mask:0>", '" src="']
    assert unprompted.fill(0, ()).position == prompted.fill(0, ()).position, "the picture stays in its place"


@pytest.mark.parametrize(
    ("parts", "hidden"),
    [
        (lambda p: [Blank("text"), p], [1]),
        (lambda p: ["a kite", Blank("image")], [0]),
        (lambda p: ["a kite", p, Blank("image")], [0]),
        (lambda p: ["a kite", MaskedImage(p, (0, 0, 4, 4))], [0]),
        (lambda p: ["a kite", Blank("text")], [0]),
        (lambda p: [Blank("text"), Blank("image")], []),
    ],
)
def test_what_guidance_hides(generator, pictures, parts, hidden):
    job = jobs(generator, Document(parts(pictures[0])), guidance=2.0)
    assert job.guided is bool(hidden)
    if hidden:
        assert [i for i, part in enumerate(job.streams[1].parts) if part.hidden] == hidden
    assert jobs(generator, Document(parts(pictures[0]))).guided is False


def test_context_guidance_compares_with_the_prompt_alone(generator, pictures):
    job = jobs(generator, TO_IMAGE, hits(pictures, 3), context_guidance=3.0, group_size=2)
    assert job.context_guided and not job.guided
    assert [len(stream.context) for stream in job.streams] == [2, 1, 0]
    assert job.streams[-1].start()[0].tolist() == job.streams[0].start()[0].tolist(), "the prompt is shown"
    alone = jobs(generator, TO_IMAGE, context_guidance=3.0)
    assert not alone.context_guided and len(alone.streams) == 1, "without documents there is nothing to compare with"


@pytest.mark.parametrize(("scale", "decoding"), [(3.0, "sample"), (0.5, "sample"), (0.0, "sample"), (1.0, "contrast")])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("by_documents", [1.0, 2.5])
def test_greedy_decoding_follows_the_formula(generator, pictures, scale, decoding, groups, by_documents):
    """Token by token against full passes of the library: l_u + s (l_c - l_u), or log p_c - log p_u among likely ones, where
    l_c is l_0 + t (l_c - l_0) with guidance by the documents."""
    options = Options(
        temperature=0, guidance=scale, decoding=decoding, contrast_k=3, contrast_share=0.4, group_size=3 - groups,
        context_guidance=by_documents,
    )  # fmt: skip
    request = Request(TO_IMAGE, hits(pictures))
    (job,), seen = generator._ready().reader.jobs([request], options)
    assert len(job.streams) == 2 * groups + (by_documents != 1) and seen == [(0, 1)]
    row = generator._ready().decoder.run([job], options)[0][0]
    first, total, compared = generator.checkpoint.vocabulary.first_image, 0.0, 0
    for place, token in enumerate(row.filled[0]):
        each = torch.stack([next_logits(generator, s, row.filled[0][:place]) for s in job.streams])
        prompted, unprompted = (half.exp().mean(0).log() for half in each[: 2 * groups].chunk(2))
        known = prompted if by_documents == 1 else each[-1] + by_documents * (prompted - each[-1])
        if decoding == "contrast":
            kth = known.topk(3).values[-1]
            scores = (known - unprompted).masked_fill(known < kth + math.log(0.4), -math.inf)
        else:
            scores = unprompted + scale * (known - unprompted)
        best = scores.topk(2).values
        if best[0] - best[1] > 1e-3:
            assert int(scores.argmax()) == token - first
            compared += 1
        total += float(prompted[token - first])
    assert compared > 10
    assert row.log_probability == pytest.approx(total, abs=1e-3), "the prompted model's own"


@pytest.mark.parametrize("guidance", ["guidance", "context_guidance"])
def test_guidance_changes_what_is_drawn(generator, pictures, guidance):
    request = Request(TO_IMAGE, hits(pictures))
    drawn = [
        generator.generate([request], options=Options(temperature=0, **{guidance: scale}))[0][0] for scale in (1.0, 4.0)
    ]
    assert drawn[0].document.image.content_hash != drawn[1].document.image.content_hash


def test_the_half_and_half_mix(generator, pictures):
    """Even samples are those of plain guidance, odd ones those of contrast, number by number."""
    request, drawn = Request(TO_IMAGE, hits(pictures)), {}
    for decoding in ("sample", "contrast", "mixed"):
        outputs = generator.generate([request], options=Options(n=4, seed=3, guidance=2.0, decoding=decoding))[0]
        drawn[decoding] = [output.document.image.content_hash for output in outputs]
    assert drawn["mixed"] == [drawn["sample"][0], drawn["contrast"][1], drawn["sample"][2], drawn["contrast"][3]]
    assert drawn["sample"][1] != drawn["contrast"][1]


# --- groups of documents ----------------------------------------------------------------------------------------------


def test_more_documents_than_fit_are_shown_in_groups(generator, pictures, caplog):
    """256 positions hold three documents: in groups of two all five count, in one group three."""
    whole, grouped = (
        generator.generate([Request(TO_IMAGE, hits(pictures, 5))], options=Options(group_size=size))[0][0]
        for size in (None, 2)
    )
    assert (whole.grounded_on, grouped.grounded_on) == ((0, 1, 2), (0, 1, 2, 3, 4))
    job = jobs(generator, TO_IMAGE, hits(pictures, 5), group_size=2)
    texts = [[n for n in names(generator, s) if n in "01234"] for s in job.streams]
    assert [len(s.context) for s in job.streams] == [2, 2, 1] and texts is not None
    assert jobs(generator, TO_IMAGE, hits(pictures, 5), group_size=9).streams[0].context != []


def test_every_group_counts(generator, pictures):
    """Another document in the last group changes the sample's log-probabilities."""
    other = [*hits(pictures, 4)[:3], Hit(Document(["another", pictures[5]]))]
    rows = []
    for context in (hits(pictures, 4), other):
        (job,), _ = generator._ready().reader.jobs([Request(TO_IMAGE, context)], Options(group_size=2))
        rows.append(generator._ready().decoder.run([job], Options(temperature=0))[0][0])
    assert abs(rows[0].log_probability - rows[1].log_probability) > 1e-3


# --- the batch does not matter ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{"guidance": 3.0}, {"decoding": "mixed"}, {"group_size": 1, "guidance": 2.0, "context_guidance": 3.0}]
)
def test_streams_do_not_depend_on_the_batch_nor_on_the_place_in_it(checkpoint, pictures, options):
    """Alone, in a batch, in another order and at another batch size: unlike prompts, contexts and numbers of streams."""
    requests = [
        Request(TO_IMAGE, hits(pictures, 2)),
        Request(Document([Blank("text"), pictures[0]]), hits(pictures, 1)),
        Request(Document([Blank("text"), Blank("image")]), hits(pictures, 3)),
        Request(Document(["a kite", MaskedImage(pictures[1], (0, 4, 16, 8))])),
    ]
    settings = Options(n=3, seed=4, max_text_tokens=8, **options)

    def made(order, batch_rows):
        generator = Cm3Generator.from_checkpoint(checkpoint, batch_rows=batch_rows)
        found = generator.generate([requests[i] for i in order], options=settings)
        return dict(zip(order, found, strict=True))

    whole = made([0, 1, 2, 3], 64)
    for order, batch_rows in (([3, 2, 1, 0], 64), ([0, 1, 2, 3], 1), ([2], 5), ([1], 64)):
        for number, outputs in made(order, batch_rows).items():
            for one, other in zip(outputs, whole[number], strict=True):
                assert one.document == other.document
                assert one.log_probability == pytest.approx(other.log_probability, abs=1e-4)


def test_what_was_read_before_gives_the_same_answer(checkpoint, pictures):
    """A seen context costs no reading, and changes nothing; both guidance streams share it."""
    generator = Cm3Generator.from_checkpoint(checkpoint)
    request, options = Request(TO_IMAGE, hits(pictures)), Options(n=2, guidance=2.0, seed=1)
    first = generator.generate([request], options=options)[0]
    assert (generator.prefix_cache.misses, generator.prefix_cache.hits) == (1, 1)
    second = generator.generate([request], options=options)[0]
    assert (generator.prefix_cache.misses, generator.prefix_cache.hits) == (1, 3)
    assert [o.document for o in first] == [o.document for o in second]
    assert [o.log_probability for o in first] == [o.log_probability for o in second]


# --- texts ------------------------------------------------------------------------------------------------------------


def written(generator, n=4, **options):
    rows = generator._ready().decoder.run([jobs(generator, Document(Blank("text")))], Options(n=n, **options))[0]
    return [row.filled[0] for row in rows]


def test_a_text_is_neither_shorter_nor_longer_than_asked(generator):
    head = generator.checkpoint.model.lm_head
    bias = torch.zeros(head.out_features)
    bias[generator.checkpoint.vocabulary.control("</p>")] = 30.0
    head.bias = torch.nn.Parameter(bias)
    try:
        assert [len(text) for text in written(generator, max_text_tokens=9)] == [0] * 4
        assert [len(text) for text in written(generator, min_text_tokens=5, max_text_tokens=9)] == [5] * 4
        assert [len(text) for text in written(generator, min_text_tokens=9, max_text_tokens=7)] == [7] * 4
    finally:
        head.bias = None


def test_no_tokens_in_a_row_come_twice(generator):
    stuck = written(generator, temperature=0, max_text_tokens=40, n=1)[0]
    assert len({tuple(stuck[i : i + 2]) for i in range(len(stuck) - 1)}) < len(stuck) - 1, "it repeats itself"
    for size in (1, 2, 3):
        text = written(generator, temperature=0, max_text_tokens=40, n=1, no_repeat=size)[0]
        rows = [tuple(text[i : i + size]) for i in range(len(text) - size + 1)]
        assert len(rows) == len(set(rows)) > 3


def test_the_penalty_divides_the_probability_of_what_was_drawn(generator):
    plain = written(generator, temperature=0, max_text_tokens=40, n=1)[0]
    punished = written(generator, temperature=0, max_text_tokens=40, n=1, repetition_penalty=1e9)[0]
    assert len(set(punished)) == len(punished) and len(set(plain)) < len(plain)


def test_predictions_that_are_no_numbers_are_an_error(generator):
    head = generator.checkpoint.model.lm_head
    head.bias = torch.nn.Parameter(torch.full((head.out_features,), float("nan")))
    try:
        with pytest.raises(GenerationError, match="predictions are not numbers") as raised:
            generator.generate([Request(TO_IMAGE)])
    finally:
        head.bias = None
    assert "float32" in raised.value.hint


# --- streams of events --------------------------------------------------------------------------------------------------


def test_events_show_a_picture_as_it_is_drawn(generator, pictures):
    request, options = Request(TO_IMAGE, hits(pictures)), Options(n=2, seed=5, guidance=2.0)
    events = list(generator.stream(request, options=options))
    tokens = [event.detail["tokens"] for event in events if event.kind == "tokens"]
    assert tokens == [[4, 4], [8, 8], [12, 12], [16, 16]]
    previews = [event.detail["images"] for event in events if event.kind == "preview"]
    assert [len(images) for images in previews] == [2] * 4
    last = generator.generate([request], options=options)[0]
    assert events[-1].kind == "done" and events[-1].outputs == last
    for number, images in enumerate(previews, start=1):
        shown = np.asarray(images[0].picture)
        assert (shown[4 * number :] == 255).all() and not (shown[: 4 * number] == 255).all()
    assert previews[-1][0] == last[0].document.image


def test_events_show_a_text_as_it_is_written(generator, pictures):
    request, options = Request(Document([Blank("text"), pictures[0]])), Options(max_text_tokens=6, min_text_tokens=6)
    events = list(generator.stream(request, options=options))
    texts = [event.detail["texts"][0][0] for event in events if event.kind == "tokens"]
    assert [event.detail["tokens"] for event in events[:-1]] == [[i] for i in range(1, 7)]
    assert texts[-1] == events[-1].outputs[0].document.text
    assert len(texts[0].encode("utf-8", "replace")) < len(texts[-1].encode("utf-8", "replace"))
