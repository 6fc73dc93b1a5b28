"""Decoding against transformers' `generate`, in pairs: python tests/bench/bench_decoding.py [--size small] [--pairs 5]

Both sides have the same weights, dtype, prompt, positions and guidance; runs alternate, and the figure is the median of
the ratios. The machine's memory bandwidth and matrix peak are measured in the same run. Weights are random: time does
not depend on them. Greedy tokens are compared where they must be equal.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from racm3.generators.cm3.decoding import Decoder, Job
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


class Only(LogitsProcessor):
    """The grammar for transformers: these ids and no other."""

    def __init__(self, first: int, stop: int, size: int) -> None:
        self.mask = torch.full((size,), float("-inf"))
        self.mask[first:stop] = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores + self.mask.to(scores)


def seconds(work: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def ratio(ours: Callable[[], Any], theirs: Callable[[], Any], pairs: int) -> dict[str, float]:
    """Median of theirs over ours, in alternating pairs, after one run of each to warm up."""
    ours(), theirs()
    found = [(seconds(ours), seconds(theirs)) for _ in range(pairs)]
    return {
        "ratio": statistics.median(theirs / ours for ours, theirs in found),
        "ours_s": statistics.median(ours for ours, _ in found),
        "transformers_s": statistics.median(theirs for _, theirs in found),
    }


def machine() -> dict[str, float]:
    """Bytes a second of reading a large vector, and operations a second of a large product."""
    vector = torch.ones(64 * 2**20)
    square = torch.ones(1536, 1536)
    torch.mv(square, square[0])
    read = min(seconds(lambda: torch.dot(vector, vector)) for _ in range(3))  # one vector, read once for both sides
    product = min(seconds(lambda: square @ square) for _ in range(3))
    return {"bandwidth_gb_s": vector.numel() * 4 / read / 1e9, "matrix_gflop_s": 2 * 1536**3 / product / 1e9}


class Bench:
    """One model, and the tasks on it."""

    def __init__(self, size: Size, dtype: torch.dtype, pairs: int) -> None:
        torch.manual_seed(0)
        self.format = DocumentFormat(VOCABULARY, 104, 28)
        self.model: Any = build_model(size, VOCABULARY, max_positions=4096).to(dtype).eval()
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model.to(device)
        self.transformer, self.pairs = Transformer(self.model), pairs
        self.rng = np.random.default_rng(0)

    def documents(self, count: int) -> list[Any]:
        written: list[Any] = []
        for _ in range(count):
            parts = [TokenPart("text", self.rng.integers(0, 2048, 12).tolist())]
            parts.append(TokenPart("image", self.rng.integers(0, 1024, PICTURE).tolist()))
            written.append(self.format.write(parts, slot=self.format.slot_after(written[-1]) if written else 0))
        return written

    def drawing(self, documents: int = 2) -> Prompt:
        caption = PromptPart("text", self.rng.integers(0, 2048, 12).tolist())
        return Prompt(self.format, [caption, PromptPart.blank_image(PICTURE)], self.documents(documents))

    def ours(self, job: Job, options: Options, prefixes: PrefixCache | None = None) -> Any:
        # Without a cache that outlives the call: reading the documents counts.
        return Decoder(self.transformer, prefixes or PrefixCache(0)).run([job], options)[0]

    def theirs(self, prompt: Prompt, first: int, stop: int, **settings: Any) -> torch.Tensor:
        own = prompt.start()
        ids = torch.from_numpy(np.concatenate([*(s.ids for s in prompt.context), own[0]]))[None]
        positions = torch.from_numpy(np.concatenate([*(s.positions for s in prompt.context), own[1]]))[None]
        ids, positions = ids.to(self.model.device), positions.to(self.model.device)
        return self.model.generate(
            ids, attention_mask=torch.ones_like(ids), position_ids=positions, use_cache=True,
            logits_processor=LogitsProcessorList([Only(first, stop, VOCABULARY.size)]), eos_token_id=None,
            pad_token_id=VOCABULARY.control("<pad>"), **settings,
        )[:, ids.shape[1] :]  # fmt: skip

    def eight_pictures(self) -> dict[str, float]:
        """8 pictures from one caption, guidance 3, K = 2. transformers reads the unprompted side from its start too."""
        prompt = self.drawing()
        hidden = prompt.hiding([0])
        negative = torch.from_numpy(np.concatenate([*(s.ids for s in hidden.context), hidden.start()[0]]))[None]
        negative = negative.to(self.model.device).expand(8, -1)
        return ratio(
            lambda: self.ours(Job([prompt, hidden], True), Options(n=8, guidance=3.0)),
            lambda: self.theirs(
                prompt, VOCABULARY.first_image, VOCABULARY.size, do_sample=True, num_return_sequences=8, guidance_scale=3.0,
                negative_prompt_ids=negative, negative_prompt_attention_mask=torch.ones_like(negative),
                min_new_tokens=PICTURE, max_new_tokens=PICTURE,
            ),
            self.pairs,
        )  # fmt: skip

    def one_picture(self) -> dict[str, float]:
        """One picture, no guidance, greedy: the tokens must be the same."""
        prompt, kept = self.drawing(), {}

        def ours() -> None:
            kept["ours"] = self.ours(Job([prompt]), Options(temperature=0))[0].filled[0]

        def theirs() -> None:
            kept["theirs"] = self.theirs(
                prompt, VOCABULARY.first_image, VOCABULARY.size, do_sample=False, min_new_tokens=PICTURE,
                max_new_tokens=PICTURE,
            )[0].tolist()  # fmt: skip

        found = ratio(ours, theirs, self.pairs)
        return {**found, "greedy_tokens_equal": float(kept["ours"] == kept["theirs"])}

    def captions(self) -> dict[str, float]:
        """32 captions of a picture, 24 tokens each, with the log-probabilities that re-ranking by perplexity takes."""
        picture = PromptPart("image", self.rng.integers(0, 1024, PICTURE).tolist())
        prompt = Prompt(self.format, [PromptPart.blank_text(), picture], self.documents(2))

        def theirs() -> None:
            own = prompt.start()
            ids = torch.from_numpy(np.concatenate([*(s.ids for s in prompt.context), own[0]]))[None]
            positions = torch.from_numpy(np.concatenate([*(s.positions for s in prompt.context), own[1]]))[None]
            made = self.model.generate(
                ids.to(self.model.device), attention_mask=torch.ones_like(ids).to(self.model.device),
                position_ids=positions.to(self.model.device), do_sample=True, num_return_sequences=32,
                min_new_tokens=24, max_new_tokens=24, eos_token_id=None, pad_token_id=VOCABULARY.control("<pad>"),
                logits_processor=LogitsProcessorList([Only(0, 2048, VOCABULARY.size)]), output_logits=True,
                return_dict_in_generate=True,
            )  # fmt: skip
            self.model.compute_transition_scores(made.sequences, made.logits, normalize_logits=True).sum(1).argsort()

        def ours() -> None:
            rows = self.ours(Job([prompt]), Options(n=32, max_text_tokens=24, min_text_tokens=24))
            sorted(rows, key=lambda row: -row.log_probability / row.tokens)

        return ratio(ours, theirs, self.pairs)

    def decode_rate(self, bandwidth: float) -> dict[str, float]:
        """Tokens a second at batch 1, as a share of what the bandwidth allows for weights and cache."""
        prompt, prefixes = self.drawing(), PrefixCache()
        self.ours(Job([prompt]), Options(), prefixes)
        spent = statistics.median(
            seconds(lambda: self.ours(Job([prompt]), Options(), prefixes)) for _ in range(self.pairs)
        )
        read = sum(p.numel() * p.element_size() for p in self.model.model.layers.parameters())
        read += self.model.config.hidden_size * VOCABULARY.image_tokens * 4
        length = sum(map(len, prompt.context)) + PICTURE / 2
        read += 2 * self.transformer.layers * length * self.model.config.hidden_size * 4
        rate = PICTURE / spent
        return {"tokens_s": rate, "share_of_bandwidth": rate * read / (bandwidth * 1e9)}

    def first_token(self) -> dict[str, float]:
        """The first token behind a context of some 2,000 tokens that was seen, against one that was not."""
        prompt, prefixes = self.drawing(25), PrefixCache()
        job, options = (
            Job([Prompt(self.format, [PromptPart.blank_text([1, 2])], prompt.context)]),
            Options(max_text_tokens=1),
        )
        self.ours(job, options, prefixes)
        seen = statistics.median(seconds(lambda: self.ours(job, options, prefixes)) for _ in range(self.pairs))
        unseen = seconds(lambda: self.ours(job, options))
        return {
            "context_tokens": sum(map(len, prompt.context)),
            "ratio": unseen / seen,
            "seen_s": seen,
            "unseen_s": unseen,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="emoji", help="emoji (the bundle's shape), tiny, small, 125m ...")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--only", nargs="*", help="eight one captions rate first")
    arguments = parser.parse_args()
    size = EMOJI if arguments.size == "emoji" else size_named(arguments.size)
    figures: dict[str, Any] = {"size": arguments.size, "threads": torch.get_num_threads(), "machine": machine()}
    bench = Bench(size, getattr(torch, arguments.dtype), arguments.pairs)
    tasks = {
        "eight": bench.eight_pictures, "one": bench.one_picture, "captions": bench.captions,
        "rate": lambda: bench.decode_rate(figures["machine"]["bandwidth_gb_s"]), "first": bench.first_token,
    }  # fmt: skip
    for name, task in tasks.items():
        if not arguments.only or name in arguments.only:
            figures[name] = task()
            print(json.dumps({name: figures[name]}), flush=True)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
