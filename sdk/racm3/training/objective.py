"""The objective: L = -log p(x | m) - alpha * log p(m), as a weight for each token (paper section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..generators.cm3.document_format import TokenSequence
from ..generators.cm3.vocabulary import SENTINELS, Vocabulary


@dataclass(frozen=True)
class WeightedSequence:
    """A training sequence: ids, positions, the weight of predicting each token, and which tokens belong to x. All [n]."""

    ids: np.ndarray
    positions: np.ndarray
    weights: np.ndarray
    main: np.ndarray


def weighted_sequence(
    context: Sequence[TokenSequence], own: TokenSequence, vocabulary: Vocabulary, alpha: float,
    sentinel_weight: float = 0.0,
) -> WeightedSequence:  # fmt: skip
    """Documents before x: weight 1 on the tokens of x, alpha on those of the documents, either times `sentinel_weight` on
    sentinels, and 0 on the start."""
    pieces = [*context, own]
    ids = np.concatenate([piece.ids for piece in pieces])
    main = np.zeros(len(ids), bool)
    main[len(ids) - len(own) :] = True
    weights = np.where(main, 1.0, alpha).astype(np.float32)
    sentinel = vocabulary.sentinel(0)
    weights[(ids >= sentinel) & (ids < sentinel + SENTINELS)] *= sentinel_weight
    weights[0] = 0.0  # nothing predicts the first token
    return WeightedSequence(ids, np.concatenate([piece.positions for piece in pieces]), weights, main)


def weighted_loss(
    logits: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, main: torch.Tensor
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The weighted sum of token losses over the number of tokens of x that count; figures in nats per token.

    logits: [B, T, V]; ids, weights, main: [B, T], of the tokens themselves (token t is predicted by logits t-1). A
    figure is NaN where a batch has no such tokens. There is no branch on a value, so that it can be compiled.
    """
    # Shifting the targets, and not the logits, saves a copy of the largest tensor there is, and of its gradient.
    targets, weights = ids.roll(-1, 1), torch.nn.functional.pad(weights[:, 1:], (0, 1))
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none").view(
        ids.shape
    )  # [B, T]
    main = main.roll(-1, 1) & (weights > 0)
    retrieved = ~main & (weights > 0)
    loss = (losses * weights).sum() / main.sum()
    with torch.no_grad():
        figures = {
            "main": (losses * main).sum() / main.sum(),
            "retrieved": (losses * retrieved).sum() / retrieved.sum(),
        }
    return loss, figures
