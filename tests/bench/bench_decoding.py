"""Decoding against transformers' `generate`, in pairs: python tests/bench/bench_decoding.py [row ...] [--out FOLDER]

Rows: eight, one, captions (against `generate`), rate (against the machine's bandwidth), first (against an unseen
context). Both sides have the same weights, dtype, prompt, positions and guidance; runs alternate, and a figure is the
median of the ratios. The machine's memory bandwidth and matrix peak are measured in the same run. Weights are random:
time does not depend on them. Greedy tokens are compared where they must be equal.

--clock cpu counts the seconds of this process alone (use it with OMP_NUM_THREADS=1 on a machine that others use too).
--out writes decoding.json, and decoding.md with the table.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from racm3.generators.cm3.batch import Batch
from racm3.generators.cm3.decoding import Decoder, Job, Row
from racm3.generators.cm3.document_format import DocumentFormat, TokenPart
from racm3.generators.cm3.model import Size, build_model, size_named
from racm3.generators.cm3.prefix_cache import PrefixCache
from racm3.generators.cm3.prompt import Prompt, PromptPart
from racm3.generators.cm3.transformer import Transformer
from racm3.generators.cm3.vocabulary import Vocabulary
from racm3.options import Options

EMOJI = Size(6, 256, 8)  # the shape of the emoji bundle
VOCABULARY = Vocabulary(2048, 1024)
PICTURE = 64  # tokens
CAPTION = 24  # tokens
Figures = dict[str, Any]


@dataclass(frozen=True)
class Clock:
    """Seconds that work takes: on the wall, or of this process."""

    now: Callable[[], float]

    def seconds(self, work: Callable[[], Any]) -> float:
        begin = self.now()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return self.now() - begin

    def ratio(self, ours: Callable[[], Any], theirs: Callable[[], Any], pairs: int) -> Figures:
        """Median of theirs over ours, in alternating pairs, after one run of each to warm up."""
        ours(), theirs()
        found = [(self.seconds(ours), self.seconds(theirs)) for _ in range(pairs)]
        return {
            "figure": statistics.median(theirs / ours for ours, theirs in found),
            "ours_s": statistics.median(ours for ours, _ in found),
            "theirs_s": statistics.median(theirs for _, theirs in found),
        }

    def best(self, work: Callable[[], Any]) -> float:
        """The least seconds of five runs, after one to warm up."""
        work()
        return min(self.seconds(work) for _ in range(5))

    def bandwidth(self, device: str) -> float:
        """Bytes a second of reading a large vector."""
        vector = torch.ones(64 * 2**20, device=device)
        return vector.numel() * 4 / self.best(lambda: torch.dot(vector, vector))  # one vector, read once for both sides

    def machine(self, dtype: torch.dtype) -> dict[str, float]:
        """Bytes a second of reading a large vector, and operations a second of a large product."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        square = torch.ones(1536, 1536, device=device, dtype=dtype)
        product = self.best(lambda: square @ square)
        return {"bandwidth_gb_s": self.bandwidth(device) / 1e9, "matrix_gflop_s": 2 * 1536**3 / product / 1e9}


class Only(LogitsProcessor):
    """The grammar for transformers: these ids and no other."""

    def __init__(self, first: int, stop: int) -> None:
        self.mask = torch.full((VOCABULARY.size,), float("-inf"))
        self.mask[first:stop] = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores + self.mask.to(scores)


class Bench:
    """One model, and the tasks on it."""

    def __init__(self, size: Size, dtype: torch.dtype, *, compile: bool) -> None:
        torch.manual_seed(0)
        self.format = DocumentFormat(VOCABULARY, 104, 28)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model: Any = build_model(size, VOCABULARY, max_positions=4096).to(self.device, dtype).eval()
        self.transformer = Transformer(self.model, compile=compile)
        self.rng = np.random.default_rng(0)

    # --- prompts ----------------------------------------------------------------------------------------------------

    def documents(self, count: int) -> list[Any]:
        written: list[Any] = []
        for _ in range(count):
            parts = [TokenPart("text", self.rng.integers(0, 2048, 12).tolist())]
            parts.append(TokenPart("image", self.rng.integers(0, 1024, PICTURE).tolist()))
            written.append(self.format.write(parts, slot=self.format.slot_after(written[-1]) if written else 0))
        return written

    def drawing(self, documents: int = 2, tokens: int = PICTURE) -> Prompt:
        caption = PromptPart("text", self.rng.integers(0, 2048, 12).tolist())
        return Prompt(self.format, [caption, PromptPart.blank_image(tokens)], self.documents(documents))

    def captioning(self, documents: int = 2) -> Prompt:
        picture = PromptPart("image", self.rng.integers(0, 1024, PICTURE).tolist())
        return Prompt(self.format, [PromptPart.blank_text(), picture], self.documents(documents))

    # --- both sides ---------------------------------------------------------------------------------------------------

    def ours(self, job: Job, options: Options, prefixes: PrefixCache | None = None) -> list[Row]:
        # Without a cache that outlives the call: reading the documents counts.
        return Decoder(self.transformer, PrefixCache(0) if prefixes is None else prefixes).run([job], options)[0]

    def start(self, prompt: Prompt) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and positions of a prompt up to what is drawn: int64 [1, tokens]."""
        pairs = [*((s.ids, s.positions) for s in prompt.context), prompt.start()]
        ids, positions = (np.concatenate([pair[side] for pair in pairs])[None] for side in (0, 1))
        return torch.from_numpy(ids).to(self.device), torch.from_numpy(positions).to(self.device)

    def theirs(self, prompt: Prompt, first: int, stop: int, tokens: int, **settings: Any) -> Any:
        ids, positions = self.start(prompt)
        return self.model.generate(
            ids, attention_mask=torch.ones_like(ids), position_ids=positions, use_cache=True, eos_token_id=None,
            logits_processor=LogitsProcessorList([Only(first, stop)]), pad_token_id=VOCABULARY.control("<pad>"),
            min_new_tokens=tokens, max_new_tokens=tokens, return_dict_in_generate=True, **settings,
        )  # fmt: skip

    # --- rows of the table ----------------------------------------------------------------------------------------------

    def eight_pictures(self, clock: Clock, pairs: int) -> Figures:
        """transformers reads the unprompted side from its start too."""
        prompt = self.drawing()
        hidden = prompt.hiding([0])
        negative = self.start(hidden)[0].expand(8, -1)
        return clock.ratio(
            lambda: self.ours(Job([prompt, hidden], True), Options(n=8, guidance=3.0)),
            lambda: self.theirs(
                prompt, VOCABULARY.first_image, VOCABULARY.size, PICTURE, do_sample=True, num_return_sequences=8,
                guidance_scale=3.0, negative_prompt_ids=negative,
                negative_prompt_attention_mask=torch.ones_like(negative),
            ),
            pairs,
        )  # fmt: skip

    def one_picture(self, clock: Clock, pairs: int) -> Figures:
        prompt, kept = self.drawing(), {}

        def ours() -> None:
            kept["ours"] = self.ours(Job([prompt]), Options(temperature=0))[0].filled[0]

        def theirs() -> None:
            made = self.theirs(prompt, VOCABULARY.first_image, VOCABULARY.size, PICTURE, do_sample=False)
            kept["theirs"] = made.sequences[0, -PICTURE:].tolist()

        figures = clock.ratio(ours, theirs, pairs)
        return {**figures, "greedy_tokens_equal": kept["ours"] == kept["theirs"]}

    def captions(self, clock: Clock, pairs: int) -> Figures:
        """With the log-probabilities that re-ranking by perplexity takes."""
        prompt = self.captioning()

        def ours() -> None:
            rows = self.ours(Job([prompt]), Options(n=32, max_text_tokens=CAPTION, min_text_tokens=CAPTION))
            sorted(rows, key=lambda row: -row.log_probability / row.tokens)

        def theirs() -> None:
            made = self.theirs(
                prompt, 0, VOCABULARY.text_tokens, CAPTION, do_sample=True, num_return_sequences=32, output_logits=True
            )
            self.model.compute_transition_scores(made.sequences, made.logits, normalize_logits=True).sum(1).argsort()

        return clock.ratio(ours, theirs, pairs)

    def decode_rate(self, clock: Clock, pairs: int) -> Figures:
        """Tokens a second of one row, as a share of what the bandwidth allows for the weights and the cache.

        The bandwidth is measured before each run, since it is what other processes leave of it.
        """
        tokens = 4 * PICTURE
        prompt, prefixes = self.drawing(tokens=tokens), PrefixCache()

        def decoding() -> float:
            batch = Batch(self.transformer, prefixes, [[Row(Job([prompt]), 0, Options())]])  # reads the prompt
            begin = clock.now()
            while batch.grid:
                batch.advance()
            return clock.now() - begin

        decoding()
        measured = [(clock.bandwidth(self.device), decoding()) for _ in range(pairs)]
        config, size = self.model.config, self.model.dtype.itemsize
        read = sum(p.numel() for p in self.model.model.layers.parameters()) * size
        read += config.hidden_size * VOCABULARY.image_tokens * size  # the part of the head that is in play
        length = self.start(prompt)[0].shape[1] + tokens / 2
        read += 2 * config.num_hidden_layers * length * config.hidden_size * size
        fed = tokens - 1  # the first one is predicted by the prompt
        return {
            "figure": statistics.median(fed * read / spent / bandwidth for bandwidth, spent in measured),
            "tokens_s": fed / statistics.median(spent for _, spent in measured),
            "bytes_a_token": read,
        }

    def first_token(self, clock: Clock, pairs: int) -> Figures:
        documents = self.documents(25)
        job = Job([Prompt(self.format, [PromptPart.blank_text([1, 2])], documents)])
        prefixes, options = PrefixCache(), Options(max_text_tokens=1)
        figures = clock.ratio(
            lambda: self.ours(job, options, prefixes), lambda: self.ours(job, options), pairs
        )  # fmt: skip
        return {**figures, "context_tokens": sum(map(len, documents))}


@dataclass(frozen=True)
class Line:
    """A row of the table: what, against what, and the least figure that is good enough."""

    what: str
    against: str
    goal: float
    size: str = ""  # as asked for, if empty


LINES = {
    "eight": Line("8 pictures from one caption, guidance 3, K = 2", "transformers `generate`", 2.5),
    "one": Line("one picture, no guidance, greedy", "transformers `generate`", 1.5),
    "rate": Line("decode rate, 125m shape, batch 1", "bandwidth ÷ (weight + cache bytes)", 0.7, "125m"),
    "first": Line("first token with a seen context of 2,000 tokens", "unseen", 15.0),
    "captions": Line("32 captions with re-ranking", "transformers `generate`", 2.0),
}


def table(figures: Figures) -> str:
    """The figures as a Markdown table, under a line that says where they come from."""
    machine = figures["machine"]
    lines = [
        f"{figures['size']}{', compiled' if figures['compile'] else ''}, {figures['dtype']}, {figures['threads']} threads, {figures['clock']} clock, median of "
        f"{figures['pairs']} pairs; memory {machine['bandwidth_gb_s']:.1f} GB/s, matrices "
        f"{machine['matrix_gflop_s']:.0f} GFLOP/s",
        "",
        "| what | against | goal | measured |",
        "|---|---|---|---|",
    ]
    for name, line in LINES.items():
        if name in figures:
            sign, found = "" if name == "rate" else "×", figures[name]
            said = f"{found['figure']:.2f}{sign}"
            if "greedy_tokens_equal" in found:
                said += ", tokens identical" if found["greedy_tokens_equal"] else ", tokens differ"
            lines.append(f"| {line.what} | {line.against} | ≥ {line.goal}{sign} | {said} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="row", help=f"of {', '.join(LINES)}; all, if none is named")
    parser.add_argument("--size", default="emoji", help="emoji (the bundle's shape), tiny, small ...; rate has its own")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--compile", action="store_true", help="our side with torch.compile")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if unknown := set(arguments.rows) - set(LINES):
        parser.error(f"no row named {', '.join(sorted(unknown))}; there are {', '.join(LINES)}")
    clock = Clock(time.perf_counter if arguments.clock == "wall" else time.process_time)
    dtype = getattr(torch, arguments.dtype)
    figures: Figures = {
        **{name: getattr(arguments, name) for name in ("size", "dtype", "compile", "pairs", "clock")},
        "threads": torch.get_num_threads(), "torch": torch.__version__, "machine": clock.machine(dtype),
    }  # fmt: skip
    for name in arguments.rows or LINES:
        size = LINES[name].size or arguments.size
        bench = Bench(EMOJI if size == "emoji" else size_named(size), dtype, compile=arguments.compile)
        tasks = {
            "eight": bench.eight_pictures, "one": bench.one_picture, "rate": bench.decode_rate,
            "first": bench.first_token, "captions": bench.captions,
        }  # fmt: skip
        figures[name] = tasks[name](clock, arguments.pairs)
        print(json.dumps({name: figures[name]}), flush=True)
    print("\n" + table(figures), end="")
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "decoding.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
        (arguments.out / "decoding.md").write_text(table(figures), encoding="utf-8")


if __name__ == "__main__":
    main()
