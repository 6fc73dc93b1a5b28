"""Re-ranking: which of several samples comes first (paper section 4: pictures by CLIP, captions by perplexity)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

from .document import Document
from .errors import ConfigError, ModalityError
from .generation import filled_parts
from .interfaces import Output, Retriever
from .retrieval import encode_documents, encode_queries, without_blanks

Rerank: TypeAlias = Literal["retriever", "perplexity"] | Callable[[Document, Sequence[Output]], Sequence[float]]
"""How samples are ranked: by name, or by a function of the prompt and its samples that gives a score for each."""


def check_rerank(by: Rerank | None) -> None:
    """Raise `ConfigError` for what `ranked` does not know, before anything is generated."""
    if by not in (None, "perplexity", "retriever") and not callable(by):
        raise ConfigError(f"rerank = {by!r} is not known.", 'Use "retriever", "perplexity" or a function.')


def ranked(
    prompt: Document, outputs: Sequence[Output], by: Rerank, retriever: Retriever
) -> tuple[list[Output], list[float]]:
    """The samples, best first (equals stay in order), and their scores: higher is better.

    "retriever": the inner product of what the prompt shows with what was filled in. "perplexity": the log-probability
    per token, so the sample of the lowest perplexity comes first.
    """
    if by == "perplexity":
        scores = [output.log_probability / max(1, output.tokens) for output in outputs]
    elif by == "retriever":
        shown = without_blanks(prompt)
        if shown is None:
            raise ModalityError(
                "The retriever cannot rank: the prompt shows neither text nor picture.", 'Use rerank="perplexity".'
            )
        filled = [Document(filled_parts(prompt, output.document)) for output in outputs]
        # An empty text has no direction of its own: it comes last.
        kept = [i for i, document in enumerate(filled) if without_blanks(document) is not None]
        scores = [-1.0] * len(filled)
        if kept:
            vectors = encode_documents(retriever, [filled[i] for i in kept])
            for i, score in zip(kept, vectors @ encode_queries(retriever, [shown])[0], strict=True):
                scores[i] = float(score)
    else:
        scores = _by_hand(by(prompt, outputs), len(outputs))
    order = sorted(range(len(outputs)), key=lambda i: -scores[i])
    return [outputs[i] for i in order], [scores[i] for i in order]


def _by_hand(given: Any, count: int) -> list[float]:
    """The scores of a caller's own function."""
    wrong = ConfigError(
        f"The re-ranking function gave {given!r:.200} for {count} samples.", "It gives one number for each sample."
    )
    try:
        scores = [float(score) for score in given]
    except (TypeError, ValueError) as error:
        raise wrong from error
    if len(scores) != count or any(math.isnan(score) for score in scores):
        raise wrong
    return scores
