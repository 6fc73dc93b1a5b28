"""The components that come with racm3, registered through the same hook as any plugin's."""

from __future__ import annotations

from collections.abc import Iterator

from .hookspecs import Component, hookimpl
from .interfaces import Generator, MemoryStore, Retriever, Sampler


@hookimpl
def racm3_components() -> Iterator[Component]:
    yield Component(
        Retriever, "clip", "racm3.retrievers.clip:ClipRetriever", summary="CLIP by open_clip: text, images, and both"
    )
    yield Component(
        MemoryStore, "faiss", "racm3.memories.faiss:FaissMemory", summary="A folder: SQLite documents, FAISS search"
    )
    yield Component(
        Sampler, "diverse", "racm3.samplers.diverse:DiverseSampler", summary="Relevant, without near duplicates"
    )
    yield Component(Sampler, "topk", "racm3.samplers.topk:TopKSampler", summary="The k best, duplicates and all")
    yield Component(Sampler, "random", "racm3.samplers.random:RandomSampler", summary="Any k candidates: a baseline")
    yield Component(
        Generator, "cm3", "racm3.generators.cm3.generator:Cm3Generator", summary="CM3: one model for text and images"
    )
