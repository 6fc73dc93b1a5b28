"""`Cm3Generator`: documents in, filled documents out, and how likely given ones are."""

from __future__ import annotations

import itertools
import logging
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from racm3.document import Blank, Document, Image, Text
from racm3.errors import GenerationError, ModalityError, WeightsNotFound
from racm3.generators.cm3.decoding import Decoder
from racm3.generators.cm3.generator import Cm3Generator
from racm3.generators.cm3.vocabulary import CONTROL
from racm3.interfaces import Hit, Request
from racm3.options import Options
from racm3.retrieval import NotGrounded

TO_IMAGE = Document(["a red kite", Blank("image")])


def hits(pictures, count=2, caption="a grey whale {}"):
    """Documents given by hand, the most relevant first."""
    return [Hit(Document([caption.format(i), pictures[i]], id=f"d{i}")) for i in range(count)]


def reader(generator):
    return generator._ready().reader


@contextmanager
def biased(model, ids, amount):
    bias, before = torch.zeros(model.config.vocab_size), model.lm_head.bias
    bias[ids] = amount
    model.lm_head.bias = torch.nn.Parameter(bias if before is None else bias + before)
    try:
        yield
    finally:
        model.lm_head.bias = before


@pytest.fixture
def decoded(monkeypatch):
    """The prompts that reach the decoder."""
    seen = []
    run = Decoder.run

    def spy(self, jobs, options, progress=None):
        seen.extend(job.streams[0] for job in jobs)
        return run(self, jobs, options, progress)

    monkeypatch.setattr(Decoder, "run", spy)
    return seen


# --- generating -------------------------------------------------------------------------------------------------


def test_a_caption_becomes_a_picture(generator):
    output = generator.generate([Request(TO_IMAGE)])[0][0]
    text, image = output.document.parts
    assert text == Text("a red kite")
    assert isinstance(image, Image) and image.size == (16, 16)
    assert output.tokens == 16 and output.log_probability < 0
    assert not output.document.blanks


def test_a_picture_becomes_a_caption(generator, pictures):
    prompt = Document([Blank("text"), pictures[0]], metadata={"style": "flat"})
    output = generator.generate([Request(prompt)], options=Options(max_text_tokens=5))[0][0]
    text, image = output.document.parts
    assert isinstance(text, Text)
    assert image is pictures[0]
    assert output.document.metadata == {"style": "flat"}


def test_the_picture_is_what_its_tokens_show(generator, decoded, monkeypatch):
    tokenizer = generator.checkpoint.image_tokenizer
    decode, seen = tokenizer.decode, []
    monkeypatch.setattr(tokenizer, "decode", lambda ids: seen.append(ids) or decode(ids))
    outputs = generator.generate([Request(TO_IMAGE)], options=Options(n=3, seed=2))[0]
    assert seen[0].shape == (3, 16) and seen[0].min() >= 0 and seen[0].max() < tokenizer.codes
    for ids, output in zip(seen[0], outputs, strict=True):
        assert (np.asarray(output.document.image.picture) == decode(ids[None])[0]).all()


def test_requests_and_samples_come_in_order(generator, pictures):
    requests = [Request(Document([f"number {i}", pictures[0], Blank("text")]), hits(pictures, i % 3)) for i in range(4)]
    groups = generator.generate(requests, options=Options(n=3, max_text_tokens=4))
    assert [len(group) for group in groups] == [3] * 4
    assert [[output.document.texts[0] for output in group] for group in groups] == [
        [f"number {i}"] * 3 for i in range(4)
    ]


def test_the_answer_does_not_depend_on_the_batch(checkpoint, pictures):
    requests = [
        Request(TO_IMAGE), Request(Document([Blank("text"), pictures[0]]), hits(pictures)), Request(TO_IMAGE, hits(pictures)),
    ]  # fmt: skip
    options = Options(n=2, seed=4, max_text_tokens=8)
    alone, together = (
        Cm3Generator.from_checkpoint(checkpoint, batch_rows=rows).generate(requests, options=options) for rows in (1, 8)
    )
    for one, other in zip(itertools.chain(*alone), itertools.chain(*together), strict=True):
        assert one.document == other.document
        assert one.log_probability == pytest.approx(other.log_probability, abs=1e-4)


def test_text_and_picture_can_both_be_wanted(generator):
    output = generator.generate(
        [Request(Document([Blank("text"), Blank("image")]))], options=Options(max_text_tokens=3)
    )
    text, image = output[0][0].document.parts
    assert isinstance(text, Text) and image.size == (16, 16)


@pytest.mark.parametrize(
    "text", ['<mask:0>"> <eoss></s>', '<img alt="', "".join(CONTROL[-3:]), "\x00\u202e 👩🏽‍🚀", "", "\ud800"]
)
def test_no_text_can_give_orders(generator, pictures, decoded, text):
    """Whatever a prompt or a document says, it is text: the control tokens are those of the format."""
    requests = [Request(Document([t, Blank("image")]), [Hit(Document([t, pictures[0]]))]) for t in ("kite", text)]
    outputs = generator.generate(requests)
    assert outputs[1][0].document.texts == (text,)
    vocabulary = generator.checkpoint.vocabulary
    plain, hostile = (
        [
            name
            for sequence in [*prompt.context, prompt.document()]
            for name in vocabulary.names(sequence.ids.tolist())
            if not name.startswith("text:")
        ]
        for prompt in decoded
    )
    assert plain == hostile


def test_what_is_written_is_text_whatever_it_looks_like(generator, pictures):
    """The tokens of "<eoss>" as letters, drawn one by one, come back as these letters."""
    tokenizer = generator.checkpoint.text_tokenizer
    (token,) = tokenizer.encode("<").ids
    stop = generator.checkpoint.vocabulary.control("<eoss>")
    with biased(generator.checkpoint.model, [token], 200.0), biased(generator.checkpoint.model, [stop], -200.0):
        request = Request(Document([Blank("text"), pictures[0]]))
        output = generator.generate([request], options=Options(max_text_tokens=4))[0][0]
    assert output.document.texts == ("<<<<",)


# --- context ----------------------------------------------------------------------------------------------------


def test_the_most_relevant_document_stands_nearest_to_the_prompt(generator, pictures, decoded):
    context = hits(pictures, 3)
    generator.generate([Request(TO_IMAGE, context)])
    format = generator.checkpoint.format
    starts = [int(sequence.positions[0]) for sequence in decoded[0].context]
    assert starts == [0, 64, 128]
    for hit, sequence, slot in zip(reversed(context), decoded[0].context, starts, strict=True):
        parts = reader(generator).parts(hit.document)
        assert sequence.ids.tolist() == format.write(parts, slot=slot).ids.tolist()


def test_a_context_that_does_not_fit_is_cut_from_its_end(generator, pictures, decoded, caplog):
    context = hits(pictures, 5)
    with caplog.at_level(logging.WARNING, "racm3"):
        generator.generate([Request(TO_IMAGE, context)])
    # 256 positions in all, 64 for each document.
    assert len(decoded[0].context) == 3
    assert caplog.messages == ["the context is cut to 3 of 5 documents: no more fit"]
    nearest = reader(generator).parts(context[0].document)
    assert decoded[0].context[-1].ids.tolist() == generator.checkpoint.format.write(nearest).ids.tolist()


def test_scoring_sees_the_context_that_generating_saw(generator, pictures, caplog):
    """What does not fit there does not fit here: the fourth document changes nothing, the third does."""
    target = Document(["a red kite", pictures[5]])
    with pytest.warns(NotGrounded, match="A score rests on 3 of 5 documents: 'd3' does not fit"):
        scores = [
            generator.score([Request(TO_IMAGE, hits(pictures, k))], [target])[0].log_probability for k in (2, 3, 4, 5)
        ]
    assert scores[1] != pytest.approx(scores[0], abs=1e-3)
    assert scores[1] == scores[2] == scores[3]


@pytest.mark.parametrize("blank", ["text", "image"])
def test_prompt_and_context_stay_within_the_models_positions(generator, pictures, blank):
    """However long the text may get: its room is kept free."""
    prompts = {"text": Document([Blank("text"), pictures[5]]), "image": TO_IMAGE}
    for limit in (10, 60, 100, 200):
        request = Request(prompts[blank], hits(pictures, 5))
        prompt = reader(generator).jobs([request], Options(max_text_tokens=limit))[0][0].streams[0]
        extent = prompt.slot + prompt.extent(limit)
        assert extent <= 256
        # No document is left out that had room.
        assert extent > 192 or len(prompt.context) == 5


def test_another_document_changes_the_score(generator, pictures):
    for prompt, target in (
        (TO_IMAGE, Document(["a red kite", pictures[5]])),
        (Document([Blank("text"), pictures[5]]), Document(["a red kite", pictures[5]])),
    ):
        base = hits(pictures, 2)
        others = [
            [base[0], Hit(Document(["a grey whale 1", pictures[3]]))],  # another picture, further away
            [Hit(Document(["the beach over the sea", pictures[0]])), base[1]],  # another text, nearer
            base[::-1],
            [],
        ]
        scores = generator.score([Request(prompt, context) for context in [base, *others]], [target] * 5)
        differences = [abs(score.log_probability - scores[0].log_probability) for score in scores[1:]]
        assert min(differences) > 1e-3


# --- scores -----------------------------------------------------------------------------------------------------


def by_hand(generator, document, context=(), spans=()):
    """Log-probability of each token of the last written document, by one plain pass: [n] and its sequence."""
    checkpoint = generator.checkpoint
    sequences = []
    for item in [*context, document]:
        slot = checkpoint.format.slot_after(sequences[-1]) if sequences else 0
        own = spans if item is document else ()
        sequences.append(checkpoint.format.write(reader(generator).parts(item), slot=slot, spans=own))
    ids = torch.from_numpy(np.concatenate([s.ids for s in sequences]))
    positions = torch.from_numpy(np.concatenate([s.positions for s in sequences]))
    with torch.no_grad():
        logits = checkpoint.model(
            input_ids=ids[None], position_ids=positions[None], attention_mask=torch.ones_like(ids)[None]
        ).logits[0]
    return logits.double().numpy(), ids.numpy(), sequences[-1], len(ids) - len(sequences[-1])


def log_softmax(logits, among):
    kept = logits[among]
    return logits - (np.log(np.exp(kept - kept.max()).sum()) + kept.max())


def test_a_score_is_the_sum_over_the_tokens_of_each_part_under_the_grammar(generator, pictures):
    vocabulary = generator.checkpoint.vocabulary
    document = Document(["a red kite", pictures[0]])
    context = [Document(["a whale", pictures[1]])]
    logits, ids, own, offset = by_hand(generator, document, context)
    text, image = own.segments
    stop = vocabulary.control('" src="')
    among_text = vocabulary.text_mask()
    among_text[stop] = True
    expected = [
        sum(log_softmax(logits[offset + t - 1], among_text)[ids[offset + t]] for t in range(text.start, text.stop + 1)),
        sum(
            log_softmax(logits[offset + t - 1], vocabulary.image_mask())[ids[offset + t]]
            for t in range(image.start, image.stop)
        ),
    ]
    score = generator.score([Request(document, [Hit(context[0])])], [document])[0]
    assert score.log_probabilities == pytest.approx(expected, abs=1e-3)
    assert score.tokens == (text.stop - text.start + 1, 16)
    assert score.log_probability == pytest.approx(sum(expected), abs=1e-3)
    assert score.perplexity == pytest.approx(np.exp(-sum(expected) / sum(score.tokens)), rel=1e-3)


def test_only_blanks_are_scored(generator, pictures):
    target = Document(["a red kite", pictures[0]])
    whole, image = generator.score([Request(target), Request(TO_IMAGE)], [target, target])
    assert len(whole.tokens) == 2 and image.tokens == (16,)
    assert image.log_probabilities[0] == pytest.approx(whole.log_probabilities[1], abs=1e-4)


def test_a_caption_is_scored_with_its_picture_in_view(generator, pictures):
    """Through the mask, as it would be generated: another picture changes the caption's score."""
    scores = generator.score(
        [Request(Document([Blank("text"), picture])) for picture in pictures[:2]],
        [Document(["a red kite", picture]) for picture in pictures[:2]],
    )
    assert abs(scores[0].log_probability - scores[1].log_probability) > 1e-3


def test_scores_do_not_depend_on_the_batch(checkpoint, pictures):
    targets = [Document(["kite " * i, picture]) for i, picture in enumerate(pictures)]
    requests = [Request(TO_IMAGE, hits(pictures, i % 3)) for i in range(6)]
    generator = Cm3Generator.from_checkpoint(checkpoint)
    together = generator.score(requests, targets)
    alone = [generator.score([one], [target])[0] for one, target in zip(requests, targets, strict=True)]
    for one, other in zip(alone, together, strict=True):
        assert one.log_probability == pytest.approx(other.log_probability, abs=1e-4)
        assert one.tokens == other.tokens


@pytest.mark.parametrize("shape", ["caption", "picture and text", "text alone"])
def test_a_written_text_has_the_log_probability_of_its_score(generator, pictures, shape):
    parts = {
        "caption": [Blank("text"), pictures[0]],
        "picture and text": [pictures[0], Blank("text")],
        "text alone": ["a red kite", Blank("text")],
    }[shape]
    vocabulary, tokenizer = generator.checkpoint.vocabulary, generator.checkpoint.text_tokenizer
    stop = vocabulary.control("<eoss>" if shape == "caption" else "</p>")
    # Characters that no other token contains, so that the text is tokenised as it was drawn.
    likely = [*tokenizer.encode("!?#%").ids, stop]
    request = Request(Document(parts), hits(pictures))
    with biased(generator.checkpoint.model, likely, 50.0):
        outputs = generator.generate([request], options=Options(n=9, max_text_tokens=60))[0]
        scores = generator.score([request] * 9, [output.document for output in outputs])
    assert len({output.document.text for output in outputs}) > 1
    for output, score in zip(outputs, scores, strict=True):
        assert sum(score.tokens) == output.tokens
        assert score.log_probability == pytest.approx(output.log_probability, abs=1e-3)


def test_a_drawn_picture_has_the_log_probability_of_its_score(generator, pictures, monkeypatch):
    """A picture that is tokenised again has other tokens, so its own are remembered here."""
    tokenizer = generator.checkpoint.image_tokenizer
    decode, drawn = tokenizer.decode, []
    monkeypatch.setattr(tokenizer, "decode", lambda ids: drawn.append(ids) or decode(ids))
    request = Request(TO_IMAGE, hits(pictures))
    outputs = generator.generate([request], options=Options(n=3))[0]
    for ids, output in zip(drawn[0], outputs, strict=True):
        reader(generator).pictures[output.document.image.content_hash] = ids
        score = generator.score([request], [output.document])[0]
        assert score.log_probability == pytest.approx(output.log_probability, abs=1e-3)
        assert score.tokens == (output.tokens,)


# --- pictures, loading, errors ----------------------------------------------------------------------------------


def test_a_picture_is_tokenised_once(checkpoint, pictures, monkeypatch):
    generator = Cm3Generator.from_checkpoint(checkpoint)
    encode, calls = checkpoint.image_tokenizer.encode, []
    monkeypatch.setattr(checkpoint.image_tokenizer, "encode", lambda pixels: calls.append(1) or encode(pixels))
    for _ in range(2):
        generator.score([Request(TO_IMAGE, hits(pictures, 2))], [Document(["a red kite", pictures[0]])])
    assert len(calls) == 2


def test_pictures_of_any_shape_are_taken(generator):
    wide = Image(np.full((7, 50, 3), 80, np.uint8))
    part = reader(generator).parts(Document(wide))[0]
    assert part.modality == "image" and len(part.tokens) == 16


def test_a_folder_is_opened_on_first_use(checkpoint_folder, checkpoint):
    generator = Cm3Generator(checkpoint=checkpoint_folder, device="cpu")
    assert generator._loaded is None
    assert generator.fingerprint == checkpoint.fingerprint
    assert generator._loaded is None
    assert generator.generate([Request(TO_IMAGE)])[0][0].tokens == 16
    assert generator.fingerprint == checkpoint.fingerprint


def test_half_precision_generates_and_scores(checkpoint_folder, pictures):
    generator = Cm3Generator(checkpoint=checkpoint_folder, device="cpu", dtype="bfloat16")
    output = generator.generate([Request(TO_IMAGE, hits(pictures))])[0][0]
    assert generator.score([Request(TO_IMAGE)], [output.document])[0].tokens == (16,)


def test_a_missing_checkpoint_is_named_when_it_is_needed(tmp_path):
    generator = Cm3Generator(checkpoint=tmp_path / "none")
    with pytest.raises(WeightsNotFound, match="No checkpoint folder at"):
        generator.generate([Request(TO_IMAGE)])


def test_a_prompt_without_a_blank_is_refused(generator):
    with pytest.raises(GenerationError, match=r"no blank to fill.*Blank\('image'\)"):
        generator.generate([Request(Document("a red kite"))])


def test_a_context_document_with_a_blank_is_refused(generator):
    with pytest.raises(ModalityError, match="'gap' has a blank"):
        generator.generate([Request(TO_IMAGE, [Hit(Document(Blank("text"), id="gap"))])])


def test_a_prompt_that_is_too_long_is_refused(generator):
    with pytest.raises(GenerationError, match="the model holds 256") as raised:
        generator.generate([Request(Document(["!" * 300, Blank("image")]))])
    assert raised.value.hint
    with pytest.raises(GenerationError, match="the model holds 256"):
        generator.generate([Request(Document(Blank("text")))], options=Options(max_text_tokens=300))


def test_targets_must_belong_to_their_prompts(generator, pictures):
    with pytest.raises(GenerationError, match="1 requests and 2 targets"):
        generator.score([Request(TO_IMAGE)], [Document("a"), Document("b")])
    for target in (Document("a red kite"), Document([pictures[0], "a red kite"]), TO_IMAGE):
        with pytest.raises(GenerationError, match="is not the prompt"):
            generator.score([Request(TO_IMAGE)], [target])


def test_a_document_longer_than_the_context_does_not_shut_out_the_others(generator):
    short, long = Hit(Document("a kite")), Hit(Document("kite " * 5000))
    request = Request(Document(["a whale", Blank("image")]), [long, short, long, short])
    assert [o.grounded_on for o in generator.generate([request], options=Options(n=2))[0]] == [(1, 3), (1, 3)]
