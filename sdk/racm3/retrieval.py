"""From prompts to the documents that ground them (paper sections 3.1 and 3.2).

Nothing of a prompt's blanks is known here, so nothing of the answer can leak into the query.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .crossing import checked_candidates, checked_documents, checked_hits, checked_selection, checked_vectors
from .document import Document, Image, Text
from .interfaces import Hit, MemoryStore, Query, Retriever, Sampler, Selection, Where
from .registry import registry

if TYPE_CHECKING:
    import numpy as np

logger = logging.getLogger(__name__)

# Candidates asked for at first: enough that the sampler seldom runs out (method, section 3).
MIN_POOL = 64
POOL_PER_DOCUMENT = 16


def without_blanks(prompt: Document) -> Document | None:
    """What of a prompt can be searched by; None when it is all blanks and empty text."""
    parts = [part for part in prompt.parts if isinstance(part, Image) or (isinstance(part, Text) and part.text.strip())]
    if parts == list(prompt.parts):
        return prompt
    return Document(parts) if parts else None


def encode_queries(retriever: Retriever, queries: Sequence[Document]) -> np.ndarray:
    """Unit vectors, float32 [n, dim], checked."""
    return checked_vectors(retriever, retriever.encode_query(queries), count=len(queries), dim=retriever.encoder.dim)


def nearest_hits(memory: MemoryStore, vectors: np.ndarray, *, k: int, where: Where | None) -> list[list[Hit]]:
    """The k nearest of each vector, checked."""
    return checked_hits(memory, memory.search(vectors, k=k, where=where), count=len(vectors), k=k)


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
) -> list[Selection]:
    """What each prompt is grounded on: at most k documents. Observers are told, prompt by prompt.

    The pool of candidates doubles while the sampler finds fewer than k in it and the memory has more. A prompt with
    nothing to search by gets nothing. spent: seconds are added under "retrieve" and "sample".
    """
    import numpy as np

    selections = [Selection([]) for _ in prompts]
    shown = {index: without_blanks(prompt) for index, prompt in enumerate(prompts)}
    queries = {index: query for index, query in shown.items() if query is not None}
    if k == 0 or not queries:
        return selections
    with Clock(spent, "retrieve"):
        vectors = dict(zip(queries, encode_queries(retriever, list(queries.values())), strict=True))
    pool = max(MIN_POOL, POOL_PER_DOCUMENT * k)
    pending = list(queries)
    while pending:
        with Clock(spent, "retrieve"):
            found = nearest_hits(memory, np.stack([vectors[index] for index in pending]), k=pool, where=where)
        short: list[int] = []
        with Clock(spent, "sample"):
            for index, hits in zip(pending, found, strict=True):
                # Drawn anew for each pool, so that its size leaves no trace in the random numbers.
                rng = np.random.default_rng([seed, index])
                checked_candidates(memory, hits, dim=len(vectors[index]))
                selection = sampler.sample(Query(prompts[index], vectors[index]), list(hits), k=k, rng=rng)
                selections[index] = checked_selection(sampler, selection, hits, k=k)
                if len(selection.hits) < k and len(hits) == pool:
                    short.append(index)
        pending, pool = short, 2 * pool
    with Clock(spent, "retrieve"):
        # Read now: an answer is of use after the memory is closed, or has changed.
        for hits in (selection.hits for selection in selections):
            checked_documents(memory, [hit.id for hit in hits], [hit.document for hit in hits])
    for index in queries:
        registry().notify_retrieved(Query(prompts[index], vectors[index]), selections[index])
    if not any(selections[index].hits for index in queries):
        why = "no document passes the filter" if where and len(memory) else "the memory is empty"
        logger.warning("Nothing was retrieved: %s.", why)
        warnings.warn(f"Nothing was retrieved: {why}. The answer is not grounded.", stacklevel=4)
    return selections


class Clock:
    """Adds the seconds spent inside to a stage."""

    def __init__(self, spent: dict[str, float], stage: str) -> None:
        self.spent, self.stage = spent, stage

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *exception: object) -> None:
        self.spent[self.stage] = self.spent.get(self.stage, 0.0) + time.perf_counter() - self.start
