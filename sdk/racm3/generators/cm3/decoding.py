"""Decoding: drawing tokens for the blanks of prompts under the grammar of the document format.

A picture holds exactly its number of image tokens, a text only text tokens. Many rows (samples of many prompts) are
decoded side by side; each has its own place in its prompt and its own random stream, so that a sample does not depend
on what else is in the batch, up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np

from ...options import Options
from .batch import Batch
from .drawing import checked
from .prefix_cache import PrefixCache
from .prompt import Fill, Prompt
from .transformer import Transformer

Step = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class Job:
    """What is to be filled: one prompt, as the streams that are run side by side to predict each token.

    streams: the prompt behind each group of documents; if guided, after them as many with the prompt hidden; if
    context_guided, at the end the prompt without documents. All have the same blanks. key: what sets the random streams of
    this job apart from those of others with the same seed.
    """

    streams: Sequence[Prompt]
    guided: bool = False
    context_guided: bool = False
    key: tuple[int, ...] = ()


@dataclass
class Row:
    """One sample on its way: which blank it is at, what is still to be fed, and what was drawn, by blank."""

    job: Job
    sample: int
    options: Options
    fills: list[Fill] = field(default_factory=list)  # of the blank it is at, in each stream; none: it is done
    feed: list[Step] = field(default_factory=list)  # ids and positions, in each stream
    filled: list[list[int]] = field(default_factory=list)
    log_probability: float = 0.0
    tokens: int = 0

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng([self.options.seed, *self.job.key, self.sample])
        self._enter()

    @property
    def contrasted(self) -> bool:
        """Whether this sample is drawn by contrast: all are, none, or every second one."""
        return self.options.decoding == "contrast" or (self.options.decoding == "mixed" and self.sample % 2 == 1)

    def draws(self) -> bool:
        """Whether the next token is to be drawn (nothing is waiting to be fed, and a blank is open)."""
        return bool(self.fills) and not self.feed

    def certain(self) -> int:
        """How many tokens are surely drawn next, with nothing fed between them."""
        fill, at = self.fills[0], len(self.filled[-1])
        if fill.length is None:
            return 1
        return min((place for place in fill.known if place > at), default=fill.length) - at

    def place(self) -> list[int]:
        """The position of the next token that is drawn, in each stream."""
        return [fill.position + len(self.filled[-1]) for fill in self.fills]

    def accept(self, token: int, log_probability: float, *, fed: bool = False) -> None:
        """Take a drawn token. fed: the model has seen it already."""
        self.log_probability += checked(log_probability)
        self.tokens += 1
        if token == self.fills[0].stop:
            self._leave()
            return
        self._put(token, fed=fed)
        self._go_on()

    def _put(self, token: int, *, fed: bool = False) -> None:
        if not fed:
            self.feed.append(((token,) * len(self.fills), tuple(self.place())))
        self.filled[-1].append(token)

    def _go_on(self) -> None:
        """Pass over what is known; at the end of a blank, on to the next."""
        fill, drawn = self.fills[0], self.filled[-1]
        while len(drawn) in fill.known:
            self._put(fill.known[len(drawn)])
        if len(drawn) == (self.options.max_text_tokens if fill.length is None else fill.length):
            self._leave()

    def _enter(self) -> None:
        number = len(self.filled)
        if number == len(self.job.streams[0].blanks):
            self.fills, self.feed = [], []
            return
        self.fills = [prompt.fill(number, self.filled) for prompt in self.job.streams]
        if number:  # the first lead belongs to what the row starts from
            for steps in zip(*(fill.lead for fill in self.fills), strict=True):
                self.feed.append((tuple(token for token, _ in steps), tuple(position for _, position in steps)))
        self.filled.append([])
        self._go_on()

    def _leave(self) -> None:
        self._enter()


class Decoder:
    """Draws tokens with a Llama; `batch_rows` rows at most, each stream counted, are decoded at a time."""

    def __init__(self, transformer: Transformer, prefixes: PrefixCache | None = None, *, batch_rows: int = 64) -> None:
        self.transformer, self.batch_rows = transformer, batch_rows
        self.prefixes = PrefixCache() if prefixes is None else prefixes

    def run(
        self, jobs: Sequence[Job], options: Options, progress: Callable[[int], None] | None = None
    ) -> list[list[Row]]:
        """`options.n` finished rows for each job."""
        rows = self.rows(jobs, options)
        for _ in self.steps(rows, progress=progress):
            pass
        return rows

    def rows(self, jobs: Sequence[Job], options: Options) -> list[list[Row]]:
        """Rows that have not drawn anything yet: `options.n` for each job."""
        return [[Row(job, sample, options) for sample in range(options.n)] for job in jobs]

    def steps(
        self, rows: Sequence[list[Row]], *, every: int | None = None, progress: Callable[[int], None] | None = None
    ) -> Iterator[None]:
        """Finish the rows of jobs, in steps of at most `every` tokens. Nothing is left behind when it is not gone on with."""
        done = 0
        for grid in self._grids(rows):
            batch = Batch(self.transformer, self.prefixes, grid)
            while batch.grid:
                batch.advance(every)
                yield
            done += sum(len(samples) for samples in grid)
            if progress is not None:
                progress(done)

    def _grids(self, rows: Sequence[list[Row]]) -> Iterator[list[list[Row]]]:
        """Rows by job, cut into batches: of jobs with as many streams and rows, those of like length side by side."""
        pieces: list[list[Row]] = []
        for samples in rows:
            fit = max(1, self.batch_rows // len(samples[0].job.streams)) if samples else 1
            pieces += [samples[begin : begin + fit] for begin in range(0, len(samples), fit)]

        def shape(piece: list[Row]) -> tuple[int, bool, bool, int]:
            job = piece[0].job
            return len(job.streams), job.guided, job.context_guided, len(piece)

        def length(piece: list[Row]) -> int:
            prompt = piece[0].job.streams[0]
            return sum(map(len, prompt.context)) + len(prompt.start()[0])

        pieces.sort(key=lambda piece: (shape(piece), length(piece)))
        for (streams, _, _, count), alike in groupby(pieces, key=shape):
            kind, fit = list(alike), max(1, self.batch_rows // (streams * count))
            for begin in range(0, len(kind), fit):
                yield kind[begin : begin + fit]
