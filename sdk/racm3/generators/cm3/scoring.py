"""How likely given documents are: the log-probability of their parts, by one forward pass over known tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ...interfaces import Score
from .document_format import TokenSequence

if TYPE_CHECKING:
    from .model import Checkpoint


def score_sequences(
    checkpoint: Checkpoint, prepared: Sequence[tuple[list[TokenSequence], TokenSequence, list[int]]], *, batch_rows: int
) -> list[Score]:
    """Scores of (context, document, parts that count), each token under the grammar that decoding obeys."""
    import torch

    device = checkpoint.model.device
    is_image = torch.from_numpy(checkpoint.vocabulary.image_mask()).to(device)
    is_text = torch.from_numpy(checkpoint.vocabulary.text_mask()).to(device)
    scores: list[Score] = []
    for begin in range(0, len(prepared), batch_rows):
        rows = prepared[begin : begin + batch_rows]
        lengths = [sum(len(s) for s in context) + len(own) for context, own, _ in rows]
        ids = np.full((len(rows), max(lengths)), checkpoint.model.config.pad_token_id, np.int64)
        positions, mask = np.zeros_like(ids), np.zeros_like(ids)
        for i, (context, own, _) in enumerate(rows):
            ids[i, : lengths[i]] = np.concatenate([s.ids for s in [*context, own]])
            positions[i, : lengths[i]] = np.concatenate([s.positions for s in [*context, own]])
            mask[i, : lengths[i]] = 1
        tokens, places, seen = (torch.from_numpy(a).to(device) for a in (ids, positions, mask))
        with torch.inference_mode():
            hidden = checkpoint.model.model(input_ids=tokens, position_ids=places, attention_mask=seen).last_hidden_state
            for i, (_, own, counted) in enumerate(rows):
                offset = lengths[i] - len(own)
                sums, counts = [], []
                for part in counted:
                    total, count = 0.0, 0
                    for segment in (s for s in own.segments if s.part == part):
                        # A text's own end counts, as it is drawn like its other tokens.
                        ends = 1 if segment.modality == "text" else 0
                        at = torch.arange(offset + segment.start, offset + segment.stop + ends, device=device)
                        logits = checkpoint.model.lm_head(hidden[i, at - 1]).float()  # [tokens, vocabulary]
                        wanted = tokens[i, at]
                        allowed = is_image if segment.modality == "image" else is_text.clone()
                        if ends:
                            allowed[wanted[-1]] = True
                        logits = logits.masked_fill(~allowed, float("-inf"))
                        total += float(logits.log_softmax(-1).gather(1, wanted.unsqueeze(1)).sum())
                        count += len(at)
                    sums.append(total)
                    counts.append(count)
                scores.append(Score(tuple(sums), tuple(counts)))
    return scores
