"""The contract of a generator. A plugin's test is one class:

from racm3.testing import GeneratorContract

class TestMine(GeneratorContract):
    def create(self):
        return MyGenerator()
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from ..document import Blank, Document, Image, Modality
from ..errors import GenerationError, ModalityError
from ..interfaces import Event, Generator, Hit, Output, Request, Score
from ..options import Options
from .contract import Contract, expect, expect_equal, expect_error
from .pipeline_ground import events_of_a_pipeline

OPTIONS = Options(n=2, seed=1, max_text_tokens=6)
TOLERANCE = 1e-2  # in nats, between batches of different sizes
MODALITIES: tuple[Modality, ...] = ("text", "image")


def picture(seed: int) -> Image:
    return Image(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8))


class GeneratorContract(Contract):
    """Every rule of `Generator`, as far as its `accepts` and `emits` go. A subclass defines `create()`."""

    def create(self) -> Generator:
        """A generator. May be the same one each time, if loading is slow."""
        raise NotImplementedError("A contract of a generator defines create().")

    def component_type(self) -> type:
        return type(self._made())

    def _made(self) -> Generator:
        generator = self.create()
        expect(isinstance(generator, Generator), f"create() gave {type(generator).__name__}, not a Generator")
        return generator

    # Filling

    def test_it_says_what_it_takes_and_makes(self) -> None:
        """accepts and emits are frozensets of "text" and "image"; emits is not empty; the fingerprint is a fixed str."""
        generator = self._made()
        for name in ("accepts", "emits"):
            value = getattr(generator, name, None)
            expect(isinstance(value, frozenset) and value <= set(MODALITIES), f"{name} is {value!r}")
        expect(generator.emits, "emits is empty: it makes nothing")
        expect(isinstance(generator.fingerprint, str), f"fingerprint is {generator.fingerprint!r}")
        expect_equal(self._made().fingerprint, generator.fingerprint, "the fingerprint of another instance")

    def test_every_blank_is_filled(self) -> None:
        """options.n outputs for each request, in order; each blank filled by its modality, the rest of the prompt kept."""
        generator = self._made()
        requests = [Request(prompt) for prompt in _prompts(generator)]
        for n in (1, 3):
            made = generator.generate(requests, options=Options(n=n, seed=1, max_text_tokens=6))
            expect_equal([len(group) for group in made], [n] * len(requests), f"number of outputs with n={n}")
            for request, group in zip(requests, made, strict=True):
                for output in group:
                    _expect_filled(output, request.prompt)
        expect_equal(generator.generate([], options=OPTIONS), [], "the answer to no requests")

    def test_a_likelihood_comes_with_every_output(self) -> None:
        """The log-probability is finite and not above 0; the token count is a whole number, 1 or more."""
        generator = self._made()
        for group in generator.generate([Request(prompt) for prompt in _prompts(generator)], options=OPTIONS):
            for output in group:
                value = output.log_probability
                expect(math.isfinite(value) and value <= 0, f"the log-probability is {value}")
                expect(isinstance(output.tokens, int) and output.tokens >= 1, f"tokens is {output.tokens!r}")

    def test_a_seed_repeats_the_answer(self) -> None:
        """The same options give the same outputs, also from another instance; another seed, or sample, gives others."""
        generator = self._made()
        requests = [Request(prompt) for prompt in _prompts(generator)]
        first = generator.generate(requests, options=OPTIONS)
        for again in (generator, self._made()):
            _expect_alike(again.generate(requests, options=OPTIONS), first, "generated again with the same seed")
        other = generator.generate(requests, options=OPTIONS.model_copy(update={"seed": 2}))
        contents = [{output.document.content_hash for output in group} for group in first]
        expect(any(len(group) > 1 for group in contents), "all samples of every request are the same")
        others = [{output.document.content_hash for output in group} for group in other]
        expect(others != contents, "another seed gives the same outputs")

    def test_a_sample_does_not_depend_on_the_others(self) -> None:
        """What is generated stays the same, to rounding, with more samples, and with more requests behind it."""
        generator = self._made()
        requests = [Request(prompt, _context(generator, number)) for number, prompt in enumerate(_prompts(generator))]
        together = generator.generate(requests, options=OPTIONS)
        alone = generator.generate(requests[:1], options=OPTIONS)
        _expect_alike(alone, together[:1], "the first request alone")
        more = generator.generate(requests, options=OPTIONS.model_copy(update={"n": 3}))
        _expect_alike([group[:2] for group in more], together, "the first two of three samples")

    def test_texts_keep_to_their_limit(self) -> None:
        """A text blank is filled with at most max_text_tokens tokens (the one that ends it may come on top)."""
        generator = self._made()
        if "text" not in generator.emits:
            return
        prompt = _prompt(generator, "text")
        for limit in (1, 5):
            for output in generator.generate([Request(prompt)], options=Options(n=4, max_text_tokens=limit))[0]:
                expect(output.tokens <= limit + 1, f"{output.tokens} tokens with max_text_tokens={limit}")

    def test_text_gives_no_orders(self) -> None:
        """Any str can stand in a prompt, one that looks like a control token too, and comes back as it was."""
        generator = self._made()
        if "text" not in generator.accepts:
            return
        for text in (
            '</s><eoss> <mask:0>"> <img alt="',
            "<|endoftext|>[INST]",
            "nul \0 \u202e 👩🏽‍🚀",
            "half \ud800",
            "",
        ):
            prompt = Document([text, Blank(sorted(generator.emits)[0])])
            _expect_filled(generator.generate([Request(prompt)], options=Options(max_text_tokens=4))[0][0], prompt)

    # Grounding

    def test_the_context_matters(self) -> None:
        """Other documents change what is generated, or how likely a given answer is."""
        generator = self._made()
        if not generator.accepts:
            return
        for prompt in _prompts(generator):
            requests = [Request(prompt, _context(generator, 2, seed=seed)) for seed in (0, 50)] + [Request(prompt)]
            made = [generator.generate([request], options=OPTIONS)[0] for request in requests]
            target = made[0][0].document
            scores = [round(score.log_probability, 6) for score in generator.score(requests, [target] * 3)]
            contents = {tuple(output.document.content_hash for output in group) for group in made}
            expect(len(contents) > 1 or len(set(scores)) > 1, f"{prompt!r} is answered whatever the context is")

    def test_documents_are_read_from_hits(self) -> None:
        """Hits given by hand (without score and vector) and hits that load their document do as well as any."""
        generator = self._made()
        by_hand = [Hit(hit.document) for hit in _context(generator, 2)]
        lazy = [
            Hit(id=hit.id, hashes=hit.hashes, score=0.5, load=lambda hit=hit: hit.document)  # type: ignore[misc]
            for hit in by_hand
        ]
        prompt = _prompts(generator)[0]
        made = [generator.generate([Request(prompt, context)], options=OPTIONS) for context in (by_hand, tuple(lazy))]
        _expect_alike(made[1], made[0], "with hits that load their documents")
        for context, group in zip((by_hand, lazy), made, strict=True):
            for output in group[0]:
                seen = output.grounded_on
                known = seen is None or (isinstance(seen, tuple) and set(seen) <= set(range(len(context))))
                expect(known, f"grounded_on is {seen!r} for {len(context)} documents")

    # Scoring

    def test_a_score_covers_what_was_blank(self) -> None:
        """One log-probability and token count for each blank, or for every part where none is blank; finite, not above 0."""
        generator = self._made()
        requests = [Request(prompt, _context(generator, 1)) for prompt in _prompts(generator)]
        targets = [group[0].document for group in generator.generate(requests, options=OPTIONS)]
        for request, target, score in zip(requests, targets, generator.score(requests, targets), strict=True):
            _expect_score(score, len(request.prompt.blanks), f"the score of {target!r}")
        whole = [target for target in targets if target.modalities <= generator.emits]
        for target, score in zip(whole, generator.score([Request(target) for target in whole], whole), strict=True):
            _expect_score(score, len(target.parts), f"the score of all parts of {target!r}")
        expect_equal(generator.score([], []), [], "the scores of no requests")

    def test_scores_tell_targets_apart(self) -> None:
        """Different targets have different scores, and each the same, to rounding, alone and in a batch."""
        generator = self._made()
        for modality in sorted(generator.emits):
            prompt = _prompt(generator, modality)
            fillings: list[Any] = (
                ["a grey whale", "a red kite", "kite kite kite"]
                if modality == "text"
                else [picture(7), picture(8), Image(np.full((16, 16, 3), 200, np.uint8))]
            )
            targets = [_filled(prompt, filling) for filling in fillings]
            requests = [Request(prompt, _context(generator, number)) for number in range(len(targets))]
            same = [Request(prompt, _context(generator, 1))] * len(targets)
            scores = [score.log_probability for score in generator.score(same, targets)]
            expect(len({round(score, 6) for score in scores}) > 1, f"all {modality} targets have the score {scores[0]}")
            batch = generator.score(requests, targets)
            for request, target, score in zip(requests, targets, batch, strict=True):
                alone = generator.score([request], [target])[0]
                off = abs(alone.log_probability - score.log_probability)
                expect(off < TOLERANCE, f"the score of {target!r} differs by {off:.2g} between batches")
                expect_equal(alone.tokens, score.tokens, "the token counts of a score in a batch")

    # What is refused

    def test_what_does_not_fit_is_refused(self) -> None:
        """No blank to fill, as many targets as requests, or a target that is not the prompt filled: `GenerationError`."""
        generator = self._made()
        prompt = _prompts(generator)[0]
        target = generator.generate([Request(prompt)], options=OPTIONS)[0][0].document
        with expect_error(GenerationError, "generating without a blank"):
            generator.generate([Request(target)], options=OPTIONS)
        with expect_error(GenerationError, "two requests and one target"):
            generator.score([Request(prompt)] * 2, [target])
        for bad, what in (
            (prompt, "a target with a blank"),
            (Document([*target.parts, "more"]), "a target with a part more"),
            (
                Document([part for part in prompt.parts if not isinstance(part, Blank)] or ["x"] * 9),
                "a part of a target",
            ),
        ):
            with expect_error(GenerationError, f"scoring {what}"):
                generator.score([Request(prompt)], [bad])

    def test_other_modalities_are_refused(self) -> None:
        """A blank that it does not make, or a part that it does not take, is a `ModalityError`."""
        generator = self._made()
        given: dict[Modality, Any] = {"text": "a red kite", "image": picture(1)}
        for modality in MODALITIES:
            taken = [given[other] for other in MODALITIES if other in generator.accepts]
            if modality not in generator.emits:
                with expect_error(ModalityError, f"a blank for {modality}"):
                    generator.generate([Request(Document([*taken, Blank(modality)]))], options=OPTIONS)
            if modality not in generator.accepts:
                prompt = Document([given[modality], Blank(sorted(generator.emits)[0])])
                with expect_error(ModalityError, f"a prompt with {modality}"):
                    generator.generate([Request(prompt)], options=OPTIONS)

    def test_inputs_are_left_alone(self) -> None:
        """Requests, their context and the options are not changed."""
        generator = self._made()
        prompt, context = _prompts(generator)[0], _context(generator, 2)
        requests = [Request(prompt, context)]
        generator.generate(requests, options=OPTIONS)
        expect_equal([hit.id for hit in context], [hit.id for hit in _context(generator, 2)], "the context")
        expect(requests[0].context is context and requests[0].prompt is prompt, "the requests were changed")
        expect_equal(prompt, _prompts(generator)[0], "the prompt")

    # Life

    def test_a_stream_ends_with_the_outputs(self) -> None:
        """stream() gives events; the last one, and no other, is "done", with the outputs that generate() gives."""
        generator = self._made()
        request = Request(_prompts(generator)[0], _context(generator, 1))
        events = list(generator.stream(request, options=OPTIONS))
        expect(events and all(isinstance(event, Event) for event in events), f"stream() gave {events!r}")
        kinds = [event.kind for event in events]
        expect("done" not in kinds[:-1] and kinds[-1] == "done", f'"done" is not the end, and only that, of {kinds}')
        _expect_alike([events[-1].outputs], generator.generate([request], options=OPTIONS), "the streamed outputs")

    def test_threads_share_a_generator(self) -> None:
        """Calls from several threads at once give what they give one by one."""
        generator = self._made()
        requests = [Request(prompt, _context(generator, 1)) for prompt in _prompts(generator)]
        expected = generator.generate(requests, options=OPTIONS)
        got: list[Any] = [None] * 3

        def work(number: int) -> None:
            try:
                got[number] = generator.generate(requests, options=OPTIONS)
            except BaseException as error:
                got[number] = error

        threads = [threading.Thread(target=work, args=(number,)) for number in range(len(got))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for made in got:
            expect(isinstance(made, list), f"a thread got {made!r}")
            _expect_alike(made, expected, "generated in several threads")

    def test_a_pipeline_tells_observers_in_order(self) -> None:
        """In a pipeline: what was retrieved for each prompt, in order, then what was generated for each, in order."""
        generator = self._made()
        if not generator.accepts:
            return
        documents = [hit.document for hit in _context(generator, 2)]
        expect_equal(
            events_of_a_pipeline(generator, documents, _prompts(generator)[:1] * 2, OPTIONS),
            ["retrieved 1", "retrieved 1", "generated 2", "generated 2"],
            "what observers are told of two prompts with k=1 and n=2",
        )


def _prompt(generator: Generator, blank: Modality) -> Document:
    """A prompt with one blank, and with whatever else the generator takes: a caption before, a picture behind."""
    parts: list[Any] = [Blank(blank)]
    if blank == "image" and "text" in generator.accepts:
        parts = ["a red kite", Blank(blank)]
    elif "image" in generator.accepts:
        parts = [Blank(blank), picture(1)]
    elif "text" in generator.accepts:
        parts = ["a red kite", Blank(blank)]
    return Document(parts, metadata={"style": "flat", "tags": ["a", None]})


def _prompts(generator: Generator) -> list[Document]:
    return [_prompt(generator, modality) for modality in sorted(generator.emits)]


def _filled(prompt: Document, filling: Any) -> Document:
    return Document([filling if isinstance(part, Blank) else part for part in prompt.parts])


def _context(generator: Generator, count: int, *, seed: int = 0) -> list[Hit]:
    words = ("a grey whale", "an old clock", "a banjo by the sea", "grinning face")
    hits = []
    for number in range(count):
        given: dict[Modality, Any] = {
            "text": words[(number + seed) % len(words)] + f" {seed + number}",
            "image": picture(100 + seed + number),
        }
        parts = [part for modality, part in given.items() if modality in generator.accepts]
        hits += [Hit(Document(parts, id=f"c{seed + number}"))] if parts else []
    return hits


def _expect_filled(output: Output, prompt: Document) -> None:
    expect(isinstance(output, Output), f"generate() gave {type(output).__name__}, not an Output")
    document = output.document
    got, asked = [part.modality for part in document.parts], [part.modality for part in prompt.parts]
    expect_equal(got, asked, f"the modalities of the parts of {prompt!r}, filled")
    expect(not document.blanks, f"a blank of {prompt!r} was left unfilled")
    for part, given in zip(document.parts, prompt.parts, strict=True):
        expect(isinstance(given, Blank) or part == given, f"the prompt's own {given!r} became {part!r}")
    expect_equal(dict(document.metadata), dict(prompt.metadata), "the metadata of the prompt, filled")


def _expect_alike(got: Sequence[Sequence[Output]], expected: Sequence[Sequence[Output]], what: str) -> None:
    """The same outputs, but for rounding in log-probabilities and pixels."""
    expect_equal([len(group) for group in got], [len(group) for group in expected], f"{what}: number of outputs")
    for output, other in zip(chain(*got), chain(*expected), strict=True):
        off = abs(output.log_probability - other.log_probability)
        expect(off < TOLERANCE, f"{what}: the log-probability differs by {off:.2g}")
        expect_equal(output.document.texts, other.document.texts, f"{what}: texts")
        for one, two in zip(output.document.images, other.document.images, strict=True):
            expect_equal(one.size, two.size, f"{what}: size of a picture")
            difference = np.abs(np.asarray(one.picture, float) - np.asarray(two.picture, float)).mean()
            expect(difference < 1, f"{what}: the pictures differ by {difference:.2g} of 255 on average")


def _expect_score(score: Score, parts: int, what: str) -> None:
    expect(isinstance(score, Score), f"{what} is a {type(score).__name__}, not a Score")
    expect_equal((len(score.log_probabilities), len(score.tokens)), (parts, parts), f"{what}: number of parts")
    fine = all(math.isfinite(value) and value <= 0 for value in score.log_probabilities)
    expect(fine, f"{what}: log-probabilities {score.log_probabilities}")
    expect(all(isinstance(count, int) and count >= 0 for count in score.tokens), f"{what}: tokens {score.tokens}")
