"""Generation: an answer, and all that is needed to say where it came from and to get it again."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .document import Blank, Document, Image, Part, Text
from .document_json import document_to_json, finite, hit_to_json, parts_to_json, skip_to_json
from .interfaces import Hit, Output, Skip
from .options import Options


@dataclass(frozen=True, repr=False)
class Generation:
    """What a pipeline made of a prompt, and what it was grounded on.

    outputs: all samples; best first, and with their scores, if they were re-ranked. hits: the documents that the
    generator saw, most relevant first (score None: given by hand). skipped: candidates that the sampler passed over, with
    the reason, and documents that did not fit. seconds: by stage, "retrieve", "sample", "generate" and, if it was done,
    "rerank"; prompts that were answered together share them evenly. fingerprints: of "retriever" and "generator".
    options: all that is needed, with the prompt, to get the answer again.

    >>> from racm3 import Blank, Document
    >>> from racm3.interfaces import Output
    >>> made = Generation(Document(["a cat", Blank("text")]), [Output(Document(["a cat", "It sleeps."]), -4.2, 3)], seed=1)
    >>> made.text, made.log_probability
    ('It sleeps.', -4.2)
    """

    prompt: Document
    outputs: list[Output]
    hits: list[Hit] = field(default_factory=list)
    skipped: list[Skip] = field(default_factory=list)
    seed: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    scores: list[float] = field(default_factory=list)
    options: Options | None = None

    @property
    def document(self) -> Document:
        """The first sample: the prompt with its blanks filled."""
        return self.outputs[0].document

    @property
    def log_probability(self) -> float:
        """Of what was filled in, in nats; of the first sample."""
        return self.outputs[0].log_probability

    @property
    def filled(self) -> list[Part]:
        """What stands in the first sample where the prompt had blanks."""
        return filled_parts(self.prompt, self.document)

    @property
    def image(self) -> Image | None:
        """The first picture that was made."""
        return next((part for part in self.filled if isinstance(part, Image)), None)

    @property
    def text(self) -> str | None:
        """The text that was written; None where there was no blank for text."""
        texts = [part.text for part in self.filled if isinstance(part, Text)]
        return " ".join(texts) if texts else None

    def to_json(self, *, images: bool = False) -> dict[str, Any]:
        """All of it as plain values for `json.dumps`. images: pictures as base64, not only their hashes."""
        return {
            "prompt": document_to_json(self.prompt, images=images),
            "outputs": [
                {
                    "document": document_to_json(output.document, images=images),
                    "filled": parts_to_json(filled_parts(self.prompt, output.document), images=images),
                    "log_probability": finite(output.log_probability),
                    "tokens": output.tokens,
                }
                for output in self.outputs
            ],
            "hits": [hit_to_json(hit, images=images) for hit in self.hits],
            "skipped": [skip_to_json(skip) for skip in self.skipped],
            "scores": [finite(score) for score in self.scores],
            "options": None if self.options is None else self.options.model_dump(mode="json"),
            "seed": self.seed,
            "log_probability": finite(self.log_probability),
            "seconds": dict(self.seconds),
            "fingerprints": dict(self.fingerprints),
        }

    def __repr__(self) -> str:
        return (
            f"Generation({len(self.outputs)} of {self.prompt!r}, grounded on {len(self.hits)}, "
            f"log_probability={self.log_probability:.2f}, seed={self.seed})"
        )

    def _repr_html_(self) -> str:
        def row(label: str, documents: Iterable[tuple[str, Document]]) -> str:
            cells = "".join(
                f"<td>{document._repr_html_()}<small>{html.escape(note)}</small></td>" for note, document in documents
            )
            return f"<tr><th>{label}</th>{cells}</tr>"

        hits = [("by hand" if hit.score is None else f"{hit.score:.3f}", hit.document) for hit in self.hits]
        notes = [f"log p = {output.log_probability:.2f}" for output in self.outputs]
        if self.scores:
            notes = [f"{note}, score {score:.3f}" for note, score in zip(notes, self.scores, strict=True)]
        outputs = list(zip(notes, (output.document for output in self.outputs), strict=True))
        skipped = "".join(
            f"<li>{html.escape(skip.hit.id)}: {html.escape(skip.reason)}"
            + (f" ({html.escape(skip.because_of)})" if skip.because_of else "")
            + "</li>"
            for skip in self.skipped
        )
        seconds = ", ".join(f"{html.escape(stage)} {spent:.2f} s" for stage, spent in self.seconds.items())
        return (
            "<table>"
            + row("prompt", [("", self.prompt)])
            + (row("grounded on", hits) if hits else "")
            + row("answer", outputs)
            + "</table>"
            + (
                f"<details><summary>{len(self.skipped)} passed over</summary><ul>{skipped}</ul></details>"
                if skipped
                else ""
            )
            + f"<small>seed {self.seed}{', ' if seconds else ''}{seconds}</small>"
        )


def filled_parts(prompt: Document, document: Document) -> list[Part]:
    """The parts of a filled prompt that stand where the prompt had blanks."""
    pairs = zip(prompt.parts, document.parts, strict=True)
    return [part for asked, part in pairs if isinstance(asked, Blank)]
