"""From prompts to the documents that ground them (paper sections 3.1 and 3.2).

Nothing of a prompt's blanks is known here, so nothing of the answer can leak into the query.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from .crossing import calling, checked_candidates, checked_documents, checked_hits, checked_selection, checked_vectors
from .document import Document, Image, MaskedImage, MaskedText, Part, Text
from .interfaces import Hit, MemoryStore, Query, Retriever, Sampler, Selection, Where
from .memories.where import parse
from .registry import registry
from .seeds import stream_keys

if TYPE_CHECKING:
    import numpy as np

# Candidates asked for at first: enough that the sampler seldom runs out (method, section 3).
MIN_POOL = 64
POOL_PER_DOCUMENT = 16
MOST_POOL = 4096  # candidates; what is still further off than so many is no document to ground an answer on


class NotGrounded(UserWarning):
    """An answer stands on no document, although some were asked for."""


def check_filter(where: Where | None) -> None:
    """Raise `FilterError` for a filter that is not well formed: all memories have one language, and what is wrong in it
    is said before any weights are loaded."""
    if where is not None:
        parse(where)


def why_nothing(memory: MemoryStore, where: Where | None) -> str:
    """In words, why a search found no document."""
    if not len(memory):
        return "the memory is empty"
    return "no document passes the filter" if where else "the memory gave no document"


def without_blanks(prompt: Document) -> Document | None:
    """What of a prompt can be searched by; None when it is all blanks and empty text."""
    parts: list[Part] = []
    for part in prompt.parts:
        if isinstance(part, MaskedImage):
            part = part.shown
        elif isinstance(part, MaskedText):
            part = Text(f"{part.before} {part.after}")
        if isinstance(part, Image) or (isinstance(part, Text) and part.text.strip()):
            parts.append(part)
    if parts == list(prompt.parts):
        return prompt
    return Document(parts) if parts else None


def encode_documents(
    retriever: Retriever, documents: Sequence[Document], *, batch_size: int | None = None
) -> np.ndarray:
    """Unit vectors, float32 [n, dim], checked."""
    with calling(retriever):
        vectors, dim = retriever.encode_document(documents, batch_size=batch_size), retriever.encoder.dim
    return checked_vectors(retriever, vectors, count=len(documents), dim=dim)


def encode_queries(retriever: Retriever, queries: Sequence[Document]) -> np.ndarray:
    """Unit vectors, float32 [n, dim], checked."""
    with calling(retriever):
        vectors, dim = retriever.encode_query(queries), retriever.encoder.dim
    return checked_vectors(retriever, vectors, count=len(queries), dim=dim)


def nearest_hits(
    memory: MemoryStore, vectors: np.ndarray, *, k: int, where: Where | None, exclude: Collection[str] = ()
) -> list[list[Hit]]:
    """The k nearest of each vector, checked. exclude: ids and content hashes to leave out."""
    without = [exclude] * len(vectors) if exclude else None
    with calling(memory):
        found = memory.search(vectors, k=k, where=where, exclude=without)
    return checked_hits(memory, found, count=len(vectors), k=k)


def retrieve(
    retriever: Retriever,
    memory: MemoryStore,
    sampler: Sampler,
    prompts: Sequence[Document],
    *,
    k: int,
    where: Where | None,
    seed: int,
    spent: dict[str, float],
    exclude: Collection[str] = (),
) -> list[Selection]:
    """What each prompt is grounded on: at most k documents. Observers are told, prompt by prompt.

    The pool of candidates doubles, up to `MOST_POOL`, while the sampler finds fewer than k in it and the memory has more. A
    prompt with nothing to search by gets nothing. spent: seconds are added under "retrieve" and "sample". exclude: ids and
    content hashes of documents that are given already. A sampler's random numbers come from the seed and the prompt, so
    that the same documents are chosen whatever else is asked in the same call.
    """
    import numpy as np

    selections = [Selection([]) for _ in prompts]
    shown = {index: without_blanks(prompt) for index, prompt in enumerate(prompts)}
    queries = {index: query for index, query in shown.items() if query is not None}
    if k == 0 or not queries:
        return selections
    with Clock(spent, "retrieve"):
        vectors = dict(zip(queries, encode_queries(retriever, list(queries.values())), strict=True))
    streams = stream_keys(prompts)
    pool = max(MIN_POOL, POOL_PER_DOCUMENT * k)
    pending = list(queries)
    while pending:
        with Clock(spent, "retrieve"):
            found = nearest_hits(
                memory, np.stack([vectors[index] for index in pending]), k=pool, where=where, exclude=exclude
            )
        short: list[int] = []
        with Clock(spent, "sample"):
            for index, hits in zip(pending, found, strict=True):
                # Drawn anew for each pool, so that its size leaves no trace in the random numbers.
                rng = np.random.default_rng([seed, *streams[index]])
                checked_candidates(memory, hits, dim=len(vectors[index]))
                with calling(sampler):
                    selection = sampler.sample(Query(prompts[index], vectors[index]), list(hits), k=k, rng=rng)
                selections[index] = checked_selection(sampler, selection, hits, k=k)
                if len(selection.hits) < k and len(hits) == pool < MOST_POOL:
                    short.append(index)
        pending, pool = short, 2 * pool
    with Clock(spent, "retrieve"):
        # Read now: an answer is of use after the memory is closed, or has changed.
        for hits in (selection.hits for selection in selections):
            with calling(memory):
                documents = [hit.document for hit in hits]
            checked_documents(memory, [hit.id for hit in hits], documents)
    for index in queries:
        registry().notify_retrieved(Query(prompts[index], vectors[index]), selections[index])
    if not any(selections[index].hits for index in queries):
        passed_over = any(selections[index].skipped for index in queries)
        why = "the sampler passed over every document" if passed_over else why_nothing(memory, where)
        warnings.warn(f"Nothing was retrieved: {why}. The answer is not grounded.", NotGrounded, stacklevel=5)
    return selections


class Clock:
    """Adds the seconds spent inside to a stage."""

    def __init__(self, spent: dict[str, float], stage: str) -> None:
        self.spent, self.stage = spent, stage

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *exception: object) -> None:
        self.spent[self.stage] = self.spent.get(self.stage, 0.0) + time.perf_counter() - self.start
