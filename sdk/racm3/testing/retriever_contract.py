"""The contract of a retriever. A plugin's test is one class:

from racm3.testing import RetrieverContract

class TestMine(RetrieverContract):
    modalities = frozenset({"text"})            # left out: text and image
    def create(self):
        return MyRetriever()
"""

from __future__ import annotations

import random as stdlib_random
import threading
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

from ..document import Blank, Document, Image, Modality
from ..errors import ConfigError, ModalityError
from ..interfaces import Encoder, Retriever
from .contract import Contract, expect, expect_equal, expect_error

TEXTS = ("a red kite over a beach", "a banjo", "grinning face", "flag: Bhutan", "a boat on the sea", "an old clock")
TOLERANCE = 1e-3  # between batches of different sizes: other kernels, another order of sums; float16 has three digits


def picture(seed: int, width: int = 24, height: int = 24) -> Image:
    """Blocks of colour, which even coarse features tell apart."""
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    rows, columns = np.arange(height) * 4 // height, np.arange(width) * 4 // width
    return Image(np.ascontiguousarray(blocks[rows][:, columns]))


class RetrieverContract(Contract):
    """Every rule of `Retriever`. A subclass defines `create()`; `skips` names what does not hold, and why.

    modalities: what the retriever encodes. A document with nothing else must be refused with a `ModalityError`.
    """

    modalities: ClassVar[frozenset[Modality]] = frozenset({"text", "image"})

    def create(self) -> Retriever:
        """A retriever. May be the same one each time, if loading is slow."""
        raise NotImplementedError("A contract of a retriever defines create().")

    def component_type(self) -> type:
        return type(self._made())

    def documents(self) -> list[Document]:
        """Six documents that differ in all that the retriever can see: in turn mixed, text alone, and image alone."""
        made = []
        for number, text in enumerate(TEXTS):
            parts: dict[Modality, Any] = {"text": text, "image": picture(number)}
            kept = [part for modality, part in parts.items() if modality in self.modalities]
            made.append(Document([kept[:], kept[:1], kept[-1:]][number % 3], id=f"d{number}"))
        return made

    def _made(self) -> Retriever:
        retriever = self.create()
        expect(isinstance(retriever, Retriever), f"create() gave {type(retriever).__name__}, not a Retriever")
        return retriever

    # Vectors

    def test_vectors_are_unit_float32_rows(self) -> None:
        """Documents and queries give float32 [n, dim], finite, of unit norm, one row each; none give [0, dim]."""
        retriever, documents = self._made(), self.documents()
        for encode in (retriever.encode_document, retriever.encode_query):
            _vectors(retriever, encode, documents)
            _vectors(retriever, encode, documents[:1])
            _vectors(retriever, encode, [])

    def test_the_encoder_says_what_makes_vectors_comparable(self) -> None:
        """A fingerprint and a width, the same before and after encoding, and for every instance made alike."""
        retriever = self._made()
        encoder = retriever.encoder
        expect(isinstance(encoder, Encoder), f"encoder is a {type(encoder).__name__}, not an Encoder")
        expect(isinstance(encoder.fingerprint, str) and encoder.fingerprint, f"no fingerprint: {encoder}")
        expect(isinstance(encoder.dim, int) and encoder.dim > 0, f"no width: {encoder}")
        retriever.encode_document(self.documents())
        expect_equal(retriever.encoder, encoder, "the encoder after encoding")
        expect_equal(self._made().encoder, encoder, "the encoder of another instance")

    def test_batches_change_nothing(self) -> None:
        """A document's vector is the same, to rounding, alone, in any batch size, order and company."""
        retriever, documents = self._made(), self.documents()
        for encode in (retriever.encode_document, retriever.encode_query):
            whole = _vectors(retriever, encode, documents)
            one_by_one = np.concatenate([_vectors(retriever, encode, [document]) for document in documents])
            _expect_close(one_by_one, whole, "vectors of documents one by one")
            for size in (1, 4):
                _expect_close(encode(documents, batch_size=size), whole, f"vectors with batch_size={size}")
            _expect_close(_vectors(retriever, encode, documents[::-1])[::-1], whole, "vectors in reverse order")
            twice = _vectors(retriever, encode, [documents[0], documents[1], documents[0]])
            _expect_close(twice[0], twice[2], "the vectors of a document that comes twice")

    def test_a_document_is_found_by_its_own_content(self) -> None:
        """Of six documents that differ in all, each is the nearest to a query with its own content."""
        retriever, documents = self._made(), self.documents()
        scores = retriever.encode_query(documents) @ retriever.encode_document(documents).T  # [queries, documents]
        expect_equal(scores.argmax(1).tolist(), list(range(len(documents))), "the nearest document of each query")

    def test_content_alone_counts(self) -> None:
        """Neither id nor metadata changes a vector."""
        retriever = self._made()
        given = [
            Document(document.parts, id=f"other {document.id}", metadata={"caption": "another"})
            for document in self.documents()
        ]
        _expect_close(
            retriever.encode_document(given), retriever.encode_document(self.documents()), "vectors with another id"
        )

    def test_every_part_counts(self) -> None:
        """A document of two modalities, or of two texts or pictures, is not encoded as one of its parts alone."""
        retriever = self._made()
        cases: list[list[Any]] = []
        if "text" in self.modalities:
            cases.append([TEXTS[0], TEXTS[1]])
        if "image" in self.modalities:
            cases.append([picture(0), picture(1)])
        if len(self.modalities) == 2:
            cases.append([TEXTS[0], picture(0)])
        for parts in cases:
            whole = retriever.encode_document([Document(parts)])[0]
            for part in parts:
                alone = retriever.encode_document([Document(part)])[0]
                expect(np.abs(whole - alone).max() > TOLERANCE, f"{Document(parts)!r} is encoded as {part!r} alone")

    # What is given

    def test_blanks_and_empty_texts_are_passed_over(self) -> None:
        """A query with blanks has the vector of what it shows; with nothing to see, it is a `ModalityError`."""
        retriever = self._made()
        shown: Any = TEXTS[0] if "text" in self.modalities else picture(0)
        alone = retriever.encode_query([Document(shown)])
        for parts in ([shown, Blank("image")], [Blank("text"), " ", shown]):
            _expect_close(retriever.encode_query([Document(parts)]), alone, f"the vector of {parts}")
        for nothing in (Document(Blank("image")), Document(["", Blank("text")]), Document(" \n")):
            with expect_error(ModalityError, f"encoding {nothing!r}"):
                retriever.encode_query([Document(shown), nothing])

    def test_other_modalities_are_refused(self) -> None:
        """A document with nothing that the retriever encodes is a `ModalityError`; a mixed one is encoded by the rest."""
        retriever = self._made()
        parts: dict[Modality, Any] = {"text": TEXTS[0], "image": picture(0)}
        for modality in sorted(parts.keys() - self.modalities):
            with expect_error(ModalityError, f"encoding a document of {modality} alone"):
                retriever.encode_document([Document(parts[modality])])
            mixed = _vectors(retriever, retriever.encode_document, [Document(list(parts.values()))])
            rest = [part for other, part in parts.items() if other != modality]
            _expect_close(mixed, retriever.encode_document([Document(rest)]), f"a document with {modality} in it")

    def test_any_text_and_any_picture_can_be_encoded(self) -> None:
        """Any Unicode, half surrogates, very long texts; pictures of one pixel, very wide, very high."""
        retriever = self._made()
        given: list[Any] = []
        if "text" in self.modalities:
            given += [
                "日本 🪕 👩🏽‍🚀",
                "half \ud800",
                "nul \0 and \u202e",
                "!",
                "word " * 5000,
                "<|endoftext|></s>[CLS]",
            ]
        if "image" in self.modalities:
            given += [picture(0, 1, 1), picture(1, 200, 3), picture(2, 3, 200)]
        _vectors(retriever, retriever.encode_document, [Document(part) for part in given])

    def test_inputs_are_left_alone(self) -> None:
        """Documents, any sequence of them, are not changed."""
        retriever, documents = self._made(), self.documents()
        vectors = retriever.encode_document(tuple(documents))
        expect_equal(documents, self.documents(), "the documents that were given")
        vectors[:] = 0
        _vectors(retriever, retriever.encode_document, documents)

    # Query dropout

    def test_dropout_is_a_function_of_the_generator_alone(self) -> None:
        """dropout > 0 changes vectors as `rng` has it, in any batch size; 0 changes nothing; global states stay."""
        retriever, documents = self._made(), self.documents()
        states = stdlib_random.getstate(), str(np.random.get_state())

        def dropped(seed: int, size: int) -> np.ndarray:
            return retriever.encode_query(documents, batch_size=size, dropout=0.5, rng=np.random.default_rng(seed))

        plain = retriever.encode_query(documents)
        _expect_close(dropped(1, 6), dropped(1, 2), "queries dropped by the same seed in other batches")
        expect(np.abs(dropped(1, 6) - plain).max() > TOLERANCE, "dropout=0.5 changes no vector")
        expect(np.abs(dropped(1, 6) - dropped(2, 6)).max() > TOLERANCE, "two seeds drop the same")
        none = retriever.encode_query(documents, dropout=0.0, rng=np.random.default_rng(0))
        _expect_close(none, plain, "queries with dropout=0")
        expect((stdlib_random.getstate(), str(np.random.get_state())) == states, "a global random state was drawn from")

    def test_dropout_is_checked(self) -> None:
        """dropout without rng, or outside of [0, 1), is a `ConfigError`."""
        retriever, documents = self._made(), self.documents()
        with expect_error(ConfigError, "dropout without rng"):
            retriever.encode_query(documents, dropout=0.5)
        for share in (-0.1, 1.0):
            with expect_error(ConfigError, f"dropout={share}"):
                retriever.encode_query(documents, dropout=share, rng=np.random.default_rng(0))

    def test_threads_share_a_retriever(self) -> None:
        """Calls from several threads at once give the vectors that they give one by one."""
        retriever, documents = self._made(), self.documents()
        expected = retriever.encode_document(documents)
        got: list[Any] = [None] * 4

        def work(number: int) -> None:
            try:
                got[number] = retriever.encode_document(documents)
            except BaseException as error:
                got[number] = error

        threads = [threading.Thread(target=work, args=(number,)) for number in range(len(got))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for vectors in got:
            expect(isinstance(vectors, np.ndarray), f"a thread got {vectors!r}")
            _expect_close(vectors, expected, "vectors from several threads")


def _vectors(
    retriever: Retriever, encode: Callable[[Sequence[Document]], np.ndarray], documents: Sequence[Document]
) -> np.ndarray:
    vectors = encode(documents)
    expect(isinstance(vectors, np.ndarray), f"the vectors are {type(vectors).__name__}, not a numpy array")
    expect_equal(vectors.dtype, np.dtype(np.float32), "dtype of the vectors")
    expect_equal(vectors.shape, (len(documents), retriever.encoder.dim), "shape of the vectors")
    expect(np.isfinite(vectors).all(), "some vectors are not finite")
    off = np.abs(np.linalg.norm(vectors.astype(np.float64), axis=1) - 1).max(initial=0)
    expect(off < TOLERANCE, f"vectors are not of unit norm: off by {off:.2g}")
    return vectors


def _expect_close(got: np.ndarray, expected: np.ndarray, what: str) -> None:
    expect_equal(got.shape, expected.shape, f"{what}: shape")
    off = float(np.abs(got - expected).max()) if got.size else 0.0
    expect(off < TOLERANCE, f"{what}: off by {off:.2g}")
