"""Chroma as a memory of racm3, embedded or client/server."""

from __future__ import annotations

from collections.abc import Iterator

from racm3 import Component, MemoryStore, hookimpl


@hookimpl
def racm3_components() -> Iterator[Component]:
    yield Component(
        MemoryStore,
        "chroma",
        "racm3_chroma.memory:ChromaMemory",
        summary="Chroma, embedded or client/server",
        contract="racm3_chroma.contract:ChromaContract",
    )
