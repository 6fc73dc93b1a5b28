"""A batch of rows that are decoded in step: the one loop in which the time is spent.

Rows form a grid of jobs by samples, and each runs in several streams (guidance, groups of documents). What a stream has
read before its first draw is kept once, for all samples. Rows that are done leave the batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from . import drawing
from .attention import Alone, Sharing
from .prefix_cache import PrefixCache, read
from .transformer import Transformer

if TYPE_CHECKING:
    import torch

    from .decoding import Row


class Batch:
    """Rows by job; all jobs have as many rows and streams. `grid` holds what is not done yet."""

    def __init__(self, transformer: Transformer, prefixes: PrefixCache, grid: Sequence[Sequence[Row]]) -> None:
        import torch

        first = grid[0][0]
        self.transformer, self.device, self.options = transformer, transformer.device, first.options
        self.vocabulary = first.job.streams[0].format.vocabulary
        self.streams, self.guided = len(first.job.streams), first.job.guided
        self.context_guided = first.job.context_guided
        self.grid = [list(rows) for rows in grid]
        read_before, hidden = [], []
        for rows in self.grid:
            for prompt in rows[0].job.streams:
                seen, states = read(transformer, *prompt.start(), prefixes.read(transformer, prompt.context))
                read_before.append(seen)
                hidden.append(states[-1])
        samples = len(self.grid[0])
        capacity = max(max(p.steps(self.options.max_text_tokens) for p in r[0].job.streams) for r in self.grid)
        with torch.inference_mode():
            # What predicts the next token: [jobs, streams, rows, width].
            start = torch.stack(hidden).view(len(self.grid), self.streams, 1, -1)
            self.hidden = start.expand(-1, -1, samples, -1)
            self.attention: Alone | Sharing
            if samples == 1:
                self.attention = Alone(transformer, read_before, capacity)
            else:
                self.attention = Sharing(transformer, read_before, samples, capacity)

    def advance(self, every: int | None = None) -> None:
        """Draw for all rows that are to draw, and feed each row its next token.

        While every row is in the middle of a picture, many tokens (at most `every`) are drawn before any is looked at.
        """
        import torch

        with torch.inference_mode():
            active = [(j, r) for j, rows in enumerate(self.grid) for r, row in enumerate(rows) if row.fills]
            ready = [(j, r) for j, r in active if self.grid[j][r].draws()]
            pictures = [(j, r) for j, r in ready if self.grid[j][r].fills[0].modality == "image"]
            texts = [(j, r) for j, r in ready if self.grid[j][r].fills[0].modality == "text"]
            if pictures:
                count = 1
                if len(pictures) == len(active):
                    count = min(self.grid[j][r].certain() for j, r in pictures)
                    count = count if every is None else min(count, every)
                self._draw_pictures(pictures, count)
            if texts:
                self._draw_texts(texts)
            self._let_go()
            if self.grid:
                self._feed_next()

    def _draw_pictures(self, places: list[tuple[int, int]], count: int) -> None:
        """`count` image tokens for each row."""
        import torch

        rows = [self.grid[j][r] for j, r in places]
        js, rs = torch.tensor(places, device=self.device).unbind(1)
        uniform = self._uniform(rows, count)
        positions = torch.tensor([row.place() for row in rows], device=self.device)  # [n, streams]
        first = self.vocabulary.first_image
        drawn = []
        for number in range(count):
            states = self.hidden[js, :, rs]  # [n, streams, width]
            logits = self.transformer.logits(states, first, self.vocabulary.size)
            tokens, likely = self._draw(rows, logits, uniform[:, number])
            drawn.append((tokens + first, likely))
            if number + 1 < count:
                shape = self.hidden.shape[:3]
                ids = torch.full(shape, self.vocabulary.control("<pad>"), device=self.device)
                at = torch.zeros(shape, dtype=torch.int64, device=self.device)
                ids[js, :, rs] = (tokens + first)[:, None].expand(-1, self.streams)
                at[js, :, rs] = positions + number
                self._feed(ids, at)
        ids_drawn, log_probabilities = (torch.stack(each, 1).tolist() for each in zip(*drawn, strict=True))
        for row, own, each in zip(rows, ids_drawn, log_probabilities, strict=True):
            for number, (token, log_probability) in enumerate(zip(own, each, strict=True)):
                row.accept(token, log_probability, fed=number + 1 < count)

    def _draw_texts(self, places: list[tuple[int, int]]) -> None:
        """A text token, or its end, for each row."""
        import torch

        rows = [self.grid[j][r] for j, r in places]
        js, rs = torch.tensor(places, device=self.device).unbind(1)
        states = self.hidden[js, :, rs]  # [n, streams, width]
        stops = torch.tensor([row.fills[0].stop for row in rows], device=self.device)
        # The last column is the end of the text, whichever token that is here.
        logits = self.transformer.logits(states, 0, self.vocabulary.text_tokens)
        logits = torch.cat((logits, self.transformer.logits_of(states, stops).unsqueeze(-1)), -1)
        tokens, likely = self._draw(rows, logits, self._uniform(rows, 1)[:, 0], self._limits(rows, logits))
        tokens = torch.where(tokens == self.vocabulary.text_tokens, stops, tokens)
        for row, token, log_probability in zip(rows, tokens.tolist(), likely.tolist(), strict=True):
            row.accept(token, log_probability)

    def _draw(
        self, rows: list[Row], logits: torch.Tensor, uniform: torch.Tensor, limits: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Columns of logits [n, streams, columns], and their log-probabilities: both [n].

        The log-probability is the prompted model's own, before guidance, temperature and limits.
        """
        import torch

        options = self.options
        prompted, unprompted, without = drawing.streams_of(logits, self.guided, self.context_guided)
        known = prompted if without is None else drawing.guide(prompted, without, options.context_guidance)
        scores = known
        if unprompted is not None:
            scores = drawing.guide(known, unprompted, options.guidance)
            if options.decoding != "sample":
                contrasted = torch.tensor([[row.contrasted] for row in rows], device=self.device)
                other = drawing.contrast(known, unprompted, options.contrast_k, options.contrast_share)
                scores = torch.where(contrasted, other, scores)
        if limits is not None:
            limited = scores + limits
            # Contrast may have left nothing else than what is not allowed here.
            none = (limited == float("-inf")).all(-1, keepdim=True)
            scores = torch.where(none, known + limits, limited)
        tokens = drawing.draw(scores, options, uniform)
        return tokens, prompted.gather(1, tokens.unsqueeze(1)).squeeze(1)

    def _limits(self, rows: list[Row], logits: torch.Tensor) -> torch.Tensor | None:
        """What is added to the scores of text tokens, [n, columns]: the rules on length and repetition."""
        options, stop = self.options, logits.shape[-1] - 1
        if not (options.min_text_tokens or options.no_repeat or options.repetition_penalty != 1):
            return None
        limits = logits.new_zeros(len(rows), stop + 1)
        for i, row in enumerate(rows):
            drawn = row.filled[-1]
            if drawn and options.repetition_penalty != 1:
                limits[i, drawn] = -math.log(options.repetition_penalty)
            if again := drawing.repeated(drawn, options.no_repeat):
                limits[i, again] = float("-inf")
            if len(drawn) < options.min_text_tokens and (limits[i, :stop] > float("-inf")).any():
                limits[i, stop] = float("-inf")
        return limits

    def _uniform(self, rows: list[Row], count: int) -> torch.Tensor:
        """Draws from [0, 1), float64 [n, count]: of each row from its own stream."""
        import torch

        draws = [[row.rng.random() for _ in range(count)] for row in rows]
        return torch.tensor(draws, dtype=torch.float64, device=self.device)

    def _feed_next(self) -> None:
        """Each row gives its next token; one that is done gives padding, which no other row attends to."""
        import torch

        nothing = ((self.vocabulary.control("<pad>"),) * self.streams, (0,) * self.streams)
        steps = [[row.feed.pop(0) if row.feed else nothing for row in rows] for rows in self.grid]
        # [jobs, rows, 2, streams] to [2, jobs, streams, rows]
        ids, positions = torch.tensor(steps, device=self.device).permute(2, 0, 3, 1)
        self._feed(ids, positions)

    def _feed(self, ids: torch.Tensor, positions: torch.Tensor) -> None:
        """One token of each row in each stream: int64 [jobs, streams, rows]."""
        states = self.transformer(ids.reshape(-1), positions.reshape(-1), self.attention)
        self.attention.drawn += 1
        self.hidden = states.view(*ids.shape, -1)

    def _let_go(self) -> None:
        """Let rows leave that are done, as far as the grid stays a grid."""
        import torch

        left = [(j, [r for r, row in enumerate(rows) if row.fills]) for j, rows in enumerate(self.grid)]
        left = [(j, places) for j, places in left if places]
        count = max((len(places) for _, places in left), default=0)
        if not left:
            self.grid = []
        elif len(left) < len(self.grid) or count < len(self.grid[0]):
            # Where a job has fewer rows than another, one that is done keeps its place.
            kept = []
            for j, places in left:
                others = [r for r in range(len(self.grid[j])) if r not in places]
                kept.append(sorted(places + others[: count - len(places)]))
            js, rs = torch.tensor([j for j, _ in left], device=self.device), torch.tensor(kept, device=self.device)
            groups = (js[:, None] * self.streams + torch.arange(self.streams, device=self.device)).flatten()
            self.attention.keep(groups, rs.repeat_interleave(self.streams, 0))
            self.hidden = self.hidden[js].gather(
                2, rs[:, None, :, None].expand(-1, self.streams, -1, self.hidden.shape[-1])
            )
            self.grid = [[self.grid[j][r] for r in places] for (j, _), places in zip(left, kept, strict=True)]
