"""Classification by label probabilities, with labelled examples as context documents (paper section 5, k-shot)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .crossing import calling, checked_scores
from .document import Blank, Document, Image
from .document_json import hit_to_json, skip_to_json
from .errors import ConfigError
from .interfaces import Generator, Hit, Request, Skip

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Classification:
    """How likely each label is, best first, and what that was grounded on. seconds, fingerprints: as of `Generation`."""

    probabilities: Mapping[str, float]
    hits: list[Hit] = field(default_factory=list)
    skipped: list[Skip] = field(default_factory=list)
    seconds: Mapping[str, float] = field(default_factory=dict)
    fingerprints: Mapping[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The likeliest label."""
        return next(iter(self.probabilities))

    def to_json(self, *, images: bool = False) -> dict[str, Any]:
        """All of it as plain values for `json.dumps`. images: pictures as base64, not only their hashes."""
        return {
            "label": self.label,
            "probabilities": dict(self.probabilities),
            "hits": [hit_to_json(hit, images=images) for hit in self.hits],
            "skipped": [skip_to_json(skip) for skip in self.skipped],
            "seconds": dict(self.seconds),
            "fingerprints": dict(self.fingerprints),
        }


def checked_labels(labels: Sequence[str]) -> list[str]:
    """At least one label, each a text, none twice."""
    found = [labels] if isinstance(labels, str) else list(labels) if isinstance(labels, Iterable) else []
    if not found or not all(isinstance(label, str) and label.strip() for label in found):
        raise ConfigError(f"Labels are texts, at least one, not {labels!r}.")
    if len(set(found)) != len(found):
        raise ConfigError(f"A label is given twice: {sorted(label for label in set(found) if found.count(label) > 1)}.")
    return found


def label_probabilities(
    generator: Generator, image: Image, labels: Sequence[str], hits: Sequence[Hit], group_size: int
) -> dict[str, float]:
    """P(label | picture, documents) over these labels, best first; the mean over groups of `group_size` documents."""
    import numpy as np

    prompt = Document([Blank("text"), image])
    groups = [tuple(hits[i : i + group_size]) for i in range(0, len(hits), group_size)] or [()]
    requests = [Request(prompt, group) for group in groups for _ in labels]
    targets = [Document([label, image]) for _ in groups for label in labels]
    with calling(generator):
        scores = generator.score(requests, targets)
    scores = checked_scores(generator, scores, count=len(targets))
    logs = np.array([score.log_probability for score in scores]).reshape(len(groups), len(labels))
    mean = mean_probabilities(logs)
    order = sorted(range(len(labels)), key=lambda i: -mean[i])
    return {labels[i]: float(mean[i]) for i in order}


def mean_probabilities(logs: np.ndarray) -> np.ndarray:
    """P(label) over the labels alone: the mean over groups of documents (paper section 5). logs: log-probabilities of the
    labels' captions, [groups, labels]."""
    import numpy as np

    likely = np.exp(logs - logs.max(axis=1, keepdims=True))
    mean: np.ndarray = (likely / likely.sum(axis=1, keepdims=True)).mean(axis=0)
    return mean
