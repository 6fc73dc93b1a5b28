"""How likely given documents are: the log-probability of their parts, by one forward pass over known tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ...interfaces import Score
from .prompt import Prompt

if TYPE_CHECKING:
    from .model import Checkpoint


def score_prompts(
    checkpoint: Checkpoint, filled: Sequence[tuple[Prompt, list[list[int]]]], *, batch_rows: int
) -> list[Score]:
    """Scores of prompts with what stands in their blanks (ids), each token under the grammar that decoding obeys."""
    import torch

    device = checkpoint.model.device
    is_image = torch.from_numpy(checkpoint.vocabulary.image_mask()).to(device)
    is_text = torch.from_numpy(checkpoint.vocabulary.text_mask()).to(device)
    scores: list[Score] = []
    for begin in range(0, len(filled), batch_rows):
        rows = [(prompt, *prompt.complete(ids)) for prompt, ids in filled[begin : begin + batch_rows]]
        lengths = [sum(map(len, prompt.context)) + len(own) for prompt, own, _ in rows]
        ids = np.full((len(rows), max(lengths)), checkpoint.model.config.pad_token_id, np.int64)
        positions, mask = np.zeros_like(ids), np.zeros_like(ids)
        for i, (prompt, own, _) in enumerate(rows):
            ids[i, : lengths[i]] = np.concatenate([s.ids for s in [*prompt.context, own]])
            positions[i, : lengths[i]] = np.concatenate([s.positions for s in [*prompt.context, own]])
            mask[i, : lengths[i]] = 1
        tokens, places, seen = (torch.from_numpy(a).to(device) for a in (ids, positions, mask))
        with torch.inference_mode():
            hidden = checkpoint.model.model(
                input_ids=tokens, position_ids=places, attention_mask=seen
            ).last_hidden_state
            for i, (prompt, own, drawn) in enumerate(rows):
                # By part: a region of a picture is several blanks.
                sums: dict[int, float] = {}
                counts: dict[int, int] = {}
                for (part, _), place in zip(prompt.blanks, drawn, strict=True):
                    at = torch.from_numpy(place + lengths[i] - len(own)).to(device)
                    logits = checkpoint.model.lm_head(hidden[i, at - 1]).float()  # [tokens, vocabulary]
                    wanted, allowed = tokens[i, at], is_image
                    if prompt.parts[part].modality == "text":
                        # A text's own end counts, as it is drawn like its other tokens.
                        allowed = is_text.clone()
                        allowed[wanted[-1]] = True
                    logits = logits.masked_fill(~allowed, float("-inf"))
                    found = float(logits.log_softmax(-1).gather(1, wanted.unsqueeze(1)).sum())
                    sums[part] = sums.get(part, 0.0) + found
                    counts[part] = counts.get(part, 0) + len(at)
                scores.append(Score(tuple(sums.values()), tuple(counts.values())))
    return scores
