"""The corridor: what goes in, what comes out, and what is checked on the way."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from racm3 import Blank, Component, Document, Generation, Image, Options, Pipeline, hookimpl, retrieval
from racm3.errors import (
    ConfigError,
    DuplicateDocument,
    EncoderMismatch,
    FilterError,
    GenerationError,
    InvalidDocument,
    ModalityError,
    RACM3Error,
)
from racm3.interfaces import Sampler, Selection, Skip
from racm3.memories.faiss import FaissMemory
from racm3.registry import registry
from racm3.retrieval import NotGrounded
from racm3.samplers.topk import TopKSampler
from racm3.testing import HashingRetriever, PaintingGenerator

pytestmark = pytest.mark.usefixtures("own_registry")

ANIMALS = ("kite", "whale", "fox", "banjo", "ferry", "comet", "tulip", "anvil")


def drawing(colour: object) -> Image:
    return Image(PIL.Image.new("RGB", (16, 16), colour))


def documents() -> list[Document]:
    return [
        Document(
            [f"a {name} number {number}", drawing((31 * number, 255 - 31 * number, 128))],
            id=name,
            metadata={"n": number},
        )
        for number, name in enumerate(ANIMALS)
    ]


@pytest.fixture
def pipeline() -> Iterator[Pipeline]:
    with Pipeline(HashingRetriever(), FaissMemory(), generator=PaintingGenerator()) as made:
        made.add(documents())
        yield made


# Construction


def test_the_memory_is_bound_to_the_encoder(tmp_path: Path):
    with Pipeline(HashingRetriever(32), FaissMemory(tmp_path)) as made:
        made.add(documents())
        assert type(made.sampler).__name__ == "DiverseSampler"
    with pytest.raises(EncoderMismatch):
        Pipeline(HashingRetriever(64), FaissMemory(tmp_path))


def test_parts_of_the_wrong_kind_are_refused():
    with pytest.raises(ConfigError, match="takes a MemoryStore, not str"):
        Pipeline(HashingRetriever(), "faiss")  # type: ignore[arg-type]


def test_from_a_file_a_mapping_and_a_preset(toy: Path):
    (toy / "pipeline.toml").write_text(
        '[retriever]\nname="hashing"\ndim=32\n[memory]\nname="faiss"\npath="m"\n[sampler]\nname="topk"\n'
    )
    with Pipeline.from_config(toy / "pipeline.toml") as made:
        assert repr(made) == "Pipeline(HashingRetriever, FaissMemory, TopKSampler)"
        assert made.retriever.encoder.dim == 32
        made.add(documents())
    with Pipeline.from_config(str(toy / "pipeline.toml"), sampler=None) as made:
        assert type(made.sampler).__name__ == "DiverseSampler"
        assert len(made.memory) == len(ANIMALS)
    with Pipeline.from_preset("toy", generator={"size": 8}, memory={"path": "own"}) as made:
        made.add(documents())
        assert made.imagine("a fox", seed=1).image.size == (8, 8)
    assert (toy / "own").is_dir() and not (toy / "toy-memory").exists()


# Adding


def test_adding_streams(pipeline: Pipeline):
    taken = 0

    def source() -> Iterator[Document]:
        nonlocal taken
        for number in range(10):
            taken += 1
            yield Document(f"streamed {number}")

    seen: list[tuple[int, int, int]] = []
    ids = pipeline.add(source(), batch_size=4, progress=lambda done, total, _: seen.append((done, total, taken)))
    assert seen == [(4, 0, 4), (8, 0, 8), (10, 0, 10)], "nothing is read ahead of the batch"
    assert pipeline.memory.get(ids)[9] == Document("streamed 9")


def test_duplicates(pipeline: Pipeline):
    again = Document("a new kite", id="kite")
    with pytest.raises(DuplicateDocument):
        pipeline.add([again])
    assert pipeline.add([again, Document("x", id="x")], on_duplicate="skip") == ["kite", "x"]
    assert pipeline.memory.get(["kite"])[0].text == "a kite number 0"
    pipeline.add([again], on_duplicate="replace")
    assert pipeline.memory.get(["kite"])[0] == again


def test_skipped_duplicates_are_not_encoded(pipeline: Pipeline, monkeypatch):
    encoded: list[str] = []
    encode = HashingRetriever.encode_document

    def counting(self, documents, **options):
        encoded.extend(document.id for document in documents)
        return encode(self, documents, **options)

    monkeypatch.setattr(HashingRetriever, "encode_document", counting)
    pipeline.add([*documents(), Document("new", id="new")], on_duplicate="skip")
    assert encoded == ["new"]


@pytest.mark.parametrize("wrong", [Document(["x", Blank("image")]), "text"])
def test_only_whole_documents_are_added(pipeline: Pipeline, wrong):
    with pytest.raises(InvalidDocument):
        pipeline.add([wrong])


# Searching


def test_search_by_text_picture_and_both(pipeline: Pipeline, tmp_path: Path):
    fox = documents()[2]
    (tmp_path / "fox.png").write_bytes(fox.image.data)
    assert pipeline.search("fox")[0].id == "fox"
    for picture in (fox.image, fox.image.picture, np.asarray(fox.image.picture), tmp_path / "fox.png"):
        assert pipeline.search(picture, k=1)[0].id == "fox"
    both = pipeline.search(Document(["a banjo", documents()[3].image, Blank("text")]), k=3)
    assert both[0].id == "banjo" and len(both) == 3
    assert [hit.score for hit in both] == sorted((hit.score for hit in both), reverse=True)


def test_search_with_a_filter_and_its_limits(pipeline: Pipeline):
    assert {hit.id for hit in pipeline.search("fox", where={"n": {"$lt": 2}})} == {"kite", "whale"}
    assert pipeline.search("fox", k=0) == []
    assert len(pipeline.search("fox", k=99)) == len(ANIMALS)
    for k in (-1, 1.5, True):
        with pytest.raises(ConfigError, match="k is a whole number"):
            pipeline.search("fox", k=k)
    with pytest.raises(ModalityError, match="text or a picture"):
        pipeline.search(Document(Blank("image")))
    with pytest.raises(ModalityError):
        pipeline.search("  ")


# Generating


def test_imagine_says_what_it_was_grounded_on(pipeline: Pipeline):
    made = pipeline.imagine("a fox", k=2, seed=7)
    assert isinstance(made, Generation)
    assert made.prompt == Document(["a fox", Blank("image")])
    assert made.document.texts == ("a fox",) and made.document.image == made.image
    assert made.hits[0].id == "fox" and len(made.hits) == 2
    assert made.seed == 7 and made.log_probability == made.outputs[0].log_probability < 0
    assert set(made.seconds) == {"retrieve", "sample", "generate"} and min(made.seconds.values()) > 0
    assert made.fingerprints == {"retriever": "hashing-64-grid-4", "generator": "painting-32"}
    assert made.text is None


def test_caption_writes_what_the_nearest_documents_say(pipeline: Pipeline):
    similar = drawing((31 * 2 + 3, 255 - 31 * 2, 128))
    made = pipeline.caption(similar, k=1, seed=0)
    assert made.text == "a fox number 2" and made.image is None
    assert made.prompt == Document([Blank("text"), similar])


def test_a_seed_repeats_and_none_is_drawn_and_recorded(pipeline: Pipeline):
    first, again = pipeline.imagine("a fox", seed=3), pipeline.imagine("a fox", seed=3)
    assert first.image == again.image
    drawn = pipeline.imagine("a fox")
    assert drawn.seed != pipeline.imagine("a fox").seed
    assert pipeline.imagine("a fox", seed=drawn.seed).image == drawn.image


def test_context_changes_the_answer_and_k_0_uses_none(pipeline: Pipeline):
    with_context, without = pipeline.imagine("a fox", seed=3), pipeline.imagine("a fox", seed=3, k=0)
    assert without.hits == [] and without.image != with_context.image
    assert without.seconds["retrieve"] == 0


def test_context_by_hand(pipeline: Pipeline):
    given = [Document(["mine", drawing("blue")]), "words", drawing("red")]
    made = pipeline.imagine("a fox", context=given, seed=3)
    assert [hit.score for hit in made.hits] == [None, None, None]
    assert made.hits[0].document == given[0] and made.hits[1].document.text == "words"
    assert pipeline.imagine("a fox", context=[], seed=3).hits == []
    hits = pipeline.search("whale", k=1)
    assert pipeline.imagine("a fox", context=hits).hits == hits
    for one in ("words", given[0], drawing("red"), hits[0]):
        stands = [hit.document for hit in pipeline.imagine("a fox", context=one).hits]
        assert stands == [hit.document for hit in pipeline.imagine("a fox", context=[one]).hits]


def test_context_by_hand_and_retrieved_ones(pipeline: Pipeline):
    """What is given comes first, and is not retrieved once more."""
    fox = pipeline.memory.get(["fox"])[0]
    made = pipeline.imagine("a fox", context=[Document("by hand"), fox], k=2, seed=3)
    assert [hit.document.text for hit in made.hits[:2]] == ["by hand", "a fox number 2"]
    assert len(made.hits) == 4 and [hit.score is None for hit in made.hits] == [True, True, False, False]
    assert "fox" not in [hit.id for hit in made.hits[2:]]
    assert pipeline.imagine("a fox", k=2, seed=3).hits[0].id == "fox"


def test_one_document_is_added_as_a_list_of_one(pipeline: Pipeline):
    assert pipeline.add(Document("a yellow submarine", id="submarine")) == ["submarine"]


def test_more_documents_than_the_memory_has_are_all_of_them(pipeline: Pipeline):
    with Pipeline(HashingRetriever(), FaissMemory(), TopKSampler(), PaintingGenerator()) as made:
        made.add(documents())
        assert len(made.imagine("a fox", k=99, seed=1).hits) == len(ANIMALS)


def test_an_answer_is_the_same_alone_and_among_others(pipeline: Pipeline):
    prompts = [Document([name, Blank("image")]) for name in ("fox", "ferry", "fox")]
    together = pipeline.generate(prompts, seed=4)
    assert pipeline.generate(prompts[1], seed=4).image == together[1].image
    assert pipeline.generate(prompts[0], seed=4).image == together[0].image
    assert together[2].image != together[0].image, "equal prompts of one call are told apart"


def test_several_samples_and_several_prompts(pipeline: Pipeline):
    made = pipeline.imagine("a fox", n=3, seed=1)
    assert len({output.document.image for output in made.outputs}) == 3
    prompts = [Document([name, Blank("image")]) for name in ("fox", "ferry")]
    answers = pipeline.generate(prompts, k=1, seed=1)
    assert [answer.hits[0].id for answer in answers] == ["fox", "ferry"]
    assert pipeline.generate([]) == []


def test_options(pipeline: Pipeline):
    assert len(pipeline.imagine("a fox", options=Options(n=2, seed=5)).outputs) == 2
    assert pipeline.imagine("a fox", options=Options(n=2, seed=5)).seed == 5
    assert pipeline.imagine("a fox", options=Options(seed=5), seed=6).seed == 6
    assert pipeline.caption(drawing("red"), options={"max_text_tokens": 1}, seed=1).text.count(" ") == 0
    with pytest.raises(ConfigError, match=r"no setting 'temprature'.*Did you mean 'temperature'"):
        pipeline.imagine("a fox", options={"temprature": 1})
    for wrong in (
        {"n": 0}, {"n": 10**9}, {"n": True}, {"seed": -1}, {"seed": "1"}, {"options": {"top_p": 3}},
        {"options": {"temperature": float("inf")}}, {"options": {"guidance": float("nan")}},
        {"options": {"context_guidance": 1e30}},
    ):  # fmt: skip
        with pytest.raises(ConfigError, match="is not valid"):
            pipeline.imagine("a fox", **wrong)
    for wrong in (5, "x", [1]):
        with pytest.raises(ConfigError, match="Options are an Options or a mapping"):
            pipeline.imagine("a fox", options=wrong)


def test_options_of_a_pipeline_hold_where_a_call_gives_no_others():
    own = {"top_p": 0.5, "seed": 9}
    with Pipeline(HashingRetriever(), FaissMemory(), generator=PaintingGenerator(), options=own) as pipeline:
        plain = pipeline.imagine("a fox", k=0)
        assert (plain.options.top_p, len(plain.outputs), plain.seed) == (0.5, 1, 9)
        other = pipeline.imagine("a fox", k=0, n=3, seed=1, options={"top_p": 0.7, "temperature": 0.2})
        assert (other.options.top_p, other.options.temperature, len(other.outputs), other.seed) == (0.7, 0.2, 3, 1)
        assert pipeline.imagine("a fox", k=0, options=Options(temperature=0.1)).options.top_p == 0.5, "it says nothing"
    for wrong, message in (
        ({"topp": 1}, "no setting 'topp'"),
        ({"n": 2}, "have no n"),
        (5, "Options are an Options or a mapping, not int"),
    ):
        with pytest.raises(ConfigError, match=message):
            Pipeline(HashingRetriever(), FaissMemory(), generator=PaintingGenerator(), options=wrong)


class Drafts(Options):
    """Options of one generator."""

    drafts: int = 1


class Drafting(PaintingGenerator):
    options_type = Drafts
    seen: Options

    def generate(self, requests, *, options):
        self.seen = options
        return super().generate(requests, options=options)


@pytest.mark.parametrize("options", [{"drafts": 3, "top_p": 0.5}, Drafts(drafts=3, top_p=0.5)])
def test_a_generator_has_options_of_its_own(options):
    with Pipeline(HashingRetriever(), FaissMemory(), generator=Drafting()) as pipeline:
        pipeline.imagine("a fox", k=0, options=options, seed=4)
        assert pipeline.generator.seen == Drafts(drafts=3, top_p=0.5, seed=4)
        pipeline.imagine("a fox", k=0, options=Options(top_p=0.5), seed=4)
        assert pipeline.generator.seen == Drafts(top_p=0.5, seed=4), "the common options, as its own"
        with pytest.raises(ConfigError, match=r"no setting 'draft'.*Did you mean 'drafts'"):
            pipeline.imagine("a fox", k=0, options={"draft": 3})


def test_a_filter_is_checked_before_anything_is_encoded(pipeline: Pipeline, monkeypatch):
    monkeypatch.setattr(HashingRetriever, "encode_query", lambda *_, **__: pytest.fail("encoded in vain"))
    for ask in (pipeline.search, pipeline.imagine):
        with pytest.raises(FilterError, match=r"No operator '\$around'"):
            ask("a fox", where={"year": {"$around": 2020}})


def test_a_pipeline_that_cannot_be_made_leaves_no_memory(tmp_path: Path):
    memory = {"name": "faiss", "path": str(tmp_path / "memory")}
    clip = {"name": "clip", "model": str(tmp_path / "absent")}
    cm3 = {"name": "cm3", "checkpoint": 1}
    for tables in ({"retriever": clip}, {"retriever": {"name": "clip", "pretrained": "absent"}, "generator": cm3}):
        with pytest.raises(RACM3Error):
            Pipeline.from_config({**tables, "memory": memory})
        assert not (tmp_path / "memory").exists()


def test_an_answer_that_is_not_grounded_says_why(pipeline: Pipeline):
    class Choosy(Sampler):
        def sample(self, query, hits, *, k, rng):
            return Selection([], [Skip(hit, "not this one") for hit in hits])

    empty = Pipeline(HashingRetriever(), FaissMemory(), generator=PaintingGenerator())
    choosy = Pipeline(pipeline.retriever, pipeline.memory, Choosy(), pipeline.generator)
    for asked, where, why in (
        (empty, {"n": 99}, "the memory is empty"),
        (pipeline, {"n": 99}, "no document passes the filter"),
        (choosy, None, "the sampler passed over every document"),
    ):
        with pytest.warns(UserWarning, match=f"Nothing was retrieved: {why}") as caught:
            asked.imagine("a fox", where=where)
        assert caught[0].filename == __file__


def test_a_prompt_with_nothing_to_search_by_retrieves_nothing(pipeline: Pipeline, recwarn):
    assert pipeline.generate(Document([Blank("text"), Blank("image")]), seed=1).hits == []
    assert not recwarn.list


def test_an_empty_memory_answers_without_context_and_warns():
    with Pipeline(HashingRetriever(), FaissMemory(), generator=PaintingGenerator()) as empty:
        with pytest.warns(UserWarning, match="the memory is empty"):
            assert empty.imagine("a fox").hits == []
        empty.add(documents())
        with pytest.warns(UserWarning, match="no document passes the filter"):
            assert empty.imagine("a fox", where={"n": 99}).hits == []


def test_errors_that_say_what_is_missing(pipeline: Pipeline):
    with (
        Pipeline(HashingRetriever(), FaissMemory()) as blind,
        pytest.raises(GenerationError, match="This pipeline has no generator"),
    ):
        blind.imagine("x")
    with pytest.raises(GenerationError, match=r"nothing to fill in. Add Blank"):
        pipeline.generate(Document("x"))
    with pytest.raises(InvalidDocument, match="An example is a"):
        pipeline.classify(drawing("red"), ["red"], examples=[drawing("red")])
    with pytest.raises(ConfigError, match="asked for by its name, a str, not NoneType"):
        Pipeline.from_preset(None)
    with pytest.raises(GenerationError, match="A prompt is a Document, not str"):
        pipeline.generate(["x"])  # type: ignore[list-item]

    class Mute(PaintingGenerator):
        emits = frozenset({"image"})

    class TextOnly(PaintingGenerator):
        accepts = frozenset({"text"})

    pipeline.generator = Mute()
    with pytest.raises(ModalityError, match=r"Mute does not make text\. It can make: image"):
        pipeline.caption(drawing("red"))

    class Neither(PaintingGenerator):
        emits = frozenset()

    pipeline.generator = Neither()
    with pytest.raises(ModalityError, match=r"Neither does not make image or text\. It can make: nothing"):
        pipeline.generate(Document([Blank("text"), Blank("image")]))
    pipeline.generator = TextOnly()
    with pytest.raises(ModalityError, match="TextOnly does not take image"):
        pipeline.caption(drawing("red"))


# The pool of candidates


class Picky(Sampler):
    """Takes documents of one kind only, and remembers how many it was shown."""

    def __init__(self) -> None:
        self.shown: list[int] = []

    def sample(self, query, hits, *, k, rng):
        self.shown.append(len(hits))
        rare = [hit for hit in hits if hit.document.metadata.get("rare")]
        return Selection(rare[:k], [Skip(hit, "common") for hit in hits if hit not in rare])


def crowd(count: int, rare: int) -> list[Document]:
    common = [Document("fox", id=f"{number:04}") for number in range(count)]
    return common + [
        Document("fox and much more of it", id=f"rare-{number}", metadata={"rare": True}) for number in range(rare)
    ]


def test_the_pool_doubles_until_k_survive():
    with Pipeline(HashingRetriever(), FaissMemory(), Picky(), PaintingGenerator()) as made:
        made.add(crowd(300, 5))
        answer = made.imagine("fox", k=2, seed=1)
        assert made.sampler.shown == [64, 128, 256, 305]
        assert [hit.id for hit in answer.hits] == ["rare-0", "rare-1"]
        assert len(answer.skipped) == 300 and answer.skipped[0].reason == "common"
        made.sampler.shown.clear()
        made.imagine("fox", k=6, seed=1)
        assert made.sampler.shown == [96, 192, 305], "16 for each, and no more than there are"


def test_the_pool_does_not_grow_for_ever(monkeypatch):
    """Documents that are all passed over, such as pictures under one caption, would make one query read all of a memory."""
    monkeypatch.setattr(retrieval, "MOST_POOL", 256)
    with Pipeline(HashingRetriever(), FaissMemory(), Picky(), PaintingGenerator()) as made:
        made.add(crowd(600, 1))
        answer = made.imagine("fox", k=2, seed=1)
        assert made.sampler.shown == [64, 128, 256] and not answer.hits and len(answer.skipped) == 256


def test_the_pool_grows_for_those_prompts_alone_that_need_it():
    with Pipeline(HashingRetriever(), FaissMemory(), Picky(), PaintingGenerator()) as made:
        made.add([*crowd(100, 2), *(Document("whale", id=f"w{n}", metadata={"rare": True}) for n in range(2))])
        answers = made.generate([Document([word, Blank("image")]) for word in ("fox", "whale")], seed=1)
        assert [answer.hits[0].id for answer in answers] == ["rare-0", "w0"]
        assert made.sampler.shown == [64, 64, 104]


# Observers


def test_observers_are_told_and_cannot_stop_it(pipeline: Pipeline, caplog):
    seen: list[object] = []

    class Watcher:
        @hookimpl
        def racm3_retrieved(self, query, selection):
            seen.append((query.document, [hit.id for hit in selection.hits]))

        @hookimpl
        def racm3_generated(self, generation):
            seen.append(generation)
            raise RuntimeError("observer")

    info = registry().register(Watcher(), name="watcher")
    made = pipeline.imagine("a fox", k=1, seed=1)
    assert seen == [(made.prompt, ["fox"]), made]
    assert info.observer_errors == 1 and "going on" in caplog.text
    seen.clear()
    pipeline.imagine("a fox", k=0)
    assert len(seen) == 1, "nothing was retrieved"


# The answer


def test_a_generation_as_json(pipeline: Pipeline):
    made = pipeline.imagine("a <fox>", k=2, n=2, seed=7)
    plain = made.to_json()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["prompt"]["parts"] == [{"text": "a <fox>"}, {"blank": "image"}]
    assert plain["outputs"][1]["filled"] == [{"image": {"content_hash": made.outputs[1].document.image.content_hash}}]
    assert [hit["id"] for hit in plain["hits"]] == [hit.id for hit in made.hits]
    assert plain["seed"] == 7 and plain["log_probability"] == made.log_probability
    with_pixels = made.to_json(images=True)["outputs"][0]["filled"][0]["image"]
    assert with_pixels["media_type"] == "image/png" and len(with_pixels["base64"]) > 100


def test_a_generation_shows_itself_even_when_the_memory_is_closed(pipeline: Pipeline):
    made = pipeline.imagine("a <fox>", seed=7)
    pipeline.close()
    html = made._repr_html_()
    assert "a &lt;fox&gt;" in html and "seed 7" in html and html.count("data:image/png") == 3
    assert "seed=7" in repr(made)


def test_a_generation_cannot_be_changed(pipeline: Pipeline):
    made = pipeline.imagine("a fox", seed=7)
    with pytest.raises(AttributeError):
        made.seed = 8  # type: ignore[misc]


# The fakes


def test_the_hashing_retriever_drops_parts_of_queries():
    retriever, query = HashingRetriever(), Document(["a red kite over the beach", drawing("red")])
    whole = retriever.encode_query([query])
    dropped = retriever.encode_query([query], dropout=0.5, rng=np.random.default_rng(0))
    again = retriever.encode_query([query], dropout=0.5, rng=np.random.default_rng(0))
    assert not np.allclose(whole, dropped) and np.array_equal(dropped, again)
    assert np.isfinite(retriever.encode_query([query], dropout=0.99, rng=np.random.default_rng(0))).all()
    with pytest.raises(ConfigError, match="needs rng"):
        retriever.encode_query([query], dropout=0.5)
    with pytest.raises(ModalityError):
        retriever.encode_document([Document(Blank("image"))])


def test_the_painting_generator_scores_what_it_would_paint(pipeline: Pipeline):
    from racm3.interfaces import Request

    made = pipeline.imagine("a fox", k=1, seed=1)
    right, wrong = pipeline.generator.score(
        [Request(made.prompt, made.hits)] * 2, [made.document, Document(["a fox", drawing("black")])]
    )
    assert right.log_probability == pytest.approx(made.log_probability)
    assert right.log_probability > wrong.log_probability and right.tokens == (16,)


def test_components_can_be_registered_and_used_by_name():
    class Mine:
        @hookimpl
        def racm3_components(self):
            yield Component(Sampler, "picky", f"{__name__}:Picky")

    registry().register(Mine(), name="mine")
    assert "picky" in registry().names(Sampler)


def test_what_did_not_fit_the_context_is_no_source(tmp_path):
    class Narrow(PaintingGenerator):
        def generate(self, requests, *, options):
            return [
                [replace(o, grounded_on=(0,)) for o in made] for made in super().generate(requests, options=options)
            ]

    with Pipeline(HashingRetriever(), FaissMemory(tmp_path / "m"), TopKSampler(), Narrow()) as pipeline:
        pipeline.add([Document("a red kite", id="kite"), Document("a grey whale", id="whale")])
        answer = pipeline.imagine("kite", k=2, seed=0)
    assert [hit.id for hit in answer.hits] == ["kite"]
    assert [(skip.hit.id, skip.reason) for skip in answer.skipped] == [("whale", "no room in the generator's context")]


def test_where_nothing_fits_the_context_it_is_said(tmp_path):
    class Full(PaintingGenerator):
        def generate(self, requests, *, options):
            return [[replace(o, grounded_on=()) for o in made] for made in super().generate(requests, options=options)]

    with Pipeline(HashingRetriever(), FaissMemory(tmp_path / "m"), TopKSampler(), Full()) as pipeline:
        pipeline.add([Document("a red kite", id="kite"), Document("a grey whale", id="whale")])
        with pytest.warns(NotGrounded, match="None of the 2 documents fits"):
            assert pipeline.imagine("kite", k=2, seed=0).hits == []
