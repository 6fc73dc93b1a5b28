"""What crosses an interface: each fault is named where it arises, with the plugin that it comes from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import PIL.Image
import pytest

from racm3 import Blank, Document, Generator, Image, MemoryStore, Pipeline, Retriever, Sampler
from racm3.errors import DimensionMismatch, PluginError
from racm3.memories.faiss import FaissMemory
from racm3.registry import registry
from racm3.samplers.topk import TopKSampler
from racm3.testing import HashingRetriever, PaintingGenerator

pytestmark = pytest.mark.usefixtures("toy")

IMPORTS = """
import dataclasses
import numpy as np
from racm3 import Blank, Document, Hit
from racm3.interfaces import Encoder, Event, Output, Score, Selection, Skip
from racm3.memories.faiss import FaissMemory
from racm3.samplers.topk import TopKSampler
from racm3.testing import HashingRetriever, PaintingGenerator

@hookimpl
def racm3_components():
    yield Component({interface}, "bad", "racm3_bad:Bad")

class Bad({parent}):
    {body}

def other(hit, **changes):
    known = dict(document=hit.document, score=hit.score, vector=hit.vector)
    return Hit(**(known | changes))
"""

# A method that calls the sound one of the parent, and changes what comes of it.
METHOD = """
    def {name}(self, *arguments, **options):
        found = super().{name}(*arguments, **options)
        return {change}
"""


@pytest.fixture
def bad(install) -> Callable[..., Any]:
    """A component of the plugin racm3-bad, that is sound but for one method (or the statements of `body`)."""

    def make(parent: type, change: str = "", *, method: str = "", body: str = "pass") -> Any:
        interface = next(kind for kind in (Retriever, MemoryStore, Sampler, Generator) if issubclass(parent, kind))
        if method:
            body += METHOD.format(name=method, change=change)
        source = IMPORTS.format(interface=interface.__name__, parent=parent.__name__, body=body)
        install("racm3-bad", source)
        return registry().create(interface, "bad")

    return make


def documents() -> list[Document]:
    return [
        Document([f"a {name}", Image(PIL.Image.new("RGB", (8, 8), colour))], id=name)
        for name, colour in {"kite": "red", "whale": "grey", "fox": "orange"}.items()
    ]


def pipeline(
    *, retriever: Any = None, memory: Any = None, sampler: Any = None, generator: Any = None, filled: bool = True
) -> Pipeline:
    """A pipeline of sound parts, but for those given."""
    made = Pipeline(
        retriever or HashingRetriever(),
        FaissMemory() if memory is None else memory,
        sampler or TopKSampler(),
        generator or PaintingGenerator(size=8),
    )
    if filled:
        made.add(documents())
    return made


def assert_names_the_plugin(error: PluginError, kind: str, message: str) -> None:
    assert error.message.startswith(f"{kind} 'bad' of racm3-bad 1.0 ") and message in error.message
    assert "tell its authors" in error.hint and "pip install -U racm3-bad" in error.hint
    with pipeline() as sound:
        assert sound.imagine("a fox", k=1, seed=1).hits[0].id == "fox", "and all else works"


VECTORS = {
    "narrow": ("found[:, :-1]", "gave vectors of shape (1, 63), not (1, 64)"),
    "none at all": ("found[:0]", "gave vectors of shape (0, 64)"),
    "flat": ("found[0]", "gave vectors of shape (64,)"),
    "a list": ("found.tolist()", "gave list, not an array of shape (1, 64)"),
    "nothing": ("None", "gave NoneType, not an array of shape"),
    "float64": ("found.astype(float)", "dtype float64, not float32"),
    "objects": ("found.astype(object)", "dtype object"),
    "a little too long": ("found * np.float32(1.005)", "not finite and of unit norm"),
    "too long": ("found * 2", "not finite and of unit norm"),
    "zero": ("found * 0", "not finite and of unit norm"),
    "NaN": ("np.where(np.arange(64) == 3, np.nan, found).astype(np.float32)", "not finite and of unit norm"),
    "infinite": ("np.where(np.arange(64) == 3, np.inf, found).astype(np.float32)", "not finite and of unit norm"),
}


@pytest.mark.parametrize("kind", VECTORS)
def test_vectors(bad, kind):
    change, message = VECTORS[kind]
    retriever = bad(
        HashingRetriever,
        body=METHOD.format(name="encode_query", change=change) + METHOD.format(name="encode_document", change=change),
    )
    with pipeline(retriever=retriever, filled=False) as made:
        for use in (lambda: made.add(documents()[:1]), lambda: made.search("fox"), lambda: made.imagine("fox")):
            with pytest.raises(PluginError) as raised:
                use()
            assert_names_the_plugin(raised.value, "Retriever", message)
        assert len(made.memory) == 0


def test_vectors_as_half_precision_gives_them_are_taken(bad):
    with pipeline(retriever=bad(HashingRetriever, "found * np.float32(1.0004)", method="encode_query")) as made:
        assert made.search("fox", k=1)[0].id == "fox"


@pytest.mark.parametrize(
    "stated", ["None", "64", "Encoder('x', 0)", "Encoder('x', '64')", "Encoder(None, 64)", "Encoder('', 64)"]
)
def test_an_encoder(bad, stated):
    retriever = bad(HashingRetriever, body=f"encoder = property(lambda self: {stated})")
    with pytest.raises(PluginError) as raised:
        pipeline(retriever=retriever)
    assert_names_the_plugin(raised.value, "Retriever", "not an Encoder with a fingerprint and a width")


HITS = {
    "nothing": ("None", "did not answer 1 queries with a list of 1 lists"),
    "no answer": ("[]", "did not answer 1 queries"),
    "flat": ("found[0]", "did not answer 1 queries"),
    "a tuple": ("[tuple(found[0])]", "something else than a list of Hit"),
    "a stream": ("[iter(found[0])]", "something else than a list of Hit"),
    "documents": ("[[hit.document for hit in found[0]]]", "something else than a list of Hit"),
    "pairs": ("[[(hit.id, hit.score) for hit in found[0]]]", "something else than a list of Hit"),
    "too many": ("[found[0] * 99]", "hits where"),
    "unsorted": ("[found[0][::-1]]", "not sorted, best first"),
    "one twice": ("[[found[0][0], found[0][0]]]", "one document twice"),
    "a NaN score": ("[[other(found[0][0], score=float('nan'))]]", "without a finite score"),
    "an infinite score": ("[[other(found[0][0], score=float('inf'))]]", "without a finite score"),
    "no score": ("[[other(found[0][0], score=None)]]", "without a finite score"),
    "a score in words": ("[[other(found[0][0], score='0.9')]]", "without a finite score"),
}
# Seen where a sampler would compare them.
CANDIDATES = {
    "a NaN vector": ("[[other(found[0][0], vector=found[0][0].vector * np.nan)]]", "vector is not finite"),
    "a narrow vector": ("[[other(found[0][0], vector=found[0][0].vector[:9])]]", "vector is not of shape (64,)"),
    "no vector": ("[[other(found[0][0], vector=None)]]", "vector is not of shape (64,)"),
    "another document": (
        "[[Hit(id='fox', hashes=(), load=lambda: Document('x', id='y'), score=1.0, vector=found[0][0].vector)]]",
        "for the document 'fox'",
    ),
    "no document": (
        "[[Hit(id='fox', hashes=(), load=lambda: 'fox', score=1.0, vector=found[0][0].vector)]]",
        "gave 'fox' for the document 'fox'",
    ),
}


@pytest.mark.parametrize("kind", HITS)
def test_hits(bad, kind):
    change, message = HITS[kind]
    with pipeline(memory=bad(FaissMemory, change, method="search")) as made:
        for use in (lambda: made.search("fox"), lambda: made.imagine("fox")):
            with pytest.raises(PluginError) as raised:
                use()
            assert_names_the_plugin(raised.value, "Memory", message)


@pytest.mark.parametrize("kind", CANDIDATES)
def test_candidates(bad, kind):
    change, message = CANDIDATES[kind]
    with pipeline(memory=bad(FaissMemory, change, method="search")) as made, pytest.raises(PluginError) as raised:
        made.imagine("fox")
    assert_names_the_plugin(raised.value, "Memory", message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("None", "did not answer 3 ids"),
        ("found[:1]", "did not answer 3 ids"),
        ("['fox'] * len(found)", "gave 'fox' for the document 'kite'"),
        ("[Document('x', id='y')] * len(found)", "for the document 'kite'"),
    ],
)
def test_documents_that_are_read_back(bad, change, message):
    with (
        pipeline(memory=bad(FaissMemory, change, method="get")) as made,
        pytest.raises(PluginError) as raised,
    ):
        made.add(documents(), on_duplicate="skip")
    assert_names_the_plugin(raised.value, "Memory", message)


SELECTIONS = {
    "a list": ("found.hits", "gave list, not a Selection"),
    "nothing": ("None", "gave NoneType, not a Selection"),
    "ids": ("Selection([hit.id for hit in found.hits])", "something else than a list of Hit"),
    "a stream": ("Selection(iter(found.hits))", "something else than a list of Hit"),
    "skips in words": ("Selection(found.hits, ['dull'])", "something else than a list of Skip"),
    "more than k": ("Selection(arguments[1][:3])", "chose 3 documents where 2 were asked for"),
    "a copy": ("Selection([other(hit) for hit in found.hits])", "chose a document that it was not given"),
    "a stranger": ("Selection([Hit(Document('x'), score=1.0)])", "chose a document that it was not given"),
    "one twice": ("Selection(found.hits[:1] * 2)", "chose one document twice"),
}


@pytest.mark.parametrize("kind", SELECTIONS)
def test_selections(bad, kind):
    change, message = SELECTIONS[kind]
    with (
        pipeline(sampler=bad(TopKSampler, change, method="sample")) as made,
        pytest.raises(PluginError) as raised,
    ):
        made.imagine("fox", k=2)
    assert_names_the_plugin(raised.value, "Sampler", message)


def test_a_sampler_that_empties_its_candidates_chooses_from_those_it_was_given(bad):
    with pipeline(sampler=bad(TopKSampler, "(arguments[1].clear(), found)[1]", method="sample")) as made:
        assert made.imagine("fox", k=1, seed=1).hits[0].id == "fox"


FILLED = "[[dataclasses.replace(found[0][0], {})]]"
OUTPUTS = {
    "nothing": ("None", "did not answer 1 requests"),
    "no answer": ("[]", "did not answer 1 requests"),
    "flat": ("found[0]", "made Output samples where 1"),
    "too many": ("[found[0] * 2]", "made 2 samples where 1 were asked for"),
    "too few": ("[[]]", "made 0 samples where 1"),
    "documents": ("[[found[0][0].document]]", "made Document, not an Output with a Document"),
    "a picture": (FILLED.format("document=found[0][0].document.image"), "not an Output with a Document"),
    "the wrong modality": (FILLED.format("document=Document(['a fox', 'text'])"), "parts do not match"),
    "a part too few": (FILLED.format("document=Document(['a fox'])"), "parts do not match"),
    "a blank": (FILLED.format("document=Document(['a fox', Blank('image')])"), "left a blank unfilled"),
    "another prompt": (
        FILLED.format("document=Document(['a cat', found[0][0].document.image])"),
        "changed a text of the prompt",
    ),
    "a NaN": (FILLED.format("log_probability=float('nan')"), "log-probability that is not a number"),
    "no log-probability": (FILLED.format("log_probability=None"), "log-probability that is not a number"),
    "a negative place": (FILLED.format("grounded_on=(-1,)"), "says that it saw the documents (-1,)"),
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_outputs(bad, kind):
    change, message = OUTPUTS[kind]
    with (
        pipeline(generator=bad(PaintingGenerator, change, method="generate")) as made,
        pytest.raises(PluginError) as raised,
    ):
        made.imagine("a fox")
    assert_names_the_plugin(raised.value, "Generator", message)


@pytest.mark.parametrize("stated", ["None", "'image'", "frozenset({'sound'})"])
@pytest.mark.parametrize("name", ["accepts", "emits"])
def test_modalities(bad, name, stated):
    generator = bad(PaintingGenerator, body=f"{name} = {stated}")
    with pytest.raises(PluginError) as raised:
        pipeline(generator=generator)
    assert_names_the_plugin(raised.value, "Generator", f"states {name} = ")


@pytest.mark.parametrize("stated", ["'n'", "dict", "int"])
def test_options(bad, stated):
    generator = bad(PaintingGenerator, body=f"options_type = {stated}")
    with pytest.raises(PluginError) as raised:
        pipeline(generator=generator)
    assert_names_the_plugin(raised.value, "Generator", "not a subclass of Options")


STREAMS = {
    "no events": ("iter([])", "ended its stream without an answer"),
    "outputs": ("iter([next(found).outputs])", "streamed list, not an Event"),
    "the wrong outputs": ("iter([Event('done', outputs=['a fox'])])", "made str, not an Output with a Document"),
}


@pytest.mark.parametrize("kind", STREAMS)
def test_streams(bad, kind):
    change, message = STREAMS[kind]
    with (
        pipeline(generator=bad(PaintingGenerator, change, method="stream")) as made,
        pytest.raises(PluginError) as raised,
    ):
        list(made.stream(Document(["a fox", Blank("image")])))
    assert_names_the_plugin(raised.value, "Generator", message)


SCORES = {
    "nothing": ("None", "did not answer 2 targets with a list of 2 scores"),
    "too few": ("found[:1]", "did not answer 2 targets"),
    "numbers": ("[score.log_probability for score in found]", "gave float, not a Score"),
    "a NaN": ("[Score((float('nan'),), (1,))] * 2", "log-probability that is not a number"),
    "words": ("[Score(('likely',), (1,))] * 2", "log-probability that is not a number"),
    "no tuple": ("[Score(-1.0, 1)] * 2", "not a Score with a tuple"),
}


@pytest.mark.parametrize("kind", SCORES)
def test_scores(bad, kind):
    change, message = SCORES[kind]
    with (
        pipeline(generator=bad(PaintingGenerator, change, method="score")) as made,
        pytest.raises(PluginError) as raised,
    ):
        made.classify(PIL.Image.new("RGB", (8, 8)), ["a fox", "a kite"])
    assert_names_the_plugin(raised.value, "Generator", message)


# What a component raises itself, by the interface, the method that raises, and what it is used for.
USES = {
    "Retriever, adding": (HashingRetriever, "encode_document", lambda made: made.add([Document("new")])),
    "Retriever, searching": (HashingRetriever, "encode_query", lambda made: made.search("fox")),
    "Memory, adding": (FaissMemory, "add", lambda made: made.add([Document("new")])),
    "Memory, looking up": (FaissMemory, "get", lambda made: made.add([Document("new")], on_duplicate="skip")),
    "Memory, searching": (FaissMemory, "search", lambda made: made.search("fox")),
    "Sampler": (TopKSampler, "sample", lambda made: made.imagine("fox")),
    "Generator": (PaintingGenerator, "generate", lambda made: made.imagine("fox")),
    "Generator, streaming": (
        PaintingGenerator,
        "stream",
        lambda made: list(made.stream(Document([Blank("image"), "fox"]))),
    ),
    "Generator, scoring": (PaintingGenerator, "score", lambda made: made.classify(PIL.Image.new("RGB", (8, 8)), ["x"])),
}
ROOMS = {HashingRetriever: "retriever", FaissMemory: "memory", TopKSampler: "sampler", PaintingGenerator: "generator"}


def failing(bad, use: str, error: str) -> tuple[Pipeline, Callable[[Pipeline], object]]:
    """A pipeline with a component that raises from now on, and a use that it is to raise in."""
    parent, method, call = USES[use]
    body = f"broken = False\n    def {method}(self, *arguments, **options):\n        if Bad.broken: raise {error}\n"
    body += f"        return super().{method}(*arguments, **options)"
    component = bad(parent, body=body)
    made = pipeline(**{ROOMS[parent]: component})
    type(component).broken = True
    return made, call


@pytest.mark.parametrize("use", USES)
def test_an_error_of_a_component_comes_out_with_a_note_that_names_it(bad, use):
    made, call = failing(bad, use, "KeyError('token')")
    with made, pytest.raises(KeyError, match="token") as raised:
        call(made)
    kind = use.partition(",")[0]
    assert raised.value.__notes__ == [f"Raised by {kind} 'bad' of racm3-bad 1.0."]


@pytest.mark.parametrize("use", USES)
def test_a_component_that_exits_does_not_end_the_process(bad, use):
    made, call = failing(bad, use, "SystemExit(3)")
    with made, pytest.raises(PluginError) as raised:
        call(made)
    assert_names_the_plugin(raised.value, use.partition(",")[0], "raised SystemExit: 3")


def test_an_interrupt_and_our_own_errors_come_out_as_they_are(bad):
    made, call = failing(bad, "Memory, searching", "KeyboardInterrupt")
    with made, pytest.raises(KeyboardInterrupt):
        call(made)
    with pipeline() as sound, pytest.raises(DimensionMismatch) as raised:
        sound.retriever = HashingRetriever(dim=9)
        sound.search("fox")
    assert not hasattr(raised.value, "__notes__")


def test_a_class_that_is_used_directly_is_named_by_its_module():
    class Blind(HashingRetriever):
        def encode_query(self, queries, **options):
            return None

    with pipeline(retriever=Blind()) as made, pytest.raises(PluginError) as raised:
        made.search("fox")
    assert raised.value.message.startswith(f"{__name__}.test_a_class") and "Blind gave NoneType" in raised.value.message
