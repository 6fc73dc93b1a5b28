"""The whole evaluation with light components: who is given what, and what the figures and the report then say."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from racm3 import Document, Image, Options, Pipeline
from racm3.errors import CheckpointError, ConfigError, DuplicateDocument, GenerationError
from racm3.evaluation.evaluate import Evaluation, evaluate
from racm3.evaluation.grounding import Grounding, answers
from racm3.evaluation.learning import measure_learning
from racm3.evaluation.pairs import Pair
from racm3.evaluation.published import PUBLISHED
from racm3.evaluation.report import markdown, write_report
from racm3.interfaces import Output, Request, Score
from racm3.memories.faiss import FaissMemory
from racm3.testing import HashingRetriever, PaintingGenerator

THINGS = ("red kite", "grey whale", "old oak", "brass drum", "white boat", "small fox")


def drawing(name: str, style: int) -> Document:
    """A drawing of a thing: that of another style looks alike."""
    rng = np.random.default_rng([THINGS.index(name)])
    pixels = 255 * rng.integers(0, 2, (4, 4, 3)).repeat(8, 0).repeat(8, 1)
    pixels = np.clip(pixels + np.random.default_rng(style).integers(-10, 10, pixels.shape), 0, 255)
    return Document([f"{name} {style}", Image(pixels.astype(np.uint8))], id=f"{style}/{name}", metadata={"name": name})


@pytest.fixture(scope="module", autouse=True)
def no_java() -> Iterator[None]:
    """The plain tokenizer: starting Java costs more than all that is tested here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "which", lambda name: None)
        yield


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    """Style 0 of every thing."""
    made = [drawing(name, 0) for name in THINGS]
    return [Pair(document, document.texts, str(document.metadata["name"])) for document in made]


def filled() -> Pipeline:
    """The memory holds all things in styles 0, 1 and 2: the answers, too."""
    made = Pipeline(HashingRetriever(128), FaissMemory(), generator=PaintingGenerator())
    made.add([drawing(name, style) for name in THINGS for style in (0, 1, 2)])
    return made


@pytest.fixture
def pipeline() -> Pipeline:
    return filled()


@pytest.fixture(scope="module")
def evaluation(pairs: list[Pair]) -> Evaluation:
    return evaluate(filled(), pairs, vanilla=PaintingGenerator(), seeds=2, label="name")


@pytest.mark.parametrize("blank", ["image", "text"])
@pytest.mark.parametrize("context", ["retrieved", "random"])
def test_no_prompt_is_grounded_on_its_own_answer(pipeline: Pipeline, pairs: list[Pair], blank, context) -> None:
    # The same picture under another id and caption would be the answer, too.
    pipeline.add([Document(["quite another text", pairs[0].image], id="twin")])
    for request, pair in zip(Grounding(pipeline, pairs, 3).requests(blank, context), pairs, strict=True):
        assert len(request.context) == 3
        assert not any({hit.id, *hit.hashes} & answers(pair) for hit in request.context)
        assert not request.prompt.images if blank == "image" else not request.prompt.texts


def test_retrieval_helps_a_model_that_copies(evaluation: Evaluation) -> None:
    drawn = evaluation.figures["text_to_image"]
    assert set(drawn) == {"ra_cm3", "no_documents", "random_documents", "vanilla", "top_document"}
    recall = {name: row["recall_at_1"]["value"] for name, row in drawn.items()}
    assert recall["top_document"] == 1.0 and recall["ra_cm3"] > 0.5 > recall["no_documents"]
    for name in ("frechet_distance", "perplexity"):
        assert drawn["ra_cm3"][name]["value"] < drawn["no_documents"][name]["value"]
    assert drawn["top_document"]["cmmd"]["value"] < drawn["no_documents"]["cmmd"]["value"]
    written = evaluation.figures["image_to_text"]
    assert written["ra_cm3"]["cider"]["value"] > written["random_documents"]["cider"]["value"]
    # Without documents the fake model says the same as the vanilla one, which is its like.
    assert written["no_documents"] == written["vanilla"]


def test_every_figure_lies_in_its_interval(evaluation: Evaluation) -> None:
    for task in ("text_to_image", "image_to_text"):
        for row in evaluation.figures[task].values():
            for name, figure in row.items():
                low, high = figure["interval"]
                assert low - 1e-9 <= figure["value"] <= high + 1e-9, name


def test_fid_without_inception_is_the_frechet_distance_of_the_encoder(evaluation: Evaluation) -> None:
    assert evaluation.figures["fid_network"] == "encoder"
    for row in evaluation.figures["text_to_image"].values():
        assert row["fid"]["value"] == pytest.approx(row["frechet_distance"]["value"], abs=1e-5)
    assert any("not Inception's" in note for note in evaluation.figures["notes"])
    assert any("also retrieves" in note for note in evaluation.figures["notes"])


def test_classification_sees_examples_of_both_classes(evaluation: Evaluation) -> None:
    asked = evaluation.figures["classification"]
    assert (asked["shots"], asked["ways"], asked["episodes"]) == (1, 2, len(THINGS))
    assert set(asked["figures"]) == {"ra_cm3", "vanilla", "no_documents", "random_documents", "top_document"}
    assert asked["figures"]["top_document"]["accuracy"]["value"] == 1.0  # other drawings of a thing look alike


class Recognising(PaintingGenerator):
    """Says the label of the example that looks most like the picture."""

    def score(self, requests: Sequence[Request], targets: Sequence[Document]) -> list[Score]:
        scores = super().score(requests, targets)
        for i, (request, target) in enumerate(zip(requests, targets, strict=True)):
            far = {
                hit.document.text: np.abs(
                    hit.document.images[0].square(8).astype(float) - target.images[0].square(8)
                ).mean()
                for hit in request.context
            }
            if target.text in far:
                scores[i] = Score((-far[target.text],), (1,))
        return scores


def test_a_model_that_compares_pictures_classifies_all_of_them(pipeline: Pipeline, pairs: list[Pair]) -> None:
    pipeline.generator = Recognising()
    figures = evaluate(pipeline, pairs, label="name", shots=2).figures["classification"]
    right = {name: row["accuracy"]["value"] for name, row in figures["figures"].items()}
    assert figures["shots"] == 2 and right["ra_cm3"] == 1.0
    assert (
        right["no_documents"] == 0.5 and right["top_document"] == 1.0
    )  # without an example all labels are alike to it
    among = evaluate(pipeline, pairs, label="name", ways=4).figures["classification"]
    assert among["ways"] == 4 and among["figures"]["ra_cm3"]["accuracy"]["value"] == 1.0
    with pytest.raises(ConfigError, match="no 9 examples"):
        evaluate(pipeline, pairs, label="name", shots=9)


def test_classes_may_be_numbers(pipeline: Pipeline) -> None:
    """As those of a data set are; the memory tells the number 3 from the text "3"."""
    made, shown = [], []
    with Pipeline(HashingRetriever(128), FaissMemory(), generator=Recognising()) as numbered:
        for number, name in enumerate(THINGS[:3]):
            drawings = [drawing(name, style).replace(metadata={"class": number}) for style in range(3)]
            shown.append(Pair(drawings[0], drawings[0].texts, name))
            made += [one.replace(id=f"{name}/{style}") for style, one in enumerate(drawings)]
        numbered.add(made)
        figures = evaluate(numbered, shown, label="class", shots=1).figures["classification"]
    assert figures["episodes"] == 3 and figures["figures"]["ra_cm3"]["accuracy"]["value"] == 1.0


def test_what_cannot_be_evaluated_is_said_before_anything_is_drawn(pipeline: Pipeline, pairs: list[Pair]) -> None:
    with pytest.raises(ConfigError, match="two pairs"):
        evaluate(pipeline, pairs[:1])
    pipeline.generator = None
    with pytest.raises(GenerationError, match="no generator"):
        evaluate(pipeline, pairs)


def test_the_report_has_the_figures_the_samples_and_what_was_published(evaluation: Evaluation, tmp_path: Path) -> None:
    figures, text, page = write_report(evaluation, tmp_path / "report")
    assert json.loads(figures.read_text()) == {**evaluation.figures, "published_not_run": PUBLISHED}
    shown = text.read_text(encoding="utf-8")
    assert shown == markdown(evaluation.figures)
    assert "| RA-CM3 | 0.500 (0.500 to 0.500) |" in shown  # it finds all labels equally likely
    assert "Published, not run here" in shown and "RA-CM3 2.7B 15.7" in shown
    html = page.read_text(encoding="utf-8")
    assert html.count("data:image/png;base64,") >= len(THINGS) * 5
    assert "Published, not run here" in html and "red kite 0" in html


def test_the_page_holds_captions_as_text(pipeline: Pipeline, pairs: list[Pair], tmp_path: Path) -> None:
    sly = Document(["<script>alert(1)</script>", pairs[0].image])
    found = evaluate(pipeline, [Pair(sly, sly.texts, "sly"), *pairs])
    assert "<script>" not in write_report(found, tmp_path)[2].read_text(encoding="utf-8")


class Copying(PaintingGenerator):
    """Hands back the first picture of its context, or grey."""

    def generate(self, requests: Sequence[Request], *, options: Options) -> list[list[Output]]:
        grey = Image(np.full((32, 32, 3), 128, np.uint8))
        shown = [next((hit.document.images[0] for hit in request.context), grey) for request in requests]
        pairs = zip(requests, shown, strict=True)
        return [[Output(Document([request.prompt.text, picture]), 0.0, 1)] for request, picture in pairs]


def test_new_documents_are_new_knowledge(pairs: list[Pair]) -> None:
    pipeline = Pipeline(HashingRetriever(128), FaissMemory(), generator=Copying())
    pipeline.add([drawing(THINGS[5], 1)])
    documents = [drawing(name, 1) for name in THINGS[:5]]
    learned = measure_learning(pipeline, pairs[:5], documents, HashingRetriever(128))
    # Before, the one thing that is remembered is drawn for each of the five: it can look like one of them at most.
    assert learned.before.value <= 0.2 and learned.after.value == 1.0
    assert (learned.pairs, learned.entities, learned.documents) == (5, 5, 5)
    assert len(pipeline.memory) == 6
    with pytest.raises(DuplicateDocument, match="5 of the documents are in the memory before"):
        measure_learning(pipeline, pairs[:5], documents, HashingRetriever(128))


class Short(PaintingGenerator):
    """Holds captions of so many letters."""

    def score(self, requests: Sequence[Request], targets: Sequence[Document]) -> list[Score]:
        if any(len(target.text) > 40 for target in targets):
            raise GenerationError("The prompt is too long.")
        return super().score(requests, targets)


def test_a_caption_that_the_model_cannot_hold_is_passed_over_and_listed(pipeline: Pipeline, pairs: list[Pair]) -> None:
    long = Document(["word " * 20, pairs[0].image], id="the long one")
    pipeline.generator = Short()
    figures = evaluate(pipeline, [pairs[0], Pair(long, long.texts, "long"), *pairs[1:]]).figures
    assert figures["pairs"] == len(pairs) and figures["skipped"] == ["the long one: The prompt is too long."]
    pipeline.generator = PaintingGenerator()
    assert evaluate(pipeline, pairs).figures["skipped"] == []


class Narrow(PaintingGenerator):
    """Holds one document, and says so; it looks at no others."""

    def generate(self, requests: Sequence[Request], *, options: Options) -> list[list[Output]]:
        cut = [replace(request, context=request.context[:1]) for request in requests]
        made = super().generate(cut, options=options)
        return [
            [replace(output, grounded_on=(0,) if request.context else None) for output in outputs]
            for request, outputs in zip(requests, made, strict=True)
        ]


def test_documents_that_did_not_fit_are_told_and_in_the_report(pairs: list[Pair], tmp_path: Path) -> None:
    with filled() as made:
        made.generator = Narrow()
        found = evaluate(made, pairs, k=5)
        assert any("Not all 5 documents fit" in note and ": 12 answers" in note for note in found.figures["notes"])
        assert not any("documents fit" in note for note in evaluate(made, pairs, k=1).figures["notes"])
    *_, page = write_report(found, tmp_path)  # the memory is closed by now
    assert "2/red kite" in page.read_text(encoding="utf-8") or "red kite 2" in page.read_text(encoding="utf-8")


def test_one_entity_alone_is_told(pipeline: Pipeline, pairs: list[Pair]) -> None:
    said = "All pairs are of one entity"
    one = [replace(pair, entity="one") for pair in pairs]
    for given, expected in ((one, True), (pairs, False)):
        assert (said in " ".join(evaluate(pipeline, given).figures["notes"])) is expected


def test_a_file_that_holds_no_inception_weights_is_named(pipeline: Pipeline, pairs: list[Pair], tmp_path: Path) -> None:
    pytest.importorskip("torch_fidelity")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    with pytest.raises(CheckpointError, match=r"picture\.png holds no Inception weights") as raised:
        evaluate(pipeline, pairs, inception=tmp_path / "picture.png")
    assert "weights-inception" in raised.value.hint


class OfItsOwn(Options):
    draft: bool = False


class Choosy(PaintingGenerator):
    """Has options of its own."""

    options_type = OfItsOwn

    def generate(self, requests: Sequence[Request], *, options: Options) -> list[list[Output]]:
        assert isinstance(options, OfItsOwn)
        return super().generate(requests, options=options)


def test_a_generator_gets_options_of_its_own(pipeline: Pipeline, pairs: list[Pair]) -> None:
    pipeline.generator = Choosy()
    assert evaluate(pipeline, pairs, options={"draft": True}).figures["options"]["draft"] is True


def test_the_encoder_that_retrieves_is_known_by_its_fingerprint(pipeline: Pipeline, pairs: list[Pair]) -> None:
    said = "the encoder that also retrieves"
    for encoder, expected in ((None, True), (HashingRetriever(128), True), (HashingRetriever(64), False)):
        assert (said in " ".join(evaluate(pipeline, pairs, encoder=encoder).figures["notes"])) is expected
