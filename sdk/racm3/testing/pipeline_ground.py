"""A generator at work in a pipeline of light components, and what observers are told meanwhile."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ..document import Document
from ..generation import Generation
from ..hookspecs import hookimpl
from ..interfaces import Generator, Query, Selection
from ..options import Options
from ..pipeline import Pipeline
from ..registry import registry
from .fakes import HashingRetriever


class _Observer:
    def __init__(self) -> None:
        self.events: list[str] = []

    @hookimpl
    def racm3_retrieved(self, query: Query, selection: Selection) -> None:
        self.events.append(f"retrieved {len(selection.hits)}")

    @hookimpl
    def racm3_generated(self, generation: Generation) -> None:
        self.events.append(f"generated {len(generation.outputs)}")


@contextmanager
def observing() -> Iterator[list[str]]:
    """What observers are told while the block runs, in order: "retrieved 2" (documents), "generated 1" (samples)."""
    observer = _Observer()
    info = registry().register(observer, name="racm3-testing-observer")
    try:
        yield observer.events
    finally:
        registry().unregister(info)


def events_of_a_pipeline(
    generator: Generator, documents: Sequence[Document], prompts: Sequence[Document], options: Options
) -> list[str]:
    """Generate from a memory of these documents with k=1, and give what observers were told."""
    from ..memories.faiss import FaissMemory

    with Pipeline(HashingRetriever(), FaissMemory(), generator=generator) as pipeline, observing() as events:
        pipeline.add(documents)
        pipeline.generate(prompts, k=1, n=options.n, seed=options.seed, options=options)
    return events
