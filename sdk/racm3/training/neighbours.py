"""Neighbours, prepared once: which documents each training document would have retrieved (paper section 3.3).

The query is the text part or the image part of a document, never both, with a share of it dropped; the document itself
is left out by row and by content hash, and so is whatever shares its `group` (another drawing by the same hand, say).
What a query finds is kept as it is, with scores, and beside it what the sampler makes of that: another sampler, or another
threshold of it, asks for nothing anew. Documents are worked on a block at a time, so that millions of them fit into memory,
and a preparation that was killed goes on with the block that it was at.

    vectors.npy           of the documents, float32 [n, dim]
    candidates-*.npy      row and score of what each query finds, best first: NEIGHBOUR [n, forms, draws, candidates]
    neighbours-*.npy      of these, what the sampler keeps: NEIGHBOUR [n, forms, draws, keep]
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from ..document import Document, Image, Text
from ..interfaces import Hit, Progress, Query, Retriever, Sampler
from ..samplers.diverse import DiverseSampler
from ..samplers.topk import TopKSampler
from .data import generator_at
from .neighbour_search import Candidates, NeighbourSearch
from .prepared_array import prepared_array

QueryForm = Literal["text", "image"]
BLOCK = 1024  # part of what makes the random draws: another value gives other neighbours
MOST = 16  # times as many candidates as there are at first: in some worlds all documents are alike
NEIGHBOUR = np.dtype([("row", np.int32), ("score", np.float32)])  # row -1: there is none
FOUND_BY = {"forms", "draws", "dropout", "candidates", "seed"}  # the settings that candidates depend on


class NeighbourSettings(BaseModel):
    """The `[neighbours]` table of a recipe, with the method's defaults."""

    model_config = ConfigDict(extra="forbid")

    forms: tuple[QueryForm, ...] = Field(
        ("text", "image"), min_length=1, description="query forms, drawn uniformly in training"
    )
    draws: int = Field(2, ge=1, description="query-dropout draws for each document and form")
    dropout: float = Field(0.2, ge=0, lt=1, description="share of the query's tokens or patches that is dropped")
    candidates: int = Field(
        64, ge=1, description="candidates that the sampler sees; twice as many while it finds too few among them"
    )
    keep: int = Field(4, ge=1, description="documents kept after sampling: the largest K in training")
    sampler: Literal["diverse", "topk"] = Field(
        "diverse", description="diverse: passes over what is redundant; topk: the plain baseline, worse in the paper"
    )
    threshold: float = Field(0.9, gt=0, le=1, description="of the sampler diverse: closer than this is redundant")
    seed: int = Field(0, ge=0, description="of the dropout")

    def make_sampler(self) -> Sampler:
        """The sampler that these settings name."""
        return DiverseSampler(self.threshold) if self.sampler == "diverse" else TopKSampler()


@dataclass(frozen=True)
class Neighbours:
    """rows: int32 [documents, forms, draws, keep], row numbers of the chosen documents, -1 where there are fewer; scores:
    float32 of the same shape, inner products with the query; forms: what the queries were."""

    rows: np.ndarray
    scores: np.ndarray | None = None
    forms: tuple[QueryForm, ...] = ("text", "image")


def prepare_neighbours(
    documents: Sequence[Document],
    groups: Sequence[str],
    training: np.ndarray,
    held_out: np.ndarray,
    retriever: Retriever,
    settings: NeighbourSettings,
    *,
    folder: Path | None = None,
    digest: str = "",
    progress: Progress | None = None,
) -> Neighbours:
    """Retrieve and sample for every document, query form and dropout draw; rows and scores stay on disk, of the candidates
    as well.

    documents: may make each document when it is asked for. groups: [n], see above. training, held_out: row numbers. A
    training document finds training documents only, a held-out one all; its query is whole, as at inference. folder:
    where all of it is kept, and taken up again, for any number of settings; without one, nothing is. digest: of the
    documents.

    Raises `CheckpointError` if what is in the folder was made by another retriever, or of other documents.
    """
    if folder is None:
        with tempfile.TemporaryDirectory() as scratch:
            found = prepare_neighbours(
                documents, groups, training, held_out, retriever, settings, folder=Path(scratch), digest=digest,
                progress=progress,
            )  # fmt: skip
            return replace(found, rows=np.array(found.rows), scores=np.array(found.scores))
    encoder, made_of = retriever.encoder, {"documents": digest} if digest else {}

    # Named by what they are made with: tables of several samplers share what was found.
    found_by = f"{encoder.fingerprint}/{settings.model_dump_json(include=FOUND_BY)}"
    chosen_by = f"{encoder.fingerprint}/{settings.model_dump_json()}"

    def place(kind: str, made_with: str) -> Path:
        return folder / f"{kind}-{hashlib.sha256(made_with.encode()).hexdigest()[:8]}.npy"

    def prepared(kind: str, made_with: str, width: int, compute: Callable[[int, int], np.ndarray]) -> np.ndarray:
        return prepared_array(
            place(kind, made_with), (len(documents), len(settings.forms), settings.draws, width), NEIGHBOUR,
            {"fingerprint": made_with, **made_of}, compute, block=BLOCK, what=kind, progress=progress,
        )  # fmt: skip

    @cache
    def work() -> _Preparation:  # made when the first block is due: not for tables that are all there
        vectors = prepared_array(
            folder / "vectors.npy", (len(documents), encoder.dim), np.float32,
            {"retriever": encoder.fingerprint, **made_of},
            lambda start, stop: retriever.encode_document(documents[start:stop]), block=BLOCK, what="document vectors",
            progress=progress,
        )  # fmt: skip
        search = NeighbourSearch(vectors, documents, groups, training, held_out)
        return _Preparation(documents, search, held_out, retriever, settings, settings.make_sampler())

    @cache
    def candidates() -> np.ndarray:
        return prepared("candidates", found_by, settings.candidates, lambda start, stop: work().found(start, stop))

    if not place("neighbours", chosen_by).is_file():
        candidates()  # first, so that the rate of what follows is its own
    table = prepared(
        "neighbours", chosen_by, settings.keep,
        lambda start, stop: work().chosen(start, stop, candidates()[start:stop]),
    )  # fmt: skip
    return Neighbours(table["row"], table["score"], settings.forms)


@dataclass(frozen=True)
class _Asking:
    """Queries of one form and dropout draw. rows: of their documents; start: the first row of the block that they are of;
    everything: whether they may find held-out documents."""

    rows: np.ndarray
    queries: list[Document]
    form: int
    draw: int
    start: int
    dropout: float
    everything: bool


@dataclass(frozen=True)
class _Preparation:
    """Candidates and neighbours of a block of documents."""

    documents: Sequence[Document]
    search: NeighbourSearch
    held_out: np.ndarray
    retriever: Retriever
    settings: NeighbourSettings
    sampler: Sampler

    def found(self, start: int, stop: int) -> np.ndarray:
        """NEIGHBOUR [stop - start, forms, draws, candidates]."""
        table = self._table(stop - start, self.settings.candidates)
        for asking in self._asked(start, stop):
            vectors = self._vectors(asking)
            found = self.search.candidates(asking.rows, vectors, self.settings.candidates, everything=asking.everything)
            for row, candidates in zip(asking.rows, found, strict=True):
                table[row - start, asking.form, asking.draw, : len(candidates)] = candidates
        return table

    def chosen(self, start: int, stop: int, found: np.ndarray) -> np.ndarray:
        """What the sampler keeps of these candidates: NEIGHBOUR [stop - start, forms, draws, keep]."""
        table = self._table(stop - start, self.settings.keep)
        for asking in self._asked(start, stop):
            here = found[asking.rows - start, asking.form, asking.draw]
            candidates = [one[one["row"] >= 0].tolist() for one in here]
            for row, hits in zip(asking.rows, self._chosen(asking, candidates), strict=True):
                kept = [(int(hit.id), hit.score) for hit in hits]
                table[row - start, asking.form, asking.draw, : len(kept)] = kept
        return table

    def _chosen(self, asking: _Asking, found: list[Candidates]) -> list[list[Hit]]:
        """For each query, from as many candidates as it takes: those that were found, or more of them."""
        settings, wanted = self.settings, self.settings.candidates
        rng = generator_at(settings.seed, asking.form, asking.draw, asking.start)
        chosen: list[list[Hit]] = [[] for _ in found]
        waiting, vectors = np.arange(len(found)), None
        while True:
            short = []
            for place, candidates in zip(waiting.tolist(), found, strict=True):
                query = Query(asking.queries[place])
                chosen[place] = self.sampler.sample(query, self._hits(candidates), k=settings.keep, rng=rng).hits
                if len(chosen[place]) < settings.keep and len(candidates) == wanted:
                    short.append(place)
            waiting, wanted = np.array(short, np.int64), 2 * wanted
            if not short or wanted > MOST * settings.candidates:
                return chosen
            vectors = self._vectors(asking) if vectors is None else vectors
            found = self.search.candidates(asking.rows[waiting], vectors[waiting], wanted, everything=asking.everything)

    def _asked(self, start: int, stop: int) -> Iterator[_Asking]:
        """All queries of a block: those of training documents with dropout, held-out ones whole."""
        settings, rows, documents = self.settings, np.arange(start, stop), self.documents[start:stop]
        apart = np.isin(rows, self.held_out)
        for asking, dropout, everything in ((rows[~apart], settings.dropout, False), (rows[apart], 0.0, True)):
            for number, form in enumerate(settings.forms if len(asking) else ()):
                queries = [_part(documents[row - start], form) for row in asking]
                for draw in range(settings.draws):
                    yield _Asking(asking, queries, number, draw, start, dropout, everything)

    def _vectors(self, asking: _Asking) -> np.ndarray:
        """float32 [queries, dim]: the same ones, whenever they are asked for."""
        rng = generator_at(self.settings.seed, asking.form, asking.draw, asking.start)
        return self.retriever.encode_query(asking.queries, dropout=asking.dropout, rng=rng)

    def _table(self, documents: int, width: int) -> np.ndarray:
        table = np.zeros((documents, len(self.settings.forms), self.settings.draws, width), NEIGHBOUR)
        table["row"] = -1
        return table

    def _hits(self, candidates: Candidates) -> list[Hit]:
        return [
            Hit(
                id=str(row), score=score, vector=self.search.vectors[row], hashes=self.search.parts[row],
                load=lambda row=row: self.documents[row],  # type: ignore[misc]
            )
            for row, score in candidates
            if not self._is_too_close(score)
        ]  # fmt: skip

    def _is_too_close(self, score: float) -> bool:
        """Whether the sampler would pass over it. It is not asked: it would want the query's vector, which is not kept, but
        whose product with the document is the score."""
        return isinstance(self.sampler, DiverseSampler) and self.sampler.is_too_close(score)


def _part(document: Document, form: QueryForm) -> Document:
    kind = Text if form == "text" else Image
    return Document([part for part in document.parts if isinstance(part, kind)])
