"""New knowledge without training: does a model draw what it never saw, once documents about it are in its memory?"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..answering import all_options
from ..document import Document, Image
from ..errors import ConfigError, DuplicateDocument, GenerationError
from ..interfaces import Progress, Retriever
from ..options import Options
from ..pipeline import Pipeline
from .bootstrap import Figure, mean_figure
from .grounding import Grounding
from .pairs import Pair
from .recall import retrieval


@dataclass(frozen=True)
class Learning:
    """Recall@1 of drawings of the pairs' entities before and after, and what it took.

    documents: how many were added. seconds: for encoding and storing them; nothing was trained.
    """

    before: Figure
    after: Figure
    pairs: int
    entities: int
    documents: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def measure_learning(
    pipeline: Pipeline,
    pairs: Sequence[Pair],
    documents: Sequence[Document],
    encoder: Retriever,
    *,
    k: int = 2,
    seeds: int = 1,
    options: Options | Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Learning:
    """Draw each pair's caption, add the documents to the pipeline's memory, where they stay, and draw it again.

    encoder: in whose space a drawing is compared with the true pictures of all pairs. Raises `DuplicateDocument` where a
    document is in the memory before, `GenerationError` without a generator, `ConfigError` without pairs or documents.
    """
    if pipeline.generator is None:
        raise GenerationError("This pipeline has no generator.", "Give one: [generator].")
    if not pairs or not documents:
        raise ConfigError(f"There are {len(pairs)} things to draw and {len(documents)} documents to learn them from.")
    known = [document for document in pipeline.memory.get([one.id for one in documents]) if document is not None]
    if known:
        raise DuplicateDocument(
            f"{len(known)} of the documents are in the memory before, {known[0].id!r} among them.",
            "Measure on a memory that lacks them.",
        )
    truth = encoder.encode_query([Document(pair.image) for pair in pairs])
    options = all_options(pipeline.generator.options_type, options, defaults=pipeline.options, seed=0)
    before = _recall(pipeline, pairs, truth, encoder, k, seeds, options, progress, 0)
    began = time.perf_counter()
    pipeline.add(documents)
    seconds = time.perf_counter() - began
    after = _recall(pipeline, pairs, truth, encoder, k, seeds, options, progress, seeds)
    return Learning(before, after, len(pairs), len({pair.entity for pair in pairs}), len(documents), round(seconds, 3))


def _recall(
    pipeline: Pipeline,
    pairs: Sequence[Pair],
    truth: np.ndarray,
    encoder: Retriever,
    k: int,
    seeds: int,
    options: Options,
    progress: Progress | None,
    done: int,
) -> Figure:
    assert pipeline.generator is not None
    entities = [pair.entity for pair in pairs]
    requests = Grounding(pipeline, pairs, k).requests("image", "retrieved")
    hits = []
    for seed in range(seeds):
        outputs = pipeline.generator.generate(requests, options=options.model_copy(update={"n": 1, "seed": seed}))
        drawn: list[Image] = [samples[0].document.images[-1] for samples in outputs]
        vectors = encoder.encode_query([Document(picture) for picture in drawn])
        hits.append(retrieval(vectors, truth, entities, entities).hits)
        if progress is not None:
            progress(done + seed + 1, 2 * seeds, "drawing")
    return mean_figure(np.mean(hits, axis=0), entities)
