"""Decoding: drawing tokens for the blanks of prompts under the grammar of the document format.

A picture holds exactly its number of image tokens, a text only text tokens. Many rows (samples of many prompts) are
decoded side by side; each has its own place in its prompt and its own random stream, so that a sample does not depend
on what else is in the batch, up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ...interfaces import Options
from .prompt import Fill, Prompt

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM


@dataclass
class Row:
    """One sample on its way: which blank it is at, what is still to be fed, and what was drawn, by part."""

    prompt: Prompt
    rng: np.random.Generator
    options: Options
    number: int = 0
    current: Fill | None = None
    feed: list[tuple[int, int]] = field(default_factory=list)
    filled: dict[int, list[int]] = field(default_factory=dict)
    log_probability: float = 0.0
    tokens: int = 0

    def __post_init__(self) -> None:
        self._enter()

    def _enter(self) -> None:
        done = self.number == len(self.prompt.blanks)
        self.current = None if done else self.prompt.fill(self.number, self.filled)
        if self.current is not None:
            self.filled[self.current.part] = []
            self.feed = list(self.current.lead)

    def draws(self) -> bool:
        """Whether the next token is to be drawn (nothing is waiting to be fed, and a blank is open)."""
        return self.current is not None and not self.feed

    def accept(self, token: int, log_probability: float) -> None:
        """Take a drawn token."""
        assert self.current is not None
        drawn = self.filled[self.current.part]
        self.log_probability += log_probability
        self.tokens += 1
        if token == self.current.stop:
            self._leave()
            return
        self.feed.append((token, self.current.position + len(drawn)))
        drawn.append(token)
        limit = self.current.length if self.current.length is not None else self.options.max_text_tokens
        if len(drawn) == limit:
            self._leave()

    def _leave(self) -> None:
        kept, self.number = self.feed, self.number + 1
        self._enter()
        self.feed = kept + self.feed if self.current is not None else []


class Decoder:
    """Draws tokens with a Llama; `batch_rows` rows at most are decoded at a time."""

    def __init__(self, model: LlamaForCausalLM, *, batch_rows: int = 64) -> None:
        self.model, self.batch_rows = model, batch_rows

    def run(self, prompts: Sequence[Prompt], options: Options, progress: Callable[[int], None] | None = None) -> list[list[Row]]:
        """`options.n` finished rows for each prompt."""
        rows = [
            [Row(prompt, np.random.default_rng([options.seed, number, sample]), options) for sample in range(options.n)]
            for number, prompt in enumerate(prompts)
        ]
        pending: list[Row] = [row for group in rows for row in group]
        # Prompts of like length side by side waste the least padding.
        pending.sort(key=lambda row: len(row.prompt.start()[0]))
        for begin in range(0, len(pending), self.batch_rows):
            self._decode(pending[begin : begin + self.batch_rows])
            if progress is not None:
                progress(min(begin + self.batch_rows, len(pending)))
        return rows

    def _decode(self, rows: list[Row]) -> None:
        import torch
        from transformers import DynamicCache

        with torch.inference_mode():
            device = self.model.device
            cache = DynamicCache(config=self.model.config)
            ids, positions, mask = self._prefix(rows)
            allowed = _Allowed(rows[0].prompt, device)
            while True:
                logits = self.model(
                    input_ids=ids, position_ids=positions, attention_mask=mask, past_key_values=cache,
                    use_cache=True, logits_to_keep=1,
                ).logits[:, -1].float()  # fmt: skip                                                     [rows, vocabulary]
                drawing = [i for i, row in enumerate(rows) if row.draws()]
                if drawing:
                    draw_tokens([rows[i] for i in drawing], logits[drawing], allowed)
                if all(row.current is None for row in rows):
                    return
                # Each row gives its next token; a finished one gives padding that nobody attends to.
                pad = self.model.config.pad_token_id
                step = [row.feed.pop(0) if row.feed else None for row in rows]
                ids = torch.tensor([[s[0] if s else pad] for s in step], device=device)
                positions = torch.tensor([[s[1] if s else 0] for s in step], device=device)
                seen = torch.tensor([[1 if s else 0] for s in step], device=device)
                mask = torch.cat([mask, seen], dim=1)

    def _prefix(self, rows: list[Row]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What the rows start from, padded on the left: ids, positions and mask, int64 [rows, longest]."""
        import torch

        starts = [row.prompt.start() for row in rows]
        # What a row feeds before its first draw belongs to its start.
        for i, row in enumerate(rows):
            lead, row.feed = np.array(row.feed, np.int64).reshape(-1, 2), []
            starts[i] = (np.concatenate([starts[i][0], lead[:, 0]]), np.concatenate([starts[i][1], lead[:, 1]]))
        longest = max(len(ids) for ids, _ in starts)
        ids = np.full((len(rows), longest), self.model.config.pad_token_id, np.int64)
        positions, mask = np.zeros_like(ids), np.zeros_like(ids)
        for i, (row_ids, row_positions) in enumerate(starts):
            ids[i, longest - len(row_ids) :] = row_ids
            positions[i, longest - len(row_ids) :] = row_positions
            mask[i, longest - len(row_ids) :] = 1
        device = self.model.device
        return tuple(torch.from_numpy(a).to(device) for a in (ids, positions, mask))  # type: ignore[return-value]


class _Allowed:
    """The grammar as masks over the vocabulary: image tokens in a picture, text tokens and the stop in a text."""

    def __init__(self, prompt: Prompt, device: torch.device) -> None:
        import torch

        vocabulary = prompt.format.vocabulary
        self.image = torch.from_numpy(vocabulary.image_mask()).to(device)
        self.text = torch.from_numpy(vocabulary.text_mask()).to(device)

    def of(self, row: Row) -> torch.Tensor:
        """bool [vocabulary]"""
        assert row.current is not None
        if row.current.modality == "image":
            return self.image
        allowed = self.text.clone()
        allowed[row.current.stop] = True
        return allowed


def draw_tokens(rows: list[Row], logits: torch.Tensor, allowed: _Allowed) -> None:
    """Draw one token for each row from its logits [rows, vocabulary], restricted to the grammar.

    The log-probability that a row records is that of the restricted distribution before temperature and truncation.
    """
    import torch

    options = rows[0].options
    mask = torch.stack([allowed.of(row) for row in rows])  # [rows, vocabulary]
    logits = logits.masked_fill(~mask, float("-inf"))
    natural = logits.log_softmax(-1)
    if options.temperature == 0:
        tokens = natural.argmax(-1)
    else:
        # A temperature next to 0 would overflow.
        probabilities = truncate((logits / max(options.temperature, 1e-6)).softmax(-1), options.top_p, options.top_k)
        draws = torch.tensor([row.rng.random() for row in rows], device=logits.device, dtype=torch.float64)
        summed = probabilities.double().cumsum(-1)
        # Draws from [0, sum): rounding can never pick a token behind the last possible one.
        tokens = torch.searchsorted(summed, (draws * summed[:, -1]).unsqueeze(1), right=True).squeeze(1)
        tokens = tokens.clamp_max(logits.shape[-1] - 1)
    for row, token, log_probability in zip(
        rows, tokens.tolist(), natural.gather(1, tokens.unsqueeze(1)).squeeze(1).tolist(), strict=True
    ):
        row.accept(token, log_probability)


def truncate(probabilities: torch.Tensor, top_p: float, top_k: int | None) -> torch.Tensor:
    """Keep the top_k most likely tokens, and of those the smallest set that holds top_p: [rows, vocabulary]."""
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
