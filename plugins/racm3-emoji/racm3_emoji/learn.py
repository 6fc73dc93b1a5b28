"""New knowledge without training, on the emoji world: unseen things, before and after their documents are remembered."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from racm3 import Pipeline
from racm3.evaluation.learning import Learning, measure_learning
from racm3.evaluation.pairs import Pair
from racm3.memories.faiss import FaissMemory
from racm3.retrievers.clip import ClipRetriever

from .bundle import BUNDLE, held_out_documents

if TYPE_CHECKING:
    from racm3 import Document
    from racm3.interfaces import Progress


def learn(entities: int | None = None, *, seeds: int = 1, progress: Progress | None = None) -> Learning:
    """Draw the held-out drawings with a memory of training documents alone; remember what other vendors drew of them,
    and draw again. entities: only so many, evenly spread over all."""
    held_out = list(held_out_documents())
    known = sorted({str(document.metadata["entity"]) for document in held_out})
    if entities is not None and entities < len(known):
        known = [known[i] for i in np.linspace(0, len(known) - 1, entities).astype(int)]
    pairs = [
        Pair(document, document.texts, str(document.metadata["entity"]))
        for document in held_out
        if document.metadata["entity"] in set(known)
    ]
    with Pipeline.from_preset("emoji") as shipped:
        memory, new = _without(shipped, {str(document.metadata["entity"]) for document in held_out})
        with Pipeline(
            shipped.retriever, memory, shipped.sampler, shipped.generator, options=shipped.options
        ) as pipeline:
            documents = [document for document in new if document.metadata["entity"] in set(known)]
            evaluator = ClipRetriever(str(BUNDLE / "evaluation-encoder"))
            return measure_learning(pipeline, pairs, documents, evaluator, seeds=seeds, progress=progress)


def _without(shipped: Pipeline, entities: set[str]) -> tuple[FaissMemory, list[Document]]:
    """A copy of the shipped memory that lacks some entities, and the documents that it lacks."""
    memory, lacking, kept, vectors = FaissMemory(), [], [], []
    memory.bind(shipped.retriever.encoder)
    for document, vector in shipped.memory.items():
        if document.metadata["entity"] in entities:
            lacking.append(document)
        else:
            kept.append(document)
            vectors.append(vector)
    memory.add(kept, np.stack(vectors))
    return memory, lacking
