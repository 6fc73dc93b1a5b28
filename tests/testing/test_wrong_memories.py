"""Memories that are wrong in one way each, and the check that catches it."""

from __future__ import annotations

import importlib
import sys
import time
from itertools import islice
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from racm3.document import Document, Image
from racm3.errors import FilterError, RACM3Error
from racm3.interfaces import Hit
from racm3.scaffold.memory import ExampleMemory
from racm3.testing import MemoryStoreContract
from racm3.testing.contract import run

CASES = []


def caught_by(check, words):
    """Marks a wrong memory with the check that is meant for it, and words of its message."""

    def mark(memory):
        # At the level of the module, where another process finds it too.
        name = f"{memory.__name__}Contract"
        contract = type(name, (MemoryStoreContract,), {"open": lambda self, path: memory(path), "__module__": __name__})
        globals()[name] = contract
        CASES.append(pytest.param(contract, f"test_{check}", words, id=memory.__name__))
        return memory

    return mark


# Searching


@caught_by("a_search_finds_exactly_the_nearest", "has inner product")
class WorstFirst(ExampleMemory):
    def search(self, vectors, **asked):
        return [hits[::-1] for hits in super().search(vectors, **asked)]


@caught_by("a_search_finds_exactly_the_nearest", "has inner product")
class Approximate(ExampleMemory):
    """Looks at nine of ten documents."""

    def search(self, vectors, **asked):
        every, self._rows = self._rows, {id: row for id, row in self._rows.items() if not id.endswith("7")}
        try:
            return super().search(vectors, **asked)
        finally:
            self._rows = every


@caught_by("a_search_finds_exactly_the_nearest", "its inner product is")
class Distances(ExampleMemory):
    def search(self, vectors, **asked):
        found = super().search(vectors, **asked)
        return [[Hit(hit.document, score=1 - hit.score, vector=hit.vector) for hit in hits] for hits in found]


@caught_by("a_search_finds_exactly_the_nearest", "k is too large")
class AtMostAsManyAsThereAre(ExampleMemory):
    def search(self, vectors, *, k, **asked):
        if k > len(self):
            raise ValueError("k is too large")
        return super().search(vectors, k=k, **asked)


@caught_by("a_search_finds_exactly_the_nearest", "number of hits")
class OneMore(ExampleMemory):
    def search(self, vectors, *, k, **asked):
        return super().search(vectors, k=k + 1, **asked)


@caught_by("ties_come_in_order_of_id", "ties")
class TiesByAge(ExampleMemory):
    def search(self, vectors, *, k, **asked):
        super().search(vectors, k=k, **asked)  # refuses what it should
        age = {id: number for number, id in enumerate(self._rows)}
        found = super().search(vectors, k=len(self), **asked)
        return [sorted(hits, key=lambda hit: (-hit.score, age[hit.id]))[:k] for hits in found]


@caught_by("filters_and_exclusions_apply_before_the_top_k", "fit the filter")
class FiltersBehindTheTopK(ExampleMemory):
    def search(self, vectors, *, k, where=None, exclude=None):
        fitting = {hit.id for hits in super().search(vectors, k=len(self), where=where) for hit in hits}
        found = super().search(vectors, k=k, exclude=exclude)
        return [[hit for hit in hits if hit.id in fitting] for hits in found]


@caught_by("filters_and_exclusions_apply_before_the_top_k", "not excluded")
class ExcludesBehindTheTopK(ExampleMemory):
    def search(self, vectors, *, k, where=None, exclude=None):
        found = super().search(vectors, k=k, where=where)
        return [
            [hit for hit in hits if hit.id not in out]
            for hits, out in zip(found, exclude or [()] * len(found), strict=True)
        ]


@caught_by("exclusions_name_ids_documents_or_parts", "exclude=")
class ExcludesIdsAlone(ExampleMemory):
    def search(self, vectors, *, exclude=None, **asked):
        ids = None if exclude is None else [[name for name in names if name in self._rows] for names in exclude]
        return super().search(vectors, exclude=ids, **asked)


@caught_by("exclusions_name_ids_documents_or_parts", "exclude=")
class OneExclusionForAll(ExampleMemory):
    def search(self, vectors, *, exclude=None, **asked):
        together = None if exclude is None else [set().union(*exclude)] * len(exclude)
        return super().search(vectors, exclude=together, **asked)


class Filters(ExampleMemory):
    """Filters by a function of its own."""

    def search(self, vectors, *, k, where=None, exclude=None):
        super().search(vectors, k=k, where=where)  # refuses what it should
        found = super().search(vectors, k=len(self), exclude=exclude)
        return [[hit for hit in hits if self.fits(where or {}, hit.document.metadata)][:k] for hits in found]

    def fits(self, where, metadata):
        from racm3.memories.predicate import predicate

        return predicate(where)(metadata)


@caught_by("filters_mean_what_the_rules_say", "where={'f': 1}")
class TrueIsOne(Filters):
    def fits(self, where, metadata):
        plain = {key: int(value) if isinstance(value, bool) else value for key, value in metadata.items()}
        return super().fits(where, plain)


@caught_by("filters_mean_what_the_rules_say", "$ne")
class WhatIsMissingDiffersFromNothing(Filters):
    def fits(self, where, metadata):
        return super().fits(where, metadata) and not any(
            isinstance(asked, dict) and "$ne" in asked and name not in metadata for name, asked in where.items()
        )


@caught_by("a_malformed_filter_is_refused", "raised nothing")
class IgnoresUnknownOperators(Filters):
    def search(self, vectors, *, where=None, **asked):
        try:
            return super().search(vectors, where=where, **asked)
        except FilterError:
            return super().search(vectors, **asked)


@caught_by("a_malformed_filter_is_refused", "raised ValueError")
class UntypedErrors(ExampleMemory):
    def search(self, vectors, **asked):
        try:
            return super().search(vectors, **asked)
        except RACM3Error as error:
            raise ValueError(str(error)) from error


@caught_by("a_hit_carries_what_a_sampler_needs", "no vector")
class HitsWithoutVectors(ExampleMemory):
    def search(self, vectors, **asked):
        return [[Hit(hit.document, score=hit.score) for hit in hits] for hits in super().search(vectors, **asked)]


@caught_by("a_hit_carries_what_a_sampler_needs", "its inner product is")
class GivesItsOwnVectors(ExampleMemory):
    def search(self, vectors, **asked):
        found = super().search(vectors, **asked)
        return [[Hit(hit.document, score=hit.score, vector=self._rows[hit.id][1]) for hit in hits] for hits in found]


@caught_by("queries_are_checked", "a query of norm 2")
class NormalisesQueries(ExampleMemory):
    def search(self, vectors, **asked):
        return super().search(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9), **asked)


@caught_by("an_empty_memory_finds_nothing", "ValueError")
class CannotBeEmpty(ExampleMemory):
    def search(self, vectors, **asked):
        np.stack([vector for _, vector in self._rows.values()])
        return super().search(vectors, **asked)


# Adding


class Altering(ExampleMemory):
    """Stores another document than it was given."""

    def add(self, documents, vectors, **asked):
        altered = [self.altered(one) if isinstance(one, Document) else one for one in documents]
        return super().add(altered, vectors, **asked)


@caught_by("what_is_read_back_equals_what_was_stored", "metadata of")
class DropsNone(Altering):
    def altered(self, document):
        return document.replace(metadata={k: v for k, v in document.metadata.items() if v is not None})


@caught_by("what_is_read_back_equals_what_was_stored", "metadata of")
class NumbersAreFloats(Altering):
    def altered(self, document):
        return document.replace(metadata={k: float(v) if type(v) is int else v for k, v in document.metadata.items()})


@caught_by("what_is_read_back_equals_what_was_stored", "parts of")
class DecodesPictures(Altering):
    def altered(self, document):
        parts = [Image(part.picture) if isinstance(part, Image) else part for part in document.parts]
        return Document(parts, id=document.id, metadata=document.metadata)


@caught_by("what_is_read_back_equals_what_was_stored", "get()")
class GetsInItsOwnOrder(ExampleMemory):
    def get(self, ids):
        return super().get(sorted(ids))


@caught_by("text_that_no_encoding_takes_is_kept_or_refused", "parts of 'text'")
class ReplacesWhatItCannotEncode(Altering):
    def altered(self, document):
        parts = [
            part if isinstance(part, Image) else part.text.encode("utf-8", "replace").decode()
            for part in document.parts
        ]
        return Document(parts, id=document.id, metadata=document.metadata)


class OneByOne(ExampleMemory):
    def add(self, documents, vectors, **asked):
        documents = list(documents)
        return [
            id
            for row, one in enumerate(documents)
            for id in super(OneByOne, self).add([one], vectors[row : row + 1], **asked)
        ]


caught_by("a_duplicate_is_an_error_and_stores_nothing", "after add() failed")(OneByOne)


@caught_by("a_duplicate_is_an_error_and_stores_nothing", "raised nothing")
class SkipsInSilence(ExampleMemory):
    def add(self, documents, vectors, *, on_duplicate="error"):
        return super().add(documents, vectors, on_duplicate="skip" if on_duplicate == "error" else on_duplicate)


@caught_by("a_duplicate_is_skipped", "after skipping")
class SkippingReplaces(ExampleMemory):
    def add(self, documents, vectors, *, on_duplicate="error"):
        return super().add(documents, vectors, on_duplicate="replace" if on_duplicate == "skip" else on_duplicate)


@caught_by("a_duplicate_is_replaced", "a search after replacing")
class ReplacingKeepsTheVector(ExampleMemory):
    def add(self, documents, vectors, *, on_duplicate="error"):
        documents, vectors = list(documents), vectors.copy()
        for row, document in enumerate(documents):
            if on_duplicate == "replace" and document.id in self._rows:
                vectors[row] = self._rows[document.id][1]
        return super().add(documents, vectors, on_duplicate=on_duplicate)


@caught_by("documents_may_be_a_generator_and_its_error_stores_nothing", "TypeError")
class NeedsAList(ExampleMemory):
    def add(self, documents, vectors, **asked):
        return super().add(documents[: len(vectors)], vectors, **asked)


@caught_by("vectors_are_checked_and_nothing_is_stored", "a vector of norm 1.1")
class Normalises(ExampleMemory):
    def add(self, documents, vectors, **asked):
        with np.errstate(invalid="ignore"):
            return super().add(documents, vectors / np.linalg.norm(vectors, axis=1, keepdims=True), **asked)


@caught_by("prompts_and_other_things_are_refused", "raised nothing")
class TakesPrompts(ExampleMemory):
    def add(self, documents, vectors, **asked):
        taken = [Document("whatever") if isinstance(one, str) or one.blanks else one for one in documents]
        return super().add(taken, vectors, **asked)


@caught_by("inputs_are_left_alone", "read-only")
class WritesIntoItsInput(ExampleMemory):
    def add(self, documents, vectors, **asked):
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return super().add(documents, vectors, **asked)


@caught_by("inputs_are_left_alone", "inner product")
class KeepsTheCallersArray(ExampleMemory):
    def add(self, documents, vectors, **asked):
        ids = super().add(documents, vectors, **asked)
        self._rows |= {id: (self._rows[id][0], vector) for id, vector in zip(ids, vectors, strict=True)}
        return ids


@caught_by("requests_may_be_larger_than_a_backends_limit", "too many")
class HasALimit(ExampleMemory):
    def add(self, documents, vectors, **asked):
        if len(vectors) > 5461:
            raise ValueError("too many")
        return super().add(documents, vectors, **asked)


@caught_by("a_memory_belongs_to_one_encoder", "binding to")
class TakesAnyEncoder(ExampleMemory):
    def bind(self, encoder):
        self._encoder = encoder


# Reading and removing


@caught_by("items_are_streamed_in_the_order_of_adding", "items()")
class ItemsById(ExampleMemory):
    def items(self):
        return iter(sorted(super().items(), key=lambda item: item[0].id))


@caught_by("items_are_streamed_in_the_order_of_adding", "not an iterator")
class ItemsAsAList(ExampleMemory):
    def items(self):
        return list(super().items())


@caught_by("what_is_deleted_is_gone", "the number deleted")
class CountsWhatWasAsked(ExampleMemory):
    def delete(self, ids):
        super().delete(ids)
        return len(ids)


@caught_by("what_is_deleted_is_gone", "a search after delete()")
class FindsWhatWasDeleted(ExampleMemory):
    def delete(self, ids):
        self.graves = getattr(self, "graves", {}) | {id: self._rows[id] for id in ids if id in self._rows}
        return super().delete(ids)

    def search(self, vectors, **asked):
        kept, self._rows = self._rows, self._rows | getattr(self, "graves", {})
        try:
            return super().search(vectors, **asked)
        finally:
            self._rows = kept


@caught_by("random_documents_follow_the_generator", "two draws with one seed")
class DrawsAsItLikes(ExampleMemory):
    def random(self, n, *, rng, where=None):
        return super().random(n, rng=np.random.default_rng(), where=where)


@caught_by("random_documents_follow_the_generator", "does not depend on rng")
class DrawsTheFirst(ExampleMemory):
    def random(self, n, *, rng, where=None):
        hits = super().random(10**6, rng=rng, where=where)
        return list(islice(sorted(hits, key=lambda hit: hit.id), n))


# Life


@caught_by("another_process_finds_what_was_stored", "what a new process finds")
class Forgets(ExampleMemory):
    def _save(self, rows):
        self._rows = rows


@caught_by("refresh_takes_in_what_another_process_wrote", "after refresh()")
class NeverRefreshes(ExampleMemory):
    def refresh(self):
        if not self._rows:
            super().refresh()


@caught_by("threads_share_a_memory", "")
class HasNoLock(ExampleMemory):
    def _save(self, rows):
        time.sleep(0.005)
        super()._save(rows)

    def _open(self):
        from contextlib import nullcontext

        return nullcontext()


@caught_by("a_closed_memory_says_so", "raised nothing")
class NeverCloses(ExampleMemory):
    def close(self):
        pass


@caught_by("its_settings_can_be_described", "every setting is a keyword argument")
class TakesAnything(ExampleMemory):
    def __init__(self, path: Path, **anything):
        super().__init__(path)


@pytest.mark.parametrize(("contract", "check", "words"), CASES)
def test_a_wrong_memory_is_caught(caught, contract, check, words):
    caught(contract, check, words)


def test_a_heavy_module_is_caught(caught, tmp_path: Path, monkeypatch):
    (tmp_path / "heavy_memory.py").write_text(
        "import faiss\nfrom racm3.scaffold.memory import ExampleMemory\nclass Heavy(ExampleMemory): ...\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    heavy = importlib.import_module("heavy_memory")
    monkeypatch.delitem(sys.modules, "heavy_memory")
    monkeypatch.setitem(sys.modules, "heavy_memory", heavy)  # taken out again with the test

    contract = type("Heavy", (MemoryStoreContract,), {"open": lambda self, path: heavy.Heavy(path)})
    caught(contract, "test_importing_it_is_light", "importing heavy_memory imports faiss")


def test_a_plugin_that_imports_heavily_at_start_is_caught(caught, own_registry, install):
    """Although the component's own module is light."""
    source = """
    import faiss
    @hookimpl
    def racm3_components():
        yield Component(MemoryStore, "light", "light_memory:Light")
    """
    light = "from racm3.scaffold.memory import ExampleMemory\nclass Light(ExampleMemory): ..."
    install("racm3-heavy", source, modules={"light_memory": light})
    kind = importlib.import_module("light_memory").Light
    contract = type("Light", (MemoryStoreContract,), {"open": lambda self, path: kind(path)})
    caught(contract, "test_importing_it_is_light", "importing racm3_heavy imports faiss")


def test_a_skip_needs_a_reason_in_the_open():
    class Skips(MemoryStoreContract):
        skips: ClassVar = {"test_threads_share_a_memory": "one thread is enough"}

    class Misspells(MemoryStoreContract):
        skips: ClassVar = {"test_threads": "one thread is enough"}

    class Overrides(MemoryStoreContract):
        def test_threads_share_a_memory(self): ...

    class Removes(MemoryStoreContract):
        test_threads_share_a_memory = None

    def verdict(contract):
        (verdict,) = run(
            contract, only=["test_a_closed_memory_says_so" if contract is Removes else "test_threads_share_a_memory"]
        )
        return verdict.outcome, verdict.why

    assert verdict(Skips) == ("skipped", "one thread is enough")
    assert verdict(Misspells) == ("failed", "skips names ['test_threads'], and there is no such check")
    for contract in (Overrides, Removes):
        outcome, why = verdict(contract)
        assert outcome == "failed" and "overrides ['test_threads_share_a_memory']" in why
