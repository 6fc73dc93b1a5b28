"""The test: draw what was never trained on, with other vendors' drawings to look it up in (method section 7).

The memory holds the training documents and the test documents (base forms). Whoever draws a test entity in a vendor's
style may look up that entity's drawings by the other vendors only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from racm3.document import Blank, Document
from racm3.interfaces import Hit, MemoryStore, Query, Request, Retriever, Sampler
from racm3.memories.faiss import FaissMemory

from .stages import document, hand
from .world import World

Context = Literal["retrieved", "random", "none"]


@dataclass
class Protocol:
    """The memory, and the rows of the world that are to be drawn."""

    world: World
    targets: np.ndarray
    memory: MemoryStore
    retriever: Retriever
    sampler: Sampler
    _hands: dict[str, list[str]]

    @classmethod
    def prepare(
        cls, world: World, retriever: Retriever, sampler: Sampler, split: Literal["validation", "test"] = "test"
    ) -> Protocol:
        """Fill the memory with the base forms of the training side and of `split`, whose base forms are the targets."""
        targets = world.select(split=split, base_form=True)
        rows = np.concatenate([world.select(split="train", base_form=True), targets]).tolist()
        memory = FaissMemory()
        memory.bind(retriever.encoder)
        for start in range(0, len(rows), 256):
            documents = [document(world, row) for row in rows[start : start + 256]]
            memory.add(documents, retriever.encode_document(documents))
        hands: dict[str, list[str]] = {}
        for row in rows:
            hands.setdefault(hand(world.drawings[row]), []).append(world.drawings[row].id)
        return cls(world, targets, memory, retriever, sampler, hands)

    @property
    def entities(self) -> list[str]:
        return [self.world.drawings[row].entity for row in self.targets]

    @property
    def groups(self) -> list[str]:
        return [self.world.drawings[row].group for row in self.targets]

    def truth(self) -> list[Document]:
        """What is to be drawn: text and drawing of each target."""
        return [document(self.world, int(row)) for row in self.targets]

    def drawing_requests(self, context: Context, k: int, *, seed: int = 0) -> list[Request]:
        """For each target: its text, and a blank for the picture."""
        return self._requests([Document([d.texts[0], Blank("image")], id=d.id) for d in self.truth()], context, k, seed)

    def caption_requests(self, context: Context, k: int, *, seed: int = 0) -> list[Request]:
        """For each target: its drawing, and a blank for the caption."""
        return self._requests([Document([Blank("text"), d.images[0]], id=d.id) for d in self.truth()], context, k, seed)

    def off_limits(self) -> list[list[str]]:
        """For each target: ids of what its own vendor drew of it."""
        return [self._hands[hand(self.world.drawings[row])] for row in self.targets]

    def _requests(self, prompts: Sequence[Document], context: Context, k: int, seed: int) -> list[Request]:
        if context == "none" or k == 0:
            return [Request(prompt) for prompt in prompts]
        rng = np.random.default_rng(seed)
        excluded = self.off_limits()
        if context == "random":
            return [
                Request(prompt, self._random(k, set(off), rng)) for prompt, off in zip(prompts, excluded, strict=True)
            ]
        vectors = self.retriever.encode_query([_known(prompt) for prompt in prompts])
        found = self.memory.search(vectors, k=max(64, 16 * k), exclude=excluded)
        return [
            Request(prompt, self.sampler.sample(Query(_known(prompt), vector), hits, k=k, rng=rng).hits)
            for prompt, vector, hits in zip(prompts, vectors, found, strict=True)
        ]

    def _random(self, k: int, off: set[str], rng: np.random.Generator) -> list[Hit]:
        drawn = self.memory.random(k + len(off), rng=rng)
        return [hit for hit in drawn if hit.id not in off][:k]


def _known(prompt: Document) -> Document:
    return Document([part for part in prompt.parts if not isinstance(part, Blank)])
