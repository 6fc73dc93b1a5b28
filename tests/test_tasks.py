"""The tasks by name: editing, completing, classifying; re-ranking, streams and asyncio."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
import weakref
from collections.abc import Iterator

import numpy as np
import pytest

from racm3 import Blank, Document, Image, MaskedImage, MaskedText, Pipeline
from racm3.document_json import document_from_json, document_to_json
from racm3.errors import (
    ConfigError,
    GenerationError,
    InvalidDocument,
    InvalidImage,
    ModalityError,
    PluginError,
    RACM3Error,
)
from racm3.interfaces import Event
from racm3.memories.faiss import FaissMemory
from racm3.samplers.topk import TopKSampler
from racm3.testing import HashingRetriever, PaintingGenerator

pytestmark = pytest.mark.usefixtures("own_registry")

NAMES = ("kite", "whale", "fox", "banjo")


def noise(seed: int, height: int = 20, width: int = 20) -> Image:
    return Image(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def flat(value: int) -> Image:
    return Image(np.full((20, 20, 3), value, np.uint8))


@pytest.fixture
def pipeline() -> Iterator[Pipeline]:
    with Pipeline(HashingRetriever(), FaissMemory(), TopKSampler(), PaintingGenerator()) as made:
        made.add([Document([f"a {name}", flat(60 * i)], id=name) for i, name in enumerate(NAMES)])
        yield made


def pixels(image: Image) -> np.ndarray:
    return np.asarray(image.picture).astype(int)


# Editing


@pytest.mark.parametrize(("height", "width"), [(20, 20), (30, 18), (7, 41)])
def test_an_edit_changes_the_region_and_no_pixel_more(pipeline: Pipeline, height: int, width: int):
    original = noise(0, height, width)
    made = pipeline.edit(original, (3, 2, width - 4, height - 1), "a fox", seed=1)
    inside = np.zeros((height, width), bool)
    inside[2 : height - 1, 3 : width - 4] = True
    changed = (pixels(made.image) != pixels(original)).any(-1)
    assert made.image.size == (width, height)
    assert not changed[~inside].any()
    assert changed[inside].mean() > 0.9
    assert made.document.texts == ("a fox",)


def test_a_mask_may_have_any_shape(pipeline: Pipeline):
    mask = np.eye(20, dtype=bool)
    made = pipeline.edit(noise(0), mask, seed=1)
    changed = (pixels(made.image) != pixels(noise(0))).any(-1)
    assert not changed[~mask].any() and changed[mask].mean() > 0.9


def test_what_stands_in_the_region_does_not_take_part_in_retrieval(pipeline: Pipeline):
    """Two pictures that differ in the region alone find the same documents, with the same scores."""
    array = np.asarray(noise(0).picture).copy()
    array[:10] = 7
    found = [
        [(hit.id, hit.score) for hit in pipeline.edit(picture, (0, 0, 20, 10), seed=1).hits]
        for picture in (noise(0), Image(array))
    ]
    assert found[0] == found[1] and len(found[0]) == 2


@pytest.mark.parametrize(
    ("region", "message"),
    [
        ((0, 0, 21, 5), "does not lie in the picture"),
        ((5, 5, 5, 9), "does not lie in the picture"),
        ((-1, 0, 5, 5), "does not lie in the picture"),
        ("middle", "is no region"),
        ((1, 2, 3), "is no region"),
        (np.zeros((20, 20), bool), "holds no pixel"),
        (np.ones((20, 20), int), "does not fit"),
        (np.ones((10, 20), bool), "does not fit"),
    ],
)
def test_a_region_must_fit_the_picture(pipeline: Pipeline, region, message):
    with pytest.raises(InvalidImage, match=message) as raised:
        pipeline.edit(noise(0), region)
    assert raised.value.hint


def test_a_picture_that_cannot_be_read_is_named(pipeline: Pipeline, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    for ask in (lambda path: pipeline.caption(path), lambda path: pipeline.edit(path, (0, 0, 1, 1))):
        with pytest.raises(InvalidImage, match=r"broken\.png"):
            ask(tmp_path / "broken.png")


def test_masked_parts_are_immutable_and_told_apart():
    hole = MaskedImage(noise(0), (0, 0, 5, 5))
    mask = np.zeros((20, 20), bool)
    mask[:5, :5] = True
    assert hole == MaskedImage(noise(0), mask) and hash(hole) == hash(MaskedImage(noise(0), mask))
    assert hole != MaskedImage(noise(0), (0, 0, 5, 6)) and hole != Blank("image") != hole
    assert MaskedText("a", "b") != MaskedText("ab") and MaskedText("a") != Blank("text")
    with pytest.raises(AttributeError):
        hole.image = noise(1)
    with pytest.raises(ValueError, match="read-only"):
        hole.mask[0, 0] = False
    with pytest.raises(InvalidDocument):
        MaskedText(1)  # type: ignore[arg-type]
    mask[0, 0] = False
    assert hole.mask[0, 0] and hole.mask.sum() == 25


def test_the_cells_of_a_grid_that_a_region_touches():
    wide = Image(np.zeros((8, 16, 3), np.uint8))  # squared: 4 rows of white above and below
    assert MaskedImage(wide, (0, 0, 4, 4)).cells(4).nonzero()[0].tolist() == [1]
    touched = MaskedImage(wide, (3, 3, 5, 5)).cells(4)
    assert sorted(zip(*(side.tolist() for side in touched.nonzero()), strict=True)) == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert MaskedImage(flat(0), (0, 0, 20, 20)).cells(64).all()


def test_a_prompt_with_a_region_shows_itself():
    html = Document(["x", MaskedImage(noise(0), (0, 0, 5, 5)), MaskedText("<a>", "b")])._repr_html_()
    assert "data:image/png" in html and "&lt;a&gt;<i>[text]</i>b" in html


# Texts


def test_a_text_is_continued_and_its_gap_filled(pipeline: Pipeline):
    assert pipeline.complete("once upon ", k=0, seed=1).text.startswith("once upon ")
    made = pipeline.complete("a ", " flies", k=1, seed=1)
    assert made.text.startswith("a ") and made.text.endswith(" flies") and made.text != "a  flies"
    assert made.to_json()["prompt"]["parts"] == [{"blank": "text", "before": "a ", "after": " flies"}]


def test_prompts_come_back_from_json_as_they_were():
    mask = np.zeros((3, 5), bool)
    mask[1, 2:] = True
    picture = Image(np.arange(45, dtype=np.uint8).reshape(3, 5, 3))
    prompt = Document(
        [MaskedText("a ", " flies"), MaskedImage(picture, mask), Blank("image"), picture], metadata={"n": 1}
    )
    plain = json.loads(json.dumps(document_to_json(prompt, images=True), allow_nan=False))
    again = document_from_json(plain)
    assert again == prompt and [type(part) for part in again.parts] == [type(part) for part in prompt.parts]
    assert np.array_equal(again.parts[1].mask, mask)


def test_mixed_output(pipeline: Pipeline):
    made = pipeline.generate(Document(["a fox", Blank("text"), Blank("image"), Blank("text")]), k=1, seed=1)
    assert [part.modality for part in made.filled] == ["text", "image", "text"]


# Classifying


def test_the_label_that_the_documents_foretell_is_the_likeliest(pipeline: Pipeline):
    made = pipeline.classify(flat(120), ["a whale", "a fox"], k=1)
    assert made.label == "a fox" and [hit.id for hit in made.hits] == ["fox"]
    assert sum(made.probabilities.values()) == pytest.approx(1)
    assert list(made.probabilities.values()) == sorted(made.probabilities.values(), reverse=True)
    json.dumps(made.to_json(), allow_nan=False)


def test_examples_decide_and_another_one_decides_otherwise(pipeline: Pipeline):
    labels = ["zebra", "yak"]
    for label in labels:
        made = pipeline.classify(flat(9), labels, examples=[(flat(9), label)])
        assert made.label == label and len(made.hits) == 1, "given examples are all that counts"
    mixed = pipeline.classify(flat(9), labels, examples=[Document(["yak", flat(9)])], k=2)
    assert [hit.score is None for hit in mixed.hits] == [True, False, False] and mixed.label == "yak"


def test_groups_of_examples_are_averaged(pipeline: Pipeline):
    labels, examples = ["zebra", "yak"], [(flat(1), "zebra"), (flat(2), "yak"), (flat(3), "yak")]
    alone = [pipeline.classify(flat(9), labels, examples=[one]).probabilities["yak"] for one in examples]
    together = pipeline.classify(flat(9), labels, examples=examples, group_size=1)
    assert together.probabilities["yak"] == pytest.approx(np.mean(alone))
    assert len(together.hits) == 3


@pytest.mark.parametrize("labels", [[], [""], ["a", "a"], [1]])
def test_labels_are_checked(pipeline: Pipeline, labels):
    with pytest.raises(ConfigError, match=r"[Ll]abel"):
        pipeline.classify(flat(9), labels)


# Re-ranking


def test_pictures_are_ranked_by_the_retriever(pipeline: Pipeline):
    plain = pipeline.imagine("a fox", n=4, seed=1)
    made = pipeline.imagine("a fox", n=4, seed=1, rerank="retriever")
    assert made.scores == sorted(made.scores, reverse=True) and plain.scores == []
    assert {o.document.content_hash for o in made.outputs} == {o.document.content_hash for o in plain.outputs}
    vectors = pipeline.retriever.encode_document([Document(o.document.image) for o in made.outputs])
    query = pipeline.retriever.encode_query([Document("a fox")])[0]
    assert made.scores == pytest.approx((vectors @ query).tolist())
    assert made.seconds["rerank"] > 0


def test_texts_are_ranked_by_perplexity_or_by_any_function(pipeline: Pipeline):
    made = pipeline.imagine("a fox", n=4, seed=1, rerank="perplexity")
    assert made.scores == sorted((o.log_probability / o.tokens for o in made.outputs), reverse=True)
    last = pipeline.imagine("a fox", n=4, seed=1, rerank=lambda prompt, outputs: range(len(outputs)))
    assert last.scores == [3, 2, 1, 0]
    assert last.image == pipeline.imagine("a fox", n=4, seed=1).outputs[3].document.image


def test_ranking_says_what_it_cannot_do(pipeline: Pipeline):
    for wrong, message in (
        ("best", "is not known"),
        (lambda p, o: [1.0], "one number for each"),
        (lambda p, o: [np.nan] * 2, "one number"),
        (lambda p, o: None, "gave None"),
        (lambda p, o: ["good", "bad"], "gave .'good'"),
    ):
        with pytest.raises(ConfigError, match=message):
            pipeline.imagine("a fox", n=2, rerank=wrong)  # type: ignore[arg-type]
    with pytest.raises(ModalityError, match="cannot rank"):
        pipeline.generate(Document(Blank("image")), rerank="retriever")


# Streams


class Slow(PaintingGenerator):
    """Streams in steps, and remembers how far it came and that it was closed."""

    def __init__(self) -> None:
        super().__init__()
        self.steps, self.closed, self.between = 0, threading.Event(), threading.Event()

    def stream(self, request, *, options):
        try:
            for step in range(50):
                self.steps = step + 1
                self.between.wait(0.001)
                yield Event("tokens", detail={"tokens": [step], "texts": [[]]})
            yield Event("done", outputs=self.generate([request], options=options)[0])
        finally:
            self.closed.set()


PROMPT = Document(["a fox", Blank("image")])


def test_a_stream_tells_what_was_retrieved_and_ends_with_the_answer(pipeline: Pipeline):
    events = list(pipeline.stream(PROMPT, k=1, n=2, seed=3))
    assert [event.kind for event in events] == ["retrieved", "done"]
    assert [hit.id for hit in events[0].detail["selection"].hits] == ["fox"]
    answer, whole = events[-1].detail["generation"], pipeline.generate(PROMPT, k=1, n=2, seed=3)
    assert answer.outputs == whole.outputs == events[-1].outputs
    assert answer.seconds["generate"] > 0 and answer.options == whole.options


def test_bad_arguments_of_a_stream_raise_at_once(pipeline: Pipeline):
    with pytest.raises(GenerationError, match="nothing to fill in"):
        pipeline.stream(Document("x"))
    with pytest.raises(ConfigError, match="k is a whole number"):
        pipeline.stream(PROMPT, k=-1)


def test_a_stream_can_be_left_and_leaves_nothing_behind(pipeline: Pipeline):
    pipeline.generator = Slow()
    events = pipeline.stream(PROMPT, seed=3)
    assert [next(events).kind for _ in range(3)] == ["retrieved", "tokens", "tokens"]
    events.close()
    assert pipeline.generator.closed.is_set() and pipeline.generator.steps == 2
    generator = weakref.ref(pipeline.generator)
    pipeline.generator = None
    del events
    gc.collect()
    assert generator() is None


def test_a_stream_without_an_answer_is_an_error(pipeline: Pipeline):
    class Mute(PaintingGenerator):
        def stream(self, request, *, options):
            yield from ()

    pipeline.generator = Mute()
    with pytest.raises(PluginError, match="Mute ended its stream without an answer"):
        list(pipeline.stream(PROMPT))


def test_asyncio(pipeline: Pipeline):
    """The loop goes on while an answer is made, and the answers are those of the plain calls."""
    pipeline.generator = Slow()

    async def main():
        ticks, kinds = 0, []

        async def tick():
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        ticking = asyncio.create_task(tick())
        async for event in pipeline.astream(PROMPT, k=1, seed=3):
            kinds.append(event.kind)
        both = await asyncio.gather(pipeline.agenerate(PROMPT, seed=3), pipeline.agenerate([PROMPT], k=1, seed=3))
        ticking.cancel()
        return kinds, event.detail["generation"], both, ticks

    kinds, answer, both, ticks = asyncio.run(main())
    assert kinds == ["retrieved", *["tokens"] * 50, "done"] and ticks > 50
    assert both[0].image == pipeline.generate(PROMPT, seed=3).image
    assert both[1][0].image == answer.image


def test_a_cancelled_task_ends_the_work(pipeline: Pipeline):
    pipeline.generator = slow = Slow()

    async def main():
        seen = asyncio.Event()

        async def consume():
            async for event in pipeline.astream(PROMPT, seed=3):
                if event.kind == "tokens":
                    seen.set()

        task = asyncio.create_task(consume())
        await seen.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert slow.closed.wait(5) and slow.steps < 50


def test_threads_share_a_pipeline(pipeline: Pipeline):
    expected = [pipeline.imagine(f"a {name}", k=1, seed=1).image for name in NAMES]
    found: dict[int, list[Image]] = {}

    def work(number: int) -> None:
        found[number] = [pipeline.imagine(f"a {name}", k=1, seed=1).image for name in NAMES]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(found.values()) == [expected] * 4


# Provenance


def test_an_answer_says_all_that_is_needed_to_get_it_again(pipeline: Pipeline):
    made = pipeline.imagine("a fox", n=2, options={"guidance": 3, "top_p": 0.9}, rerank="retriever")
    plain = json.loads(json.dumps(made.to_json(), allow_nan=False))
    assert plain["options"]["guidance"] == 3 and plain["options"]["seed"] == made.seed == plain["seed"]
    assert plain["scores"] == made.scores and set(plain["seconds"]) == {"retrieve", "sample", "generate", "rerank"}
    again = pipeline.imagine("a fox", options=plain["options"], n=2, rerank="retriever")
    assert again.outputs == made.outputs
    shown = made._repr_html_()
    assert f"score {made.scores[0]:.3f}" in shown and "generate 0." in shown


@pytest.mark.parametrize(
    "ask",
    [
        lambda pipeline: pipeline.imagine("x", context=5),
        lambda pipeline: pipeline.imagine("x", context=[5]),
        lambda pipeline: pipeline.generate(None),
        lambda pipeline: pipeline.generate([5]),
        lambda pipeline: pipeline.search(None),
        lambda pipeline: pipeline.search(["a kite"]),
        lambda pipeline: pipeline.add(None),
        lambda pipeline: pipeline.add(flat(1)),
        lambda pipeline: pipeline.classify(flat(1), None),
        lambda pipeline: pipeline.classify(flat(1), ["a"], examples=5),
        lambda pipeline: pipeline.edit(noise(1), "0099", "x"),
        lambda pipeline: pipeline.edit(noise(1), (0.5, 0, 5, 5), "x"),
        lambda pipeline: pipeline.edit(noise(1), (0, 0, float("inf"), 5), "x"),
        lambda pipeline: pipeline.memory.get([5]),
        lambda pipeline: pipeline.memory.delete(None),
    ],
)
def test_what_cannot_be_asked_is_an_error_of_ours(pipeline: Pipeline, ask):
    with pytest.raises(RACM3Error):
        ask(pipeline)
