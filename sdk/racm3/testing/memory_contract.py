"""The contract of a memory. A plugin's test is one class:

from racm3.testing import MemoryStoreContract

class TestShelf(MemoryStoreContract):
    def open(self, path):
        return ShelfMemory(path)
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..document import Blank, Document, Image
from ..errors import (
    DimensionMismatch,
    DuplicateDocument,
    EncoderMismatch,
    InvalidDocument,
    MemoryStoreError,
    RACM3Error,
)
from ..interfaces import Encoder
from .contract import expect, expect_equal, expect_error
from .memory_ground import (
    DIM,
    ENCODER,
    axis,
    expect_nearest,
    expect_same_documents,
    ids,
    picture,
    same_ids,
    texts,
    unit,
)
from .memory_search import SearchChecks

LARGE = 6000  # more than backends take in one request: SQLite's and Chroma's limits are about 5,500


class MemoryStoreContract(SearchChecks):
    """Every rule of `MemoryStore`. A subclass defines `open(path)`; `skips` names what does not hold, and why."""

    # Adding

    def test_what_is_read_back_equals_what_was_stored(self) -> None:
        """Parts, pixels, encoded bytes, content hash and metadata (None, lists, Unicode, types) come back exactly."""
        memory, encoded = self.new_memory(), Image(Image(picture(2)).data)
        metadata: dict[str, Any] = {
            "str": "é ☃ 🪁", "empty": "", "int": 1, "float": 1.0, "big": 2**63 - 1, "huge": 10**30, "tiny": 5e-324,
            "true": True, "none": None, "list": [1, "a", None, 2.5, False], "no list": [], "a.b": 'quo"te', "snow ☃": 0,
        }  # fmt: skip
        documents = [
            Document(
                ["text \0 ☃", Image(picture(2)), "more", encoded, ""], id="id ☃ 'and' \"more\"/%", metadata=metadata
            ),
            Document(Image(picture(3))),
            Document("an id by content"),
        ]
        expect_equal(memory.add(documents, unit(0, 3)), ids(documents), "the ids that add() gives")
        asked = [documents[2].id, "missing", documents[0].id, documents[1].id, documents[2].id]
        back = memory.get(asked)
        expect_same_documents(back, [documents[2], None, documents[0], documents[1], documents[2]], "get()")
        assert back[2] is not None and back[3] is not None and back[3].image is not None
        expect(np.array_equal(np.asarray(back[3].image.picture), picture(3)), "the pixels of a picture changed")
        expect_equal(back[2].images[1].data, encoded.data, "the encoded bytes of a picture")

    def test_text_that_no_encoding_takes_is_kept_or_refused(self) -> None:
        """Half a surrogate pair, as in odd file names: kept exactly, or refused with a `RACM3Error`; never altered."""
        for document in (
            Document("half \ud800", id="text"),
            Document("x", id="id \udcff"),
            Document("x", id="metadata", metadata={"half \ud800": "\udcff"}),
        ):
            memory = self.new_memory()
            try:
                memory.add([document], unit(0, 1))
            except RACM3Error:
                expect_equal(len(memory), 0, "len() after a document was refused")
            else:
                expect_same_documents(memory.get([document.id]), [document], "get()")

    def test_a_duplicate_is_an_error_and_stores_nothing(self) -> None:
        """on_duplicate="error": `DuplicateDocument`, for an id that is stored, or twice in one call; the call is void."""
        memory, vectors = self.new_memory(), unit(0, 6)
        old, new = Document("old", id="a"), Document("new", id="a")
        memory.add([old], vectors[:1])
        with expect_error(DuplicateDocument, "an id that is stored already"):
            memory.add([Document("c", id="c"), new], vectors[1:3])
        with expect_error(DuplicateDocument, "an id twice in one call"):
            memory.add([Document("d", id="d"), Document("e", id="d")], vectors[3:5])
        expect_same_documents(memory.get(["a", "c", "d"]), [old, None, None], "after add() failed")
        expect_equal(len(memory), 1, "len() after add() failed")
        same_ids(memory.search(vectors[:1], k=9)[0], ["a"], "a search after add() failed")
        with expect_error(MemoryStoreError, "an unknown duplicate policy"):
            memory.add([new], vectors[:1], on_duplicate="replaced")  # type: ignore[arg-type]

    def test_a_duplicate_is_skipped(self) -> None:
        """on_duplicate="skip": the old document stays, in one call the first; the others are stored, all ids given."""
        memory, vectors = self.new_memory(), unit(0, 6)
        old, new = Document("old", id="a"), Document("new", id="a")
        memory.add([old], vectors[:1])
        given = memory.add([new, Document("b", id="b"), Document("b2", id="b")], vectors[1:4], on_duplicate="skip")
        expect_equal(given, ["a", "b", "b"], "the ids that add() gives")
        expect_same_documents(memory.get(["a", "b"]), [old, Document("b", id="b")], "after skipping")
        stored = [(old, vectors[0]), (Document("b", id="b"), vectors[2])]
        expect_nearest(memory.search(vectors[1:2], k=9)[0], vectors[1], 9, stored, what="a search after skipping")

    def test_a_duplicate_is_replaced(self) -> None:
        """on_duplicate="replace": the new document, vector and metadata, in one call the last; it counts as added anew."""
        memory, vectors = self.new_memory(), unit(0, 6)
        memory.add([Document("old", id="a", metadata={"v": 1}), Document("b", id="b")], vectors[:2])
        new = Document("new", id="a", metadata={"w": 2})
        given = memory.add([Document("between", id="a"), new], vectors[2:4], on_duplicate="replace")
        expect_equal(given, ["a", "a"], "the ids that add() gives")
        expect_same_documents(memory.get(["a"]), [new], "after replacing")
        expect_equal(len(memory), 2, "len() after replacing")
        stored = [(new, vectors[3]), (Document("b", id="b"), vectors[1])]
        for query in vectors[:4]:
            expect_nearest(memory.search(query[None], k=9)[0], query, 9, stored, what="a search after replacing")
        same_ids(memory.search(vectors[:1], k=9, where={"v": 1})[0], [], "a search by the old metadata")
        expect_equal(ids(document for document, _ in memory.items()), ["b", "a"], "items() after replacing")

    def test_documents_may_be_a_generator_and_its_error_stores_nothing(self) -> None:
        """Any iterable of documents is taken; when it raises half-way, that error comes out and the memory is as before."""
        memory, vectors = self.new_memory(), unit(0, 5)
        memory.add((document for document in texts(5)), vectors)
        expect_equal(ids(memory.search(vectors, k=1)[4]), ["d00004"], "the nearest")

        def broken() -> Iterator[Document]:
            yield from texts(3, start=10)
            raise ZeroDivisionError

        try:
            memory.add(broken(), unit(1, 5))
        except ZeroDivisionError:
            pass
        else:
            expect(False, "the error of a generator was swallowed")
        expect_equal(len(memory), 5, "len() after the source of documents failed")
        expect_equal(memory.get(["d00010"]), [None], "a document of the call that failed")

    def test_vectors_are_checked_and_nothing_is_stored(self) -> None:
        """Another width: `DimensionMismatch`; NaN, infinite, not of unit norm, or too few: `MemoryStoreError`."""
        memory, good = self.new_memory(), np.eye(3, DIM, dtype=np.float32)
        nan, infinite, zero, long = good.copy(), good.copy(), good.copy(), good.copy()
        nan[1], infinite[0], zero[2], long[0] = np.nan, np.inf, 0, good[0] * 1.1
        with expect_error(DimensionMismatch, "vectors that are too short"):
            memory.add(texts(3), np.eye(3, DIM - 1, dtype=np.float32))
        for vectors, what in (
            (nan, "a vector of NaN"),
            (infinite, "an infinite vector"),
            (zero, "a vector of zeros"),
            (long, "a vector of norm 1.1"),
            (good[:2], "fewer vectors than documents"),
            (np.eye(4, DIM, dtype=np.float32), "more vectors than documents"),
        ):
            with expect_error(MemoryStoreError, what):
                memory.add(texts(3), vectors)
        expect_equal(len(memory), 0, "len() after all was refused")

    def test_prompts_and_other_things_are_refused(self) -> None:
        """A document with a blank, or what is no document, is an `InvalidDocument`, and nothing of the call is stored."""
        memory = self.new_memory()
        for bad in (Document(["a kite", Blank("image")], id="p"), "a kite"):
            with expect_error(InvalidDocument, f"storing {bad!r}"):
                memory.add([Document("good"), bad], unit(0, 2))  # type: ignore[list-item]
        expect_equal(len(memory), 0, "len() after a document was refused")

    def test_inputs_are_left_alone(self) -> None:
        """Arrays may be read-only and are not written to; changing them afterwards does not change the memory."""
        memory, vectors, documents = self.new_memory(), unit(0, 3), texts(3)
        frozen = vectors.copy()
        frozen.flags.writeable = False
        memory.add(documents[:2], frozen[:2])
        mine = vectors[2:].copy()
        memory.add(documents[2:], mine)
        mine[:] = axis(0)
        expect_same_documents(documents, texts(3), "the documents that were given")
        where, exclude = {"$or": [{"i": {"$in": [0, 1, 2]}}]}, [["unknown"]]
        hits = memory.search(frozen[2:], k=3, where=where, exclude=exclude)[0]
        expect_nearest(hits, vectors[2], 3, zip(documents, vectors, strict=True))
        expect_equal((where, exclude), ({"$or": [{"i": {"$in": [0, 1, 2]}}]}, [["unknown"]]), "the filter given")

    def test_requests_may_be_larger_than_a_backends_limit(self) -> None:
        """6,000 documents in one call are added, found, filtered, excluded, read and deleted as any others."""
        memory, documents, vectors = self.filled(LARGE)
        expect_equal(len(memory), LARGE, "len()")
        stored = list(zip(documents, vectors, strict=True))
        expect_nearest(memory.search(vectors[-1:], k=5)[0], vectors[-1], 5, stored)
        expect_equal(len(memory.search(vectors[:1], k=LARGE)[0]), LARGE, f"hits with k={LARGE}")
        many = {"i": {"$in": list(range(LARGE - 3))}}
        left = memory.search(vectors[:1], k=9, where={"$not": many})[0]
        same_ids(left, ids(documents[LARGE - 3 :]), "a filter with 5,997 values")
        left = memory.search(vectors[:1], k=9, exclude=[ids(documents[: LARGE - 2])])[0]
        same_ids(left, ids(documents[LARGE - 2 :]), "a search with 5,998 exclusions")
        back = memory.get(ids(documents))
        expect_equal([document and document.id for document in back], ids(documents), "get() of all")
        expect_equal(memory.delete(ids(documents[1:])), LARGE - 1, "delete() of all but one")
        same_ids(memory.search(vectors[:1], k=9)[0], ["d00000"], "a search after that")

    # Binding

    def test_a_memory_belongs_to_one_encoder(self) -> None:
        """Binding again to the same is fine; to another fingerprint or width, `EncoderMismatch`; unbound, no adding."""
        memory = self._opened(self.new_place())
        with expect_error(MemoryStoreError, "adding before bind()"):
            memory.add(texts(1), unit(0, 1))
        expect(memory.encoder is None, f"it says that it is bound to {memory.encoder} before it is")
        memory.bind(ENCODER)
        memory.bind(Encoder(ENCODER.fingerprint, DIM))
        expect(memory.encoder in (None, ENCODER), f"it says that it is bound to {memory.encoder}, not to {ENCODER}")
        for other in (Encoder("another", DIM), Encoder(ENCODER.fingerprint, DIM // 2)):
            with expect_error(EncoderMismatch, f"binding to {other}"):
                memory.bind(other)
        memory.add(texts(1), unit(0, 1))

    # Reading and removing

    def test_items_are_streamed_in_the_order_of_adding(self) -> None:
        """An iterator of documents and vectors (float32, to rounding), in the order in which they were added."""
        memory, documents, vectors = self.new_memory(), texts(200), unit(0, 200)
        memory.add(documents[100:], vectors[100:])
        memory.add(documents[:100], vectors[:100])
        items = memory.items()
        expect(isinstance(items, Iterator), f"items() gave {type(items).__name__}, not an iterator")
        read = list(items)
        expect_same_documents([document for document, _ in read], documents[100:] + documents[:100], "items()")
        got = np.stack([vector for _, vector in read])
        expect_equal(got.dtype, np.dtype(np.float32), "the dtype of vectors")
        expected = np.concatenate([vectors[100:], vectors[:100]])
        expect(np.allclose(got, expected, atol=1e-6), "items() gives other vectors than were stored")

    def test_what_is_deleted_is_gone(self) -> None:
        """delete() counts what was there, once each; search, get, items and len agree; the id can be added again."""
        memory, documents, vectors = self.filled(20)
        expect_equal(memory.delete(["d00003", "d00003", "unknown", "d00007"]), 2, "the number deleted")
        expect_equal(len(memory), 18, "len()")
        expect_equal(memory.get(["d00003"]), [None], "get() of a deleted document")
        left = [
            (document, vector)
            for document, vector in zip(documents, vectors, strict=True)
            if document.id not in ("d00003", "d00007")
        ]
        for k in (1, 30):
            expect_nearest(memory.search(vectors[3:4], k=k)[0], vectors[3], k, left, what="a search after delete()")
        expect_equal(ids(document for document, _ in memory.items()), ids(document for document, _ in left), "items()")
        memory.add([Document("again", id="d00003")], vectors[3:4])
        expect_equal(ids(memory.search(vectors[3:4], k=1)[0]), ["d00003"], "the document that was added again")

    def test_documents_that_share_a_picture_are_deleted_alone(self) -> None:
        """Deleting one document leaves the picture that another one shows as well."""
        memory, shared = self.new_memory(), Image(picture(4))
        memory.add([Document(["a", shared], id="a"), Document(["b", shared], id="b")], unit(0, 2))
        memory.delete(["a"])
        expect_same_documents(memory.get(["b"]), [Document(["b", shared], id="b")], "the other document")

    def test_random_documents_follow_the_generator(self) -> None:
        """Drawn without replacement by `rng` alone: the same seed, the same documents; filtered; no score, a vector."""
        memory, _, vectors = self.filled(20)
        memory.delete(["d00004"])

        def draw(n: int, seed: int, **asked: Any) -> list[str]:
            return ids(memory.random(n, rng=np.random.default_rng(seed), **asked))

        expect_equal(draw(5, 1), draw(5, 1), "two draws with one seed")
        expect(len({tuple(draw(5, seed)) for seed in range(5)}) > 1, "the draw does not depend on rng")
        expect_equal(sorted(draw(99, 0)), [f"d{i:05d}" for i in range(20) if i != 4], "a draw of all")
        even = [f"d{i:05d}" for i in range(0, 20, 2) if i != 4]
        expect_equal(sorted(draw(99, 0, where={"even": True})), even, "a draw of all that fit a filter")
        expect_equal(draw(0, 0), [], "a draw of none")
        hit = memory.random(1, rng=np.random.default_rng(0))[0]
        expect_equal(hit.score, None, "the score of a random document")
        expect(hit.vector is not None, "a random document has no vector")
        assert hit.vector is not None
        expect(np.allclose(hit.vector, vectors[int(hit.id[1:])], atol=1e-6), "a random document has a wrong vector")
        counts = np.zeros(20)
        for seed in range(200):
            counts[[int(id[1:]) for id in draw(5, seed)]] += 1
        spread = np.abs(np.delete(counts, 4) - 200 * 5 / 19).max()
        expect(spread < 35, f"not all documents are drawn equally often: {spread:.0f} off")  # five standard deviations

    # Life

    def test_another_process_finds_what_was_stored(self) -> None:
        """Reopened, here or in a new process, the memory has the same ids, documents, answers and encoder."""
        place, vectors = self.new_place(), unit(0, 30)
        documents = [*texts(29), Document(["☃", Image(picture(1))], id="picture", metadata={"list": [1, None]})]
        with self.open(place) as memory:
            memory.bind(ENCODER)
            memory.add(documents, vectors)
            memory.delete(["d00005"])
            expected = _facts(memory)
        expect_equal(self.in_new_process("reopen", path=str(place)), expected, "what a new process finds")
        memory = self._opened(place)
        expect_equal(_facts(memory), [[*expected[0], "from another process"], *expected[1:]], "reopened here")
        with expect_error(EncoderMismatch, "another encoder after reopening"):
            memory.bind(Encoder("another", DIM))

    def reopen(self, path: str) -> list[Any]:
        """In a new process: what is in the memory; then one more document is stored."""
        with self.open(Path(path)) as memory:
            memory.bind(ENCODER)
            facts = _facts(memory)
            memory.add([Document("new", id="from another process")], unit(99, 1))
        return facts

    def test_refresh_takes_in_what_another_process_wrote(self) -> None:
        """After refresh() a memory that is open, and writes nothing itself, finds what another process has stored."""
        place = self.new_place()
        with self.open(place) as memory:
            memory.bind(ENCODER)
            memory.add(texts(3), unit(0, 3))
        memory = self._opened(place)
        memory.search(unit(0, 1), k=1)
        self.in_new_process("reopen", path=str(place))
        memory.refresh()
        expect_equal(ids(memory.search(unit(99, 1), k=1)[0]), ["from another process"], "after refresh()")
        expect_equal(len(memory), 4, "len() after refresh()")

    def test_threads_share_a_memory(self) -> None:
        """Four threads that add and search at once: nothing is lost, and every answer is right."""
        memory, vectors = self.new_memory(), unit(0, 240)
        memory.add(texts(40), vectors[:40])
        failures: list[str] = []

        def work(part: int) -> None:
            try:
                for start in range(40 + 50 * part, 90 + 50 * part, 10):
                    memory.add(texts(10, start), vectors[start : start + 10])
                    found = [ids(hits) for hits in memory.search(vectors[start : start + 2], k=1)]
                    if found != [[f"d{start:05d}"], [f"d{start + 1:05d}"]]:
                        failures.append(f"a thread looked for what it had stored, and found {found}")
            except BaseException as error:
                failures.append(f"{type(error).__name__}: {error}")

        threads = [threading.Thread(target=work, args=(part,)) for part in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        expect(not failures, "; ".join(failures[:3]))
        expect_equal(len(memory), 240, "len() after four threads added")
        nearest = [ids(hits) for hits in memory.search(vectors, k=1)]
        expect_equal(nearest, [[f"d{i:05d}"] for i in range(240)], "the nearest of each")

    def test_a_closed_memory_says_so(self) -> None:
        """Leaving `with` closes; closing twice does no harm; afterwards, `MemoryStoreError`."""
        with self.open(self.new_place()) as memory:
            memory.bind(ENCODER)
            memory.add(texts(1), unit(0, 1))
            memory.flush()
        memory.close()
        with expect_error(MemoryStoreError, "searching a closed memory"):
            memory.search(unit(0, 1), k=1)
        with expect_error(MemoryStoreError, "adding to a closed memory"):
            memory.add(texts(1, start=5), unit(1, 1))


def _facts(memory: Any) -> list[Any]:
    """What one can see of a memory, as JSON, but for what another process adds: that is at the end of the first list."""
    queries = unit(7, 3)
    old = {"exclude": [["from another process"]] * len(queries)}
    items = list(memory.items())
    documents = [d for d, _ in items if d.id != "from another process"]
    return [
        ids(document for document, _ in items),
        [document.content_hash for document in documents],
        [dict(document.metadata) for document in documents],
        [ids(hits) for hits in memory.search(queries, k=5, **old)],
        [ids(hits) for hits in memory.search(queries, k=5, where={"even": True}, **old)],
        [[round(float(hit.score), 3) for hit in hits] for hits in memory.search(queries, k=5, **old)],
    ]
