"""Drawing a token: which distribution it comes from, and the draw itself (method section 5; CM3Leon, arXiv 2309.02591).

All functions work on n rows at once. Log-probabilities are those of the tokens that the grammar allows.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ...errors import GenerationError
from ...options import Options

if TYPE_CHECKING:
    import torch


def checked(log_probability: float) -> float:
    """The log-probability; `GenerationError` where it is no number, which half precision or bad weights can bring about."""
    if math.isnan(log_probability):
        raise GenerationError(
            "The model's predictions are not numbers.", 'Load it with dtype="float32", or train it again.'
        )
    return log_probability


def streams_of(
    logits: torch.Tensor, guided: bool, context_guided: bool
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Log-probabilities [n, vocabulary] by the streams of a `Job`: logits [n, streams, vocabulary].

    With prompt and documents; if guided, without the prompt; if context_guided, without documents. What several groups of
    documents predict is averaged as probabilities.
    """
    each = logits.log_softmax(-1)
    members = (each.shape[1] - context_guided) // (1 + guided)

    def average(of: torch.Tensor) -> torch.Tensor:
        return of[:, 0] if members == 1 else of.logsumexp(1) - math.log(members)

    unprompted = average(each[:, members : 2 * members]) if guided else None
    return average(each[:, :members]), unprompted, each[:, -1] if context_guided else None


def guide(with_it: torch.Tensor, without: torch.Tensor, scale: float) -> torch.Tensor:
    """Guidance by the prompt, or by the documents: l_u + s (l_c - l_u), up to a constant."""
    return without + scale * (with_it - without)


def contrast(prompted: torch.Tensor, unprompted: torch.Tensor, k: int, share: float) -> torch.Tensor:
    """CD-K: log p_c - log p_u where p_c is at least `share` of the k-th largest p_c; -inf elsewhere."""
    kth = prompted.topk(min(k, prompted.shape[-1]), -1).values[:, -1:]
    return (prompted - unprompted).masked_fill(prompted < kth + math.log(share), float("-inf"))


def draw(scores: torch.Tensor, options: Options, uniform: torch.Tensor) -> torch.Tensor:
    """One token of each row, int64 [n], by scores [n, vocabulary] and draws from [0, 1), float64 [n]."""
    import torch

    if options.temperature == 0:
        return scores.argmax(-1)
    # A temperature next to 0 would overflow.
    probabilities = truncate((scores / max(options.temperature, 1e-6)).softmax(-1), options.top_p, options.top_k)
    summed = probabilities.double().cumsum(-1)
    # Draws from [0, sum): rounding can never pick a token behind the last possible one.
    tokens = torch.searchsorted(summed, (uniform * summed[:, -1]).unsqueeze(1), right=True).squeeze(1)
    return tokens.clamp_max(scores.shape[-1] - 1)


def truncate(probabilities: torch.Tensor, top_p: float, top_k: int | None) -> torch.Tensor:
    """Keep the top_k most likely tokens, and of those the smallest set that holds top_p: [n, vocabulary]."""
    import torch

    if top_k is not None and top_k < probabilities.shape[-1]:
        least = probabilities.topk(top_k, dim=-1).values[:, -1:]
        probabilities = torch.where(probabilities < least, 0.0, probabilities)
    if top_p < 1:
        ranked, order = probabilities.sort(dim=-1, descending=True)
        before = ranked.cumsum(-1) - ranked
        ranked = torch.where(before >= top_p * ranked.sum(-1, keepdim=True), 0.0, ranked)
        probabilities = torch.zeros_like(probabilities).scatter(-1, order, ranked)
    return probabilities


def repeated(drawn: list[int], size: int) -> list[int]:
    """The tokens that would repeat `size` tokens in a row which a text (of what was drawn) holds already."""
    if size < 1 or len(drawn) < size:
        return []
    tail = drawn[len(drawn) - size + 1 :]
    return [drawn[i + size - 1] for i in range(len(drawn) - size + 1) if drawn[i : i + size - 1] == tail]
