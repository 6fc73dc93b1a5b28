"""Neighbours, prepared once: which documents each training document would have retrieved (paper section 3.3).

The query is the text part or the image part of a document, never both, with a share of it dropped; the document itself
is left out by row and by content hash, and so is whatever shares its `group` (another drawing by the same hand, say).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from ..document import Document, Image, Text
from ..errors import CheckpointError
from ..interfaces import Hit, Progress, Query, Retriever, Sampler
from .data import generator_at

QueryForm = Literal["text", "image"]


class NeighbourSettings(BaseModel):
    """The `[neighbours]` table of a recipe, with the method's defaults."""

    model_config = ConfigDict(extra="forbid")

    forms: tuple[QueryForm, ...] = Field(("text", "image"), description="query forms, drawn uniformly in training")
    draws: int = Field(2, ge=1, description="query-dropout draws for each document and form")
    dropout: float = Field(0.2, ge=0, lt=1, description="share of the query's tokens or patches that is dropped")
    candidates: int = Field(32, ge=1, description="candidates that the sampler sees")
    keep: int = Field(4, ge=1, description="documents kept after sampling: the largest K in training")
    threshold: float = Field(0.9, gt=0, le=1, description="of the sampler: closer than this is redundant")
    seed: int = 0


@dataclass(frozen=True)
class Neighbours:
    """rows: int32 [documents, forms, draws, keep], row numbers of the chosen documents, -1 where there are fewer."""

    rows: np.ndarray
    fingerprint: str

    def save(self, folder: Path) -> None:
        """Write `neighbours.npy` and `neighbours.json`."""
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "neighbours.npy", self.rows, allow_pickle=False)
        (folder / "neighbours.json").write_text(json.dumps({"fingerprint": self.fingerprint}))

    @classmethod
    def load(cls, folder: Path, *, fingerprint: str) -> Neighbours:
        """Open prepared neighbours; `CheckpointError` if another retriever, or other settings, made them."""
        found = json.loads((folder / "neighbours.json").read_text())["fingerprint"]
        if found != fingerprint:
            raise CheckpointError(
                f"The neighbours in {folder} were made by another retriever or with other settings.",
                "Delete the folder to prepare them again.",
            )
        return cls(np.load(folder / "neighbours.npy", mmap_mode="r", allow_pickle=False), found)


def prepare_neighbours(
    documents: Sequence[Document],
    groups: Sequence[str],
    training: np.ndarray,
    held_out: np.ndarray,
    retriever: Retriever,
    sampler: Sampler,
    settings: NeighbourSettings,
    *,
    progress: Progress | None = None,
) -> Neighbours:
    """Retrieve and sample for every document, query form and dropout draw.

    groups: [n], see above. training, held_out: row numbers. A training document finds training documents only, a
    held-out one all; its query is whole, as at inference.
    """
    import faiss

    vectors = retriever.encode_document(documents)  # [n, dim]
    hashes = [document.content_hash for document in documents]
    # Enough for the candidates after everything of the same group has been left out.
    crowd = int(np.unique(np.asarray(groups), return_counts=True)[1].max())
    rows = np.full((len(documents), len(settings.forms), settings.draws, settings.keep), -1, np.int32)
    sides = ((training, training, settings.dropout), (held_out, np.concatenate([training, held_out]), 0.0))
    total, done = len(settings.forms) * settings.draws * len(sides), 0
    for asking, memory, dropout in sides:
        index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(np.ascontiguousarray(vectors[memory]))
        pool = min(len(memory), settings.candidates + crowd)
        for f, form in enumerate(settings.forms):
            queries = [_part(documents[i], form) for i in asking]
            for draw in range(settings.draws):
                rng = generator_at(settings.seed, f, draw)
                asked = retriever.encode_query(queries, dropout=dropout, rng=rng)  # [asking, dim]
                _, found = index.search(asked, pool)
                for i, query, vector, candidates in zip(asking, queries, asked, memory[found], strict=True):
                    allowed = [j for j in candidates if groups[j] != groups[i] and hashes[j] != hashes[i] and j != i]
                    hits = [
                        Hit(documents[j], score=float(vector @ vectors[j]), vector=vectors[j], id=str(j))
                        for j in allowed[: settings.candidates]
                    ]
                    chosen = sampler.sample(Query(query, vector), hits, k=settings.keep, rng=rng).hits
                    rows[i, f, draw, : len(chosen)] = [int(hit.id) for hit in chosen]
                done += 1
                if progress is not None:
                    progress(done, total, f"neighbours by {form}")
    return Neighbours(rows, neighbour_fingerprint(retriever, settings))


def neighbour_fingerprint(retriever: Retriever, settings: NeighbourSettings) -> str:
    """What prepared neighbours depend on, besides the documents."""
    return f"{retriever.encoder.fingerprint}/{settings.model_dump_json()}"


def _part(document: Document, form: QueryForm) -> Document:
    kind = Text if form == "text" else Image
    return Document([part for part in document.parts if isinstance(part, kind)])
