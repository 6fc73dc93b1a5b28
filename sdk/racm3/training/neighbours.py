"""Neighbours, prepared once: which documents each training document would have retrieved (paper section 3.3).

The query is the text part or the image part of a document, never both, with a share of it dropped; the document itself
is left out by row and by content hash, and so is whatever shares its `group` (another drawing by the same hand, say).
Documents are worked on a block at a time, so that millions of them fit into memory, and a preparation that was killed
goes on with the block that it was at.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from ..document import Document, Image, Text
from ..errors import CheckpointError
from ..interfaces import Hit, Progress, Query, Retriever, Sampler
from ..samplers.diverse import DiverseSampler
from ..samplers.topk import TopKSampler
from .data import generator_at
from .neighbour_search import Candidates, NeighbourSearch
from .prepared_array import prepared_array

QueryForm = Literal["text", "image"]
BLOCK = 1024  # part of what makes the random draws: another value gives other neighbours
MOST = 16  # times as many candidates as there are at first: in some worlds all documents are alike
NEIGHBOUR = np.dtype([("row", np.int32), ("score", np.float32)])


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
    float32 of the same shape, inner products with the query (None where an earlier version did not keep them); forms:
    what the queries were."""

    rows: np.ndarray
    fingerprint: str
    scores: np.ndarray | None = None
    forms: tuple[QueryForm, ...] = ("text", "image")

    def save(self, folder: Path) -> None:
        """Write `neighbours.npy` and `neighbours.json`."""
        folder.mkdir(parents=True, exist_ok=True)
        table: np.ndarray = self.rows
        if self.scores is not None:
            table = np.empty(self.rows.shape, NEIGHBOUR)
            table["row"], table["score"] = self.rows, self.scores
        np.save(folder / "neighbours.npy", table, allow_pickle=False)
        (folder / "neighbours.json").write_text(json.dumps({"fingerprint": self.fingerprint}))

    @classmethod
    def load(
        cls, folder: Path, *, fingerprint: str, name: str = "neighbours", forms: tuple[QueryForm, ...] = ("text", "image")
    ) -> Neighbours:  # fmt: skip
        """Open prepared neighbours; `CheckpointError` if another retriever, or other settings, made them."""
        found = json.loads((folder / f"{name}.json").read_text())["fingerprint"]
        if found != fingerprint:
            raise CheckpointError(
                f"The neighbours in {folder} were made by another retriever or with other settings.",
                "Delete the folder to prepare them again.",
            )
        return cls._of(np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False), found, forms)

    @classmethod
    def _of(cls, table: np.ndarray, fingerprint: str, forms: tuple[QueryForm, ...]) -> Neighbours:
        if table.dtype.names is None:
            return cls(table, fingerprint, forms=forms)
        return cls(table["row"], fingerprint, table["score"], forms)


def prepare_neighbours(
    documents: Sequence[Document],
    groups: Sequence[str],
    training: np.ndarray,
    held_out: np.ndarray,
    retriever: Retriever,
    sampler: Sampler,
    settings: NeighbourSettings,
    *,
    folder: Path | None = None,
    name: str = "neighbours",
    digest: str = "",
    progress: Progress | None = None,
) -> Neighbours:
    """Retrieve and sample for every document, query form and dropout draw; a document's rows and scores stay on disk.

    documents: may make each document when it is asked for. groups: [n], see above. training, held_out: row numbers. A
    training document finds training documents only, a held-out one all; its query is whole, as at inference. folder:
    where vectors and neighbours are kept, and taken up again; without one, nothing is. name: of the table in it, of
    which there may be several with the same vectors. digest: of the documents.

    Raises `CheckpointError` if what is in the folder, finished or not, was made by another retriever, with other
    settings, or of other documents.
    """
    if folder is None:
        with tempfile.TemporaryDirectory() as scratch:
            found = prepare_neighbours(
                documents, groups, training, held_out, retriever, sampler, settings, folder=Path(scratch),
                digest=digest, progress=progress,
            )  # fmt: skip
            return replace(found, rows=np.array(found.rows), scores=np.array(found.scores))
    fingerprint = neighbour_fingerprint(retriever, settings)
    if (folder / f"{name}.npy").is_file():
        Neighbours.load(folder, fingerprint=fingerprint, name=name)
    made_of = {"documents": digest} if digest else {}

    def encode(start: int, stop: int) -> np.ndarray:
        return retriever.encode_document(documents[start:stop])

    @cache
    def work() -> _Preparation:  # made when the first block is due: not for neighbours that are all there
        vectors = prepared_array(
            folder / "vectors.npy", (len(documents), retriever.encoder.dim), np.float32,
            {"retriever": retriever.encoder.fingerprint, **made_of}, encode, block=BLOCK,
            what="document vectors", progress=progress,
        )  # fmt: skip
        search = NeighbourSearch(vectors, documents, groups, training, held_out)
        return _Preparation(documents, search, held_out, retriever, sampler, settings)

    shape = (len(documents), len(settings.forms), settings.draws, settings.keep)
    table = prepared_array(
        folder / f"{name}.npy", shape, NEIGHBOUR, {"fingerprint": fingerprint, **made_of},
        lambda start, stop: work().block(start, stop), block=BLOCK, what="neighbours", progress=progress,
    )  # fmt: skip
    return Neighbours._of(table, fingerprint, settings.forms)


@dataclass(frozen=True)
class _Preparation:
    """Neighbours of a block of documents."""

    documents: Sequence[Document]
    search: NeighbourSearch
    held_out: np.ndarray
    retriever: Retriever
    sampler: Sampler
    settings: NeighbourSettings

    def block(self, start: int, stop: int) -> np.ndarray:
        """NEIGHBOUR [stop - start, forms, draws, keep]."""
        settings = self.settings
        table = np.zeros((stop - start, len(settings.forms), settings.draws, settings.keep), NEIGHBOUR)
        table["row"] = -1
        rows = np.arange(start, stop)
        apart = np.isin(rows, self.held_out)
        documents = self.documents[start:stop]
        for asking, dropout, everything in ((rows[~apart], settings.dropout, False), (rows[apart], 0.0, True)):
            for f, form in enumerate(settings.forms if len(asking) else ()):
                queries = [_part(documents[row - start], form) for row in asking]
                for draw in range(settings.draws):
                    rng = generator_at(settings.seed, f, draw, start)
                    asked = self.retriever.encode_query(queries, dropout=dropout, rng=rng)  # [asking, dim]
                    chosen = self._chosen(asking, [*map(Query, queries, asked)], asked, everything, rng)
                    for row, hits in zip(asking, chosen, strict=True):
                        for place, hit in enumerate(hits):
                            table[row - start, f, draw, place] = (int(hit.id), hit.score)
        return table

    def _chosen(
        self, asking: np.ndarray, queries: list[Query], asked: np.ndarray, everything: bool, rng: np.random.Generator
    ) -> list[list[Hit]]:
        """What the sampler keeps for each query (asked: float32 [asking, dim]), from as many candidates as that takes."""
        keep, wanted = self.settings.keep, self.settings.candidates
        chosen: list[list[Hit]] = [[] for _ in asking]
        waiting = np.arange(len(asking))
        while len(waiting) and wanted <= MOST * self.settings.candidates:
            short = []
            found = self.search.candidates(asking[waiting], asked[waiting], wanted, everything=everything)
            for place, candidates in zip(waiting.tolist(), found, strict=True):
                chosen[place] = self.sampler.sample(queries[place], self._hits(candidates), k=keep, rng=rng).hits
                if len(chosen[place]) < keep and len(candidates) == wanted:
                    short.append(place)
            waiting, wanted = np.array(short, np.int64), 2 * wanted
        return chosen

    def _hits(self, candidates: Candidates) -> list[Hit]:
        return [
            Hit(
                id=str(row), score=score, vector=self.search.vectors[row], hashes=self.search.parts[row],
                load=lambda row=row: self.documents[row],  # type: ignore[misc]
            )
            for row, score in candidates
        ]  # fmt: skip


def neighbour_fingerprint(retriever: Retriever, settings: NeighbourSettings) -> str:
    """What prepared neighbours depend on, besides the documents."""
    # Tables that were made before there was a choice of samplers stay valid.
    made = settings.model_dump_json(exclude={"sampler"} if settings.sampler == "diverse" else None)
    return f"{retriever.encoder.fingerprint}/{made}"


def _part(document: Document, form: QueryForm) -> Document:
    kind = Text if form == "text" else Image
    return Document([part for part in document.parts if isinstance(part, kind)])
