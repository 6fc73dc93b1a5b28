"""How well a trained model does in a condition: how likely held-out pictures are, and whether drawings are recognised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from ..document import Blank, Document, Image
from ..evaluation.recall import retrieval
from ..interfaces import Hit, Request, Retriever
from ..options import Options
from ..training.data import DocumentRows, TrainingSet, generator_at
from ..training.documents import PreparedDocuments, Shown
from ..training.neighbours import Neighbours
from .rows import Condition

if TYPE_CHECKING:
    from ..generators.cm3.generator import Cm3Generator
    from ..generators.cm3.image_tokenizer import ImageTokenizer

_ROWS = 64  # sequences in a forward pass


@dataclass(frozen=True)
class Bench:
    """Held-out documents, and what each may be shown: always what its caption finds, never its own picture.

    image_tokenizer: paints what every model draws, also one that was trained before its decoder was trained further.
    decoder: tells that decoder from others, None where there is none. digest: tells these documents from others. tables: neighbours by sampler. form: place of the text among their query
    forms. group: documents that are read at once; more are read in groups of so many, and the predictions averaged (paper
    section 4).
    """

    data: TrainingSet
    documents: PreparedDocuments
    image_tokenizer: ImageTokenizer
    decoder: str | None
    digest: str
    tables: Mapping[str, Neighbours]
    form: int
    group: int
    judge: Retriever | None = None
    options: Options = field(default_factory=Options)

    @property
    def held_out(self) -> list[int]:
        """Row numbers of what is measured."""
        return [int(row) for row in self.documents.held_out]

    @property
    def entities(self) -> list[str]:
        """What each held-out document shows."""
        return [self.data.entities[row] for row in self.held_out]

    def context(self, row: int, condition: Condition, seed: int) -> list[int]:
        """Rows that a held-out document is shown, the nearest first."""
        if condition.context == "random":
            return self.documents.random_rows(row, condition.k, generator_at(seed, row))
        chosen = self.tables[condition.sampler].rows[row, self.form, 0, : condition.k]
        return [int(other) for other in chosen if other >= 0]

    def nats(self, generator: Cm3Generator, condition: Condition, seed: int) -> np.ndarray:
        """Nats per image token of each held-out picture, given its caption: [held-out]."""
        from ..training.generator import behind_documents

        checkpoint, sequences, owners = generator.checkpoint, [], []
        for place, row in enumerate(self.held_out):
            shown = self.context(row, condition, seed)
            for group in self._groups(shown):
                parts = [self.documents.parts(other, shown=condition.parts) for other in reversed(group)]
                sequences.append(behind_documents(checkpoint.format, parts, self.documents.parts(row)))
                owners.append(place)
        losses, owner = _losses(generator, sequences), np.array(owners)  # [sequences, tokens]
        found = np.empty(len(self.held_out))
        for place in range(len(found)):
            probabilities = np.exp(-losses[owner == place].astype(np.float64))  # of one group, or of several
            found[place] = -np.log(probabilities.mean(0)).mean()
        return found

    def _groups(self, shown: Sequence[int]) -> list[Sequence[int]]:
        return [shown[start : start + self.group] for start in range(0, len(shown), self.group)] or [[]]

    # --- drawings ---------------------------------------------------------------------------------------------------

    def spread(self, count: int) -> list[int]:
        """Places of `count` held-out documents, evenly spread over all: picked by nobody."""
        every = len(self.held_out)
        return np.unique(np.linspace(0, every - 1, min(count, every)).astype(int)).tolist() if count else []

    def draw(self, generator: Cm3Generator, condition: Condition, places: Sequence[int], seed: int) -> list[Image]:
        """A drawing for the caption of each held-out document in these places."""
        requests = [
            Request(
                Document([self.data.texts[self.held_out[place]], Blank("image")], id=self.data.ids[self.held_out[place]]),
                tuple(self.hits(place, condition, seed)),
            )
            for place in places
        ]  # fmt: skip
        options = self.options.model_copy(update={"n": 1, "seed": seed, "group_size": self.group})
        made = generator.generate(requests, options=options)
        return [outputs[0].document.images[-1] for outputs in made]

    def hits(self, place: int, condition: Condition, seed: int) -> list[Hit]:
        """The documents that are shown to the held-out document in this place, as far as they are shown."""
        rows = self.context(self.held_out[place], condition, seed)
        return [Hit(_shown(DocumentRows(self.data)[row], condition.parts)) for row in rows]

    def truth(self, place: int) -> Document:
        """The held-out document in this place."""
        document: Document = DocumentRows(self.data)[self.held_out[place]]
        return document

    def recognised(self, drawn: Sequence[Image], places: Sequence[int]) -> np.ndarray:
        """Whether each drawing is nearest to a picture of its own entity, among all that are held out: 0 or 1, [n]."""
        assert self.judge is not None
        vectors = self.judge.encode_query([Document(picture) for picture in drawn])
        return retrieval(vectors, self._gallery, [self.entities[place] for place in places], self.entities).hits

    @cached_property
    def _gallery(self) -> np.ndarray:
        assert self.judge is not None
        return self.judge.encode_query([Document(Image(np.asarray(self.data.pixels[row]))) for row in self.held_out])


def _shown(document: Document, parts: Shown) -> Document:
    if parts == "both":
        return document
    return document.replace(parts=[part for part in document.parts if part.modality == parts], id=document.id)


def _losses(generator: Cm3Generator, sequences: Sequence) -> np.ndarray:
    """Nats of each image token of x: [sequences, tokens]."""
    import torch

    from ..training.generator import collate, image_token_losses

    model, vocabulary = generator.checkpoint.model, generator.checkpoint.vocabulary
    found = []
    with torch.inference_mode():
        for start in range(0, len(sequences), _ROWS):
            batch = collate(list(sequences[start : start + _ROWS]), vocabulary.control("<pad>"), 1)
            found.append(image_token_losses(model, batch, vocabulary))
    return np.concatenate(found)
