"""Samplers, retrievers and generators that are wrong in one way each, and the check that catches it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import ClassVar

import numpy as np
import pytest

from racm3.document import Blank, Document
from racm3.errors import ConfigError, GenerationError, ModalityError
from racm3.interfaces import Encoder, Event, Hit, Output, Selection, Skip
from racm3.samplers.topk import TopKSampler, check_k
from racm3.scaffold.generator import ExampleGenerator
from racm3.scaffold.retriever import ExampleRetriever
from racm3.testing import GeneratorContract, HashingRetriever, PaintingGenerator, RetrieverContract, SamplerContract

CASES = []


def _caught_by(base, check, words, **attributes):
    def mark(component):
        contract = type(component.__name__, (base,), {"create": lambda self: component(), **attributes})
        CASES.append(pytest.param(contract, f"test_{check}", words, id=component.__name__))
        return component

    return mark


sampler_caught_by = partial(_caught_by, SamplerContract)
retriever_caught_by = partial(_caught_by, RetrieverContract)
text_retriever_caught_by = partial(_caught_by, RetrieverContract, modalities=frozenset({"text"}))
generator_caught_by = partial(_caught_by, GeneratorContract)


# Samplers


class Choosing(TopKSampler):
    """Chooses in its own way, and refuses a negative k as it should."""

    def sample(self, query, hits, *, k, rng):
        check_k(k)
        return self.chosen(query, hits, k)


@sampler_caught_by("it_chooses_k_of_the_candidates", "chosen with k=1")
class OneTooMany(TopKSampler):
    def sample(self, query, hits, *, k, rng):
        return Selection(list(hits[: k + 1])) if k >= 0 else super().sample(query, hits, k=k, rng=rng)


@sampler_caught_by("it_chooses_k_of_the_candidates", "different documents are chosen")
class TwiceTheFirst(Choosing):
    def chosen(self, query, hits, k):
        return Selection([hits[0]] * k)


@sampler_caught_by("it_chooses_k_of_the_candidates", "not the Hit that was given")
class CopiesHits(Choosing):
    def chosen(self, query, hits, k):
        return Selection([Hit(hit.document, score=hit.score) for hit in hits[:k]])


@sampler_caught_by("it_chooses_k_of_the_candidates", "not one of the candidates")
class Invents(Choosing):
    def chosen(self, query, hits, k):
        return Selection([Hit(query.document)])


@sampler_caught_by("it_chooses_k_of_the_candidates", "list, not a Selection")
class GivesAList(Choosing):
    def chosen(self, query, hits, k):
        return list(hits[:k])


@sampler_caught_by("fewer_candidates_than_k", "IndexError")
class NeedsCandidates(Choosing):
    def chosen(self, query, hits, k):
        return Selection([hits[number] for number in range(k)])


@sampler_caught_by("no_documents_can_be_asked_for", "raised nothing")
class TakesANegativeK(TopKSampler):
    def sample(self, query, hits, *, k, rng):
        return Selection(list(hits[: max(k, 0)]))


@sampler_caught_by("what_is_passed_over_is_told", "both chosen and passed over")
class SkipsWhatItChose(Choosing):
    def chosen(self, query, hits, k):
        return Selection(list(hits[:k]), [Skip(hit, "too dull") for hit in hits])


@sampler_caught_by("what_is_passed_over_is_told", "without a reason")
class SkipsWithoutReason(Choosing):
    def chosen(self, query, hits, k):
        return Selection(list(hits[:k]), [Skip(hit, "") for hit in hits[k:]])


@sampler_caught_by("what_is_passed_over_is_told", "not chosen")
class BlamesTheSkipped(Choosing):
    def chosen(self, query, hits, k):
        return Selection(list(hits[:k]), [Skip(hit, "too close", hits[-1].id) for hit in hits[k:]])


@sampler_caught_by("documents_given_by_hand_can_be_sampled", "TypeError")
class NeedsScores(Choosing):
    def chosen(self, query, hits, k):
        return Selection(sorted(hits, key=lambda hit: -hit.score)[:k])


@sampler_caught_by("inputs_are_left_alone", "the list was changed")
class Pops(Choosing):
    def chosen(self, query, hits, k):
        return Selection([hits.pop(0) for _ in range(k)])


@sampler_caught_by("no_document_is_loaded", "were loaded")
class Reads(Choosing):
    def chosen(self, query, hits, k):
        return Selection([hit for hit in hits if hit.document.text][:k])


@sampler_caught_by("the_generator_is_the_only_chance", "a global random state")
class DrawsGlobally(Choosing):
    def chosen(self, query, hits, k):
        np.random.random()
        return Selection(list(hits[:k]))


@sampler_caught_by("the_generator_is_the_only_chance", "the same seed")
class Remembers(Choosing):
    calls = 0

    def chosen(self, query, hits, k):
        self.calls += 1
        return Selection(list(hits[self.calls % 3 :][:k]))


# Retrievers


@retriever_caught_by("vectors_are_unit_float32_rows", "unit norm")
class NotNormalised(HashingRetriever):
    def _encode(self, *given):
        return super()._encode(*given) * 2


@retriever_caught_by("vectors_are_unit_float32_rows", "dtype")
class DoublePrecision(HashingRetriever):
    def _encode(self, *given):
        return super()._encode(*given).astype(np.float64)


@retriever_caught_by("vectors_are_unit_float32_rows", "shape")
class AnotherWidth(HashingRetriever):
    @property
    def encoder(self):
        return Encoder("x", self.dim + 1)


@retriever_caught_by("the_encoder_says_what_makes_vectors_comparable", "another instance")
class FingerprintOfTheInstance(HashingRetriever):
    @property
    def encoder(self):
        return Encoder(f"hashing-{id(self)}", self.dim)

    kept: ClassVar = []

    def __init__(self):
        super().__init__()
        self.kept.append(self)  # so that no two have one id


@retriever_caught_by("batches_change_nothing", "one by one")
class CentresBatches(HashingRetriever):
    def _encode(self, documents, *given):
        vectors = super()._encode(documents, *given)
        centred = vectors - vectors.mean(0, keepdims=True) / 2
        return (centred / np.linalg.norm(centred, axis=1, keepdims=True)).astype(np.float32)


@retriever_caught_by("a_document_is_found_by_its_own_content", "the nearest document")
class QueriesInAnotherSpace(HashingRetriever):
    def encode_query(self, queries, **asked):
        return np.roll(super().encode_query(queries, **asked), 1, axis=1)


@retriever_caught_by("content_alone_counts", "another id")
class EncodesTheId(HashingRetriever):
    def _encode(self, documents, *given):
        return super()._encode([Document([*d.parts, d.id]) for d in documents], *given)


@retriever_caught_by("every_part_counts", "is encoded as")
class LooksAtThePicture(HashingRetriever):
    def _encode(self, documents, *given):
        return super()._encode([Document(d.images) if d.images else d for d in documents], *given)


@retriever_caught_by("blanks_and_empty_texts_are_passed_over", "raised nothing")
class EncodesNothing(HashingRetriever):
    def _encode(self, documents, *given):
        return super()._encode([d if d.text.strip() or d.images else Document("nothing") for d in documents], *given)


@text_retriever_caught_by("other_modalities_are_refused", "a document of image alone")
class TakesPicturesForNothing(ExampleRetriever):
    def _encode(self, documents, *given):
        return super()._encode([d if d.text.strip() else Document("picture") for d in documents], *given)


@retriever_caught_by("any_text_and_any_picture_can_be_encoded", "UnicodeEncodeError")
class CannotEncodeSurrogates(HashingRetriever):
    def _text(self, text, *given):
        text.encode()
        return super()._text(text, *given)


@retriever_caught_by("dropout_is_a_function_of_the_generator_alone", "changes no vector")
class DropsNothing(HashingRetriever):
    def encode_query(self, queries, *, batch_size=None, dropout=0.0, rng=None):
        super().encode_query(queries, dropout=dropout, rng=rng)  # refuses what it should
        return super().encode_query(queries)


@retriever_caught_by("dropout_is_a_function_of_the_generator_alone", "by the same seed")
class DropsAsItLikes(HashingRetriever):
    def encode_query(self, queries, *, batch_size=None, dropout=0.0, rng=None):
        return super().encode_query(queries, dropout=dropout, rng=rng and np.random.default_rng())


@retriever_caught_by("dropout_is_checked", "raised nothing")
class NeedsNoGenerator(HashingRetriever):
    def encode_query(self, queries, *, batch_size=None, dropout=0.0, rng=None):
        return super().encode_query(queries, dropout=dropout, rng=rng or np.random.default_rng(0))


# Generators


class Changing(PaintingGenerator):
    """Makes another output than it should."""

    def generate(self, requests, *, options):
        made = super().generate(requests, options=options)
        return [[self.changed(output) for output in group] for group in made]


@generator_caught_by("every_blank_is_filled", "number of outputs")
class MakesOne(PaintingGenerator):
    def generate(self, requests, *, options):
        return [group[:1] for group in super().generate(requests, options=options)]


@generator_caught_by("every_blank_is_filled", "the prompt's own")
class AnswersInReverse(PaintingGenerator):
    def generate(self, requests, *, options):
        return super().generate(requests, options=options)[::-1]


@generator_caught_by("every_blank_is_filled", "became")
class CapitalisesThePrompt(Changing):
    def changed(self, output):
        parts = [part.text.upper() if part.modality == "text" else part for part in output.document.parts]
        return replace(output, document=output.document.replace(parts=parts))


@generator_caught_by("every_blank_is_filled", "the metadata of the prompt")
class LosesMetadata(Changing):
    def changed(self, output):
        return replace(output, document=Document(output.document.parts))


@generator_caught_by("every_blank_is_filled", "left unfilled")
class LeavesBlanks(Changing):
    def changed(self, output):
        parts = [Blank(part.modality) for part in output.document.parts]
        return replace(output, document=output.document.replace(parts=parts))


@generator_caught_by("it_says_what_it_takes_and_makes", "accepts is")
class AcceptsAList(PaintingGenerator):
    accepts: ClassVar = ["text"]


@generator_caught_by("a_likelihood_comes_with_every_output", "log-probability is nan")
class DoesNotKnow(Changing):
    def changed(self, output):
        return replace(output, log_probability=float("nan"))


@generator_caught_by("a_likelihood_comes_with_every_output", "log-probability is")
class GivesPerplexity(Changing):
    def changed(self, output):
        return replace(output, log_probability=-output.log_probability)


@generator_caught_by("a_seed_repeats_the_answer", "the same seed")
class NeverTheSame(PaintingGenerator):
    calls = 0

    def generate(self, requests, *, options):
        self.calls += 1
        return super().generate(requests, options=options.model_copy(update={"seed": options.seed + self.calls}))


@generator_caught_by("a_seed_repeats_the_answer", "all samples")
class AlwaysTheSame(PaintingGenerator):
    def _paint(self, request, rng=None):
        return super()._paint(request)


@generator_caught_by("a_sample_does_not_depend_on_the_others", "the first")
class OneStreamForAll(ExampleGenerator):
    def generate(self, requests, *, options):
        rng = np.random.default_rng(options.seed)
        groups = [[None] * options.n for _ in requests]
        for sample in range(options.n):
            for group, request in zip(groups, requests, strict=True):
                group[sample] = self._fill(request, rng, options)
        return groups

    def _fill(self, request, rng, options):
        rng.random(options.n)
        return super()._fill(request, rng, options)


@generator_caught_by("texts_keep_to_their_limit", "tokens with max_text_tokens=1")
class TalksOn(ExampleGenerator):
    def generate(self, requests, *, options):
        return super().generate(requests, options=options.model_copy(update={"max_text_tokens": 64}))


@generator_caught_by("text_gives_no_orders", "became")
class ReadsControlTokens(Changing):
    def changed(self, output):
        parts = [p.text.replace("</s>", "") if p.modality == "text" else p for p in output.document.parts]
        return replace(output, document=output.document.replace(parts=parts))


@generator_caught_by("the_context_matters", "whatever the context is")
class LooksAtNothing(PaintingGenerator):
    def generate(self, requests, *, options):
        return super().generate([replace(request, context=()) for request in requests], options=options)

    def score(self, requests, targets):
        return super().score([replace(request, context=()) for request in requests], targets)


@generator_caught_by("documents_are_read_from_hits", "grounded_on")
class SawMoreThanThereWas(Changing):
    def changed(self, output):
        return replace(output, grounded_on=(99,))


@generator_caught_by("a_score_covers_what_was_blank", "number of parts")
class ScoresAllParts(PaintingGenerator):
    def score(self, requests, targets):
        from racm3.interfaces import Request

        return super().score([Request(target, r.context) for r, target in zip(requests, targets, strict=True)], targets)


@generator_caught_by("scores_tell_targets_apart", "targets have the score")
class ScoresAllAlike(PaintingGenerator):
    def score(self, requests, targets):
        return [type(score)((-1.0,) * len(score.tokens), score.tokens) for score in super().score(requests, targets)]


@generator_caught_by("what_does_not_fit_is_refused", "generating without a blank")
class NeedsNoBlank(PaintingGenerator):
    def generate(self, requests, *, options):
        try:
            return super().generate(requests, options=options)
        except GenerationError:
            return [[Output(request.prompt, 0.0, 1)] * options.n for request in requests]


@generator_caught_by("other_modalities_are_refused", "a blank for image")
class FillsPicturesWithWords(ExampleGenerator):
    def generate(self, requests, *, options):
        try:
            return super().generate(requests, options=options)
        except ModalityError:
            return [[Output(request.prompt, 0.0, 1)] * options.n for request in requests]


@generator_caught_by("a_stream_ends_with_the_outputs", "done")
class NeverDone(PaintingGenerator):
    def stream(self, request, *, options):
        yield Event("tokens")


@generator_caught_by("a_stream_ends_with_the_outputs", "streamed")
class StreamsAnother(PaintingGenerator):
    def stream(self, request, *, options):
        return super().stream(request, options=options.model_copy(update={"seed": 99}))


@generator_caught_by("threads_share_a_generator", "")
class KeepsTheRequestInItself(PaintingGenerator):
    def generate(self, requests, *, options):
        import time

        self.options = options.model_copy(update={"seed": getattr(self, "running", 0) + options.seed})
        self.running = getattr(self, "running", 0) + 1
        time.sleep(0.02)
        self.running -= 1
        return super().generate(requests, options=self.options)


@pytest.mark.parametrize(("contract", "check", "words"), CASES)
def test_a_wrong_component_is_caught(caught, contract, check, words):
    caught(contract, check, words)


def test_a_settings_error_of_the_component_is_no_crash_of_the_kit(caught):
    class Refuses(SamplerContract):
        def create(self):
            raise ConfigError("threshold is missing.")

    caught(Refuses, "test_it_chooses_k_of_the_candidates", "ConfigError: threshold is missing.")
