"""The contract of a sampler. A plugin's test is one class:

from racm3.testing import SamplerContract

class TestSpread(SamplerContract):
    def create(self):
        return SpreadSampler()
"""

from __future__ import annotations

import random as stdlib_random
import threading
from collections.abc import Sequence

import numpy as np

from ..document import Blank, Document
from ..errors import ConfigError
from ..interfaces import Hit, Query, Sampler, Selection
from .contract import Contract, expect, expect_equal, expect_error

DIM = 16


def candidates(n: int = 12, *, seed: int = 0) -> tuple[Query, list[Hit]]:
    """A prompt, and n documents unlike each other, best first: their vectors are at right angles, and hold some of the
    query's direction each."""
    axes = np.linalg.qr(np.random.default_rng(seed).standard_normal((DIM, DIM)))[0].astype(np.float32)
    vector = (axes[:n] * np.linspace(1.5, 0.5, n, dtype=np.float32)[:, None]).sum(0)
    vector = (vector / np.linalg.norm(vector)).astype(np.float32)
    hits = [
        Hit(Document(f"document {number}", id=f"d{number}"), score=float(axis @ vector), vector=axis)
        for number, axis in enumerate(axes[:n])
    ]
    return Query(Document(["what is asked", Blank("image")]), vector), hits


class SamplerContract(Contract):
    """Every rule of `Sampler`. A subclass defines `create()`; `skips` names what does not hold, and why."""

    def create(self) -> Sampler:
        """A new sampler."""
        raise NotImplementedError("A contract of a sampler defines create().")

    def component_type(self) -> type:
        return type(self._made())

    def _made(self) -> Sampler:
        sampler = self.create()
        expect(isinstance(sampler, Sampler), f"create() gave {type(sampler).__name__}, not a Sampler")
        return sampler

    def test_it_chooses_k_of_the_candidates(self) -> None:
        """At most k, none twice, each one of those given; k of them where there are k that are unlike each other."""
        query, hits = candidates()
        for k in (1, 2, 5, len(hits)):
            selection = _sampled(self._made(), query, hits, k)
            _expect_chosen(selection, hits, k)
            expect_equal(len(selection.hits), k, f"how many of {len(hits)} different candidates are chosen with k={k}")

    def test_fewer_candidates_than_k(self) -> None:
        """With k above the number of candidates: those that there are, and with none: none."""
        query, hits = candidates(3)
        selection = _sampled(self._made(), query, hits, 10)
        _expect_chosen(selection, hits, 3)
        expect_equal(len(selection.hits), 3, "how many of 3 candidates are chosen with k=10")
        expect_equal(_sampled(self._made(), query, [], 3), Selection([]), "a selection from no candidates")

    def test_no_documents_can_be_asked_for(self) -> None:
        """k=0 chooses nothing; a negative k is a `ConfigError`."""
        query, hits = candidates()
        expect_equal(_sampled(self._made(), query, hits, 0).hits, [], "what is chosen with k=0")
        with expect_error(ConfigError, "k=-1"):
            _sampled(self._made(), query, hits, -1)

    def test_what_is_passed_over_is_told(self) -> None:
        """A skip has a candidate that was not chosen, a reason, and, where one was the cause, a chosen document's id."""
        query, hits = candidates(6)
        doubled = [Hit(hit.document, id=f"{hit.id}-{copy}", score=hit.score, vector=hit.vector, hashes=hit.hashes)
                   for hit in hits for copy in "ab"]  # fmt: skip
        asked = Hit(query.document, id="query", score=1.0, vector=query.vector)
        for k in (1, 4, 6):
            for given in ([asked, *doubled], hits):
                _expect_told(_sampled(self._made(), query, given, k), given)

    def test_documents_given_by_hand_can_be_sampled(self) -> None:
        """Hits without score and vector, and a query without a vector, are no error."""
        query, hits = candidates(4)
        by_hand = [Hit(hit.document) for hit in hits]
        for asked, given in ((query, by_hand), (Query(query.document), hits), (Query(query.document), by_hand)):
            _expect_chosen(_sampled(self._made(), asked, given, 2), given, 2)
        mixed = [hits[0], by_hand[1], hits[2], by_hand[3]]
        _expect_chosen(_sampled(self._made(), query, mixed, 3), mixed, 3)

    def test_inputs_are_left_alone(self) -> None:
        """The candidates may be any sequence, with read-only vectors; neither they nor the query are changed."""
        query, hits = candidates()
        before = [(hit.id, hit.score, None if hit.vector is None else hit.vector.copy()) for hit in hits]
        for hit in hits:
            if hit.vector is not None:
                hit.vector.flags.writeable = False
        given = list(hits)
        _sampled(self._made(), query, given, 3)
        expect(
            len(given) == len(hits) and all(a is b for a, b in zip(given, hits, strict=True)), "the list was changed"
        )
        _expect_chosen(_sampled(self._made(), query, tuple(hits), 3), hits, 3)
        for hit, (id, score, vector) in zip(hits, before, strict=True):
            same = hit.id == id and hit.score == score and np.array_equal(np.asarray(hit.vector), np.asarray(vector))
            expect(same, f"the candidate {id} was changed")

    def test_no_document_is_loaded(self) -> None:
        """A sampler is pure: it works on ids, hashes, scores and vectors, and reads no document from the memory."""
        query, hits = candidates(5)
        read: list[str] = []

        def load(hit: Hit) -> Document:
            read.append(hit.id)
            return hit.document

        lazy = [
            Hit(id=hit.id, score=hit.score, vector=hit.vector, hashes=hit.hashes, load=lambda hit=hit: load(hit))  # type: ignore[misc]
            for hit in hits
        ]
        _expect_chosen(_sampled(self._made(), query, lazy, 3), lazy, 3)
        expect(not read, f"the documents {read} were loaded")

    def test_the_generator_is_the_only_chance(self) -> None:
        """The same seed gives the same selection, whatever was asked before; global random states stay as they are."""
        query, hits = candidates()
        other_query, other_hits = candidates(7, seed=1)
        sampler = self._made()
        states = stdlib_random.getstate(), str(np.random.get_state())
        first = _told(_sampled(sampler, query, hits, 4, seed=3))
        _sampled(sampler, other_query, other_hits, 2, seed=8)
        expect_equal(_told(_sampled(sampler, query, hits, 4, seed=3)), first, "the selection with the same seed")
        expect_equal(_told(_sampled(self._made(), query, hits, 4, seed=3)), first, "that of another instance")
        after = stdlib_random.getstate(), str(np.random.get_state())
        expect(after == states, "a global random state was drawn from: use rng")

    def test_threads_share_a_sampler(self) -> None:
        """Calls from several threads at once give what they give one by one."""
        sampler, given = self._made(), [candidates(8, seed=seed) for seed in range(8)]
        expected = [_told(_sampled(sampler, query, hits, 3, seed=1)) for query, hits in given]
        got: list[object] = [None] * len(given)

        def work(number: int) -> None:
            query, hits = given[number]
            try:
                for _ in range(5):
                    got[number] = _told(_sampled(sampler, query, hits, 3, seed=1))
            except BaseException as error:
                got[number] = error

        threads = [threading.Thread(target=work, args=(number,)) for number in range(len(given))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        expect_equal(got, expected, "selections from several threads")


def _sampled(sampler: Sampler, query: Query, hits: Sequence[Hit], k: int, *, seed: int = 0) -> Selection:
    selection = sampler.sample(query, hits, k=k, rng=np.random.default_rng(seed))
    expect(isinstance(selection, Selection), f"sample() gave {type(selection).__name__}, not a Selection")
    return selection


def _told(selection: Selection) -> tuple[list[str], list[tuple[str, str, str | None]]]:
    return [hit.id for hit in selection.hits], [(s.hit.id, s.reason, s.because_of) for s in selection.skipped]


def _expect_chosen(selection: Selection, hits: Sequence[Hit], k: int) -> None:
    chosen, _ = _told(selection)
    expect(len(chosen) <= k, f"{len(chosen)} documents are chosen with k={k}")
    expect_equal(len(set(chosen)), len(chosen), "how many different documents are chosen")
    _expect_given(selection.hits, hits)


def _expect_told(selection: Selection, hits: Sequence[Hit]) -> None:
    chosen, skips = _told(selection)
    _expect_given([skip.hit for skip in selection.skipped], hits)
    expect_equal(len({id for id, _, _ in skips}), len(skips), "how many different documents are passed over")
    for id, reason, because_of in skips:
        expect(id not in chosen, f"{id!r} is both chosen and passed over")
        expect(reason.strip(), f"{id!r} is passed over without a reason")
        expect(
            because_of is None or because_of in chosen, f"{id!r} is passed over because of {because_of!r}, not chosen"
        )


def _expect_given(found: Sequence[Hit], hits: Sequence[Hit]) -> None:
    given = {hit.id: hit for hit in hits}
    for hit in found:
        expect(hit.id in given, f"{hit.id!r} is not one of the candidates")
        expect(given[hit.id] is hit, f"{hit.id!r} is not the Hit that was given, but another")
