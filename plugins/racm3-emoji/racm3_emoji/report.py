"""The report of an evaluation: figures as JSON and Markdown, and a grid of drawings that nobody picked."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from racm3.interfaces import Output, Sampler
from racm3.options import Options
from racm3.registry import registry

from .bundle import BUNDLE, sampler_table
from .figures import SEEDS, evaluate
from .protocol import Protocol
from .world import build

if TYPE_CHECKING:
    from racm3.interfaces import Progress

# The grid: one drawing each of so many test entities, evenly spread over the order in which the world lists them.
_GRID_ROWS = 24
_COLUMNS = ("k2", "unguided", "k0", "vanilla", "random")
_NAMES = {
    "k2": "RA-CM3, K = 2", "unguided": "RA-CM3, K = 2, without context guidance", "k1": "RA-CM3, K = 1",
    "k0": "the same weights, K = 0", "random": "two random documents",
    "vanilla": "vanilla CM3", "top document": "retrieval baseline (the top document)",
    "true_drawing_of_another_vendor": "ceiling: another vendor's true drawing",
}  # fmt: skip


@dataclass(frozen=True)
class Results:
    """Figures, and what the grid shows."""

    figures: dict[str, Any]
    protocol: Protocol
    pictures: dict[str, list[list[Output]]]


def evaluate_bundle(
    bundle: Path | None,
    vanilla: Path | None,
    *,
    split: Literal["validation", "test"],
    options: Options,
    seeds: int = len(SEEDS),
    progress: Progress | None = None,
) -> Results:
    """Measure a bundle (the shipped one by default) on the emoji world."""
    from racm3.generators.cm3.generator import Cm3Generator
    from racm3.retrievers.clip import ClipRetriever

    bundle = bundle or BUNDLE
    table = sampler_table(bundle)
    sampler = registry().create(Sampler, table["name"], {key: table[key] for key in table if key != "name"})
    retriever = ClipRetriever(str(bundle / "retriever"))
    evaluator = ClipRetriever(str(bundle / "evaluation-encoder"))
    protocol = Protocol.prepare(build(), retriever, sampler, split)
    figures, pictures = evaluate(
        protocol,
        Cm3Generator(checkpoint=str(bundle / "generator")),
        Cm3Generator(checkpoint=str(vanilla)) if vanilla is not None else None,
        evaluator,
        options=options,
        seeds=tuple(range(seeds)),
        progress=progress,
    )
    figures["split"], figures["sampler"] = split, table
    return Results(figures, protocol, pictures)


def write_report(results: Results, folder: Path) -> None:
    """Write `figures.json`, `report.md` and `grid.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "figures.json").write_text(json.dumps(results.figures, indent=2) + "\n")
    names = _write_grid(results, folder / "grid.png")
    (folder / "report.md").write_text(_markdown(results.figures, names), encoding="utf-8")


def _markdown(figures: dict[str, Any], names: list[str]) -> str:
    tokenizer, retriever = figures["image_tokenizer"], figures["retriever"]
    likelihood, drawings, captions = figures["likelihood"], figures["drawings"], figures["captions"]
    groups = list(tokenizer["psnr_by_group"])
    lines = [
        f"# Figures on {figures['entities']} {figures['split']} entities ({figures['targets']} drawings)",
        "",
        "Every entity weighs the same. Intervals: 95 %, bootstrap over entities.",
        "",
        "## Image tokenizer",
        "",
        f"Mean PSNR {tokenizer['psnr']:.2f} dB with {tokenizer['tokens']} tokens of {tokenizer['codes']} codes.",
        "",
        f"## Retriever: recall@1 in a memory of {retriever['memory']} documents",
        "",
        "| query | memory | recall@1 | interval |",
        "|---|---|---|---|",
    ]
    for key, query, memory in (
        ("name_to_entity", "name", "names and drawings"),
        ("drawing_to_vendor", "drawing", "names and drawings, without the vendor's own of it"),
        ("drawing_to_vendor_drawings_only", "drawing", "drawings alone, without the vendor's own of it"),
        ("name_to_drawing", "name", "drawings alone"),
    ):
        lines.append(f"| {query} | {memory} | {retriever[key]['recall_at_1']:.3f} | {_interval(retriever[key])} |")
    same = figures["same_entity_in_context"]
    lines += [
        "",
        f"Of the documents that the sampler chose for a drawing prompt, the first shows the entity in {same['first']:.1%} "
        f"of cases, one of the two in {same['any']:.1%}.",
        "",
        "## Generator: perplexity per image token of unseen drawings",
        "",
        "| condition | perplexity | interval | against K = 0 | " + " | ".join(groups) + " |",
        "|---" * (4 + len(groups)) + "|",
    ]
    base = likelihood["k0"]
    for key, row in likelihood.items():
        shares = " | ".join(f"{row['by_group'][g] / base['by_group'][g]:.2f}×" for g in groups)
        lines.append(
            f"| {_NAMES[key]} | {row['perplexity']:.2f} | {_interval(row, 2)} | "
            f"{row['perplexity'] / base['perplexity']:.3f}× | {shares} |"
        )
    options = figures["options"]
    lines += [
        "",
        "## Generator: does a drawing retrieve its own entity?",
        "",
        f"By the evaluation encoder, among the true drawings of all {figures['entities']} entities; temperature "
        f"{options['temperature']}, top-p {options['top_p']}, context guidance {options['context_guidance']}, one sample a "
        "prompt and seed, no re-ranking.",
        "",
        "Style: the share of drawings that, among the true drawings of their entity, are nearest to that of the vendor who "
        "was asked for, whom the model cannot look up. To copy what it can look up gives 0.",
        "",
        "| condition | recall@1 | interval | MRR | style | " + " | ".join(groups) + " |",
        "|---" * (5 + len(groups)) + "|",
    ]
    for key, row in drawings.items():
        rank, style = (f"{row[what]:.3f}" if what in row else "" for what in ("mrr", "style"))
        shares = " | ".join(f"{row['by_group'][g]:.2f}" for g in groups)
        lines.append(f"| {_NAMES[key]} | {row['recall_at_1']:.3f} | {_interval(row)} | {rank} | {style} | {shares} |")
    lines += [
        "",
        "## Generator: how far are the drawings, together, from the true ones?",
        "",
        "In the evaluation encoder's space; a seed's drawings against all true ones, averaged over the seeds. CMMD is "
        "times 1000.",
        "",
        "| condition | Fréchet distance | interval | CMMD | interval |",
        "|---|---|---|---|---|",
    ]
    for key, row in drawings.items():
        if "cmmd" in row:
            distance, cmmd = row["frechet_distance_interval"], row["cmmd_interval"]
            lines.append(
                f"| {_NAMES[key]} | {row['frechet_distance']:.3f} | {_range(distance)} | {row['cmmd']:.3f} | {_range(cmmd)} |"
            )
    lines += [
        "",
        "## Captions: the name, greedily",
        "",
        "| condition | exact match | token F1 | CIDEr | interval |",
        "|---|---|---|---|---|",
    ]
    for key, row in captions.items():
        lines.append(
            f"| {_NAMES[key]} | {row['exact_match']:.3f} | {row['token_f1']:.3f} | {row['cider']:.1f} | "
            f"{_range(row['cider_interval'], 1)} |"
        )
    if any(row["tokenizer"] == "plain" for row in captions.values()):
        lines += ["", "CIDEr without Java, by a plain tokenizer: not comparable with published rows."]
    columns = [_NAMES[name] for name in _COLUMNS if name in drawings]
    lines += [
        "",
        "## Samples",
        "",
        f"Seed 0; {len(names)} prompts, evenly spread over all, not picked. From left to right: the two documents that "
        f"were looked up, {', '.join(columns)}, the true drawing.",
        "",
        "![grid of samples](grid.png)",
        "",
        "From top to bottom, in two blocks side by side: " + "; ".join(names) + ".",
        "",
    ]
    return "\n".join(lines)


def _interval(row: dict[str, Any], digits: int = 3) -> str:
    return _range(row["interval"], digits)


def _range(interval: list[float], digits: int = 3) -> str:
    low, high = interval
    return f"{low:.{digits}f} to {high:.{digits}f}"


def _write_grid(results: Results, path: Path) -> list[str]:
    """Rows of drawings side by side; returns the prompts, from top to bottom."""
    from PIL import Image

    protocol = results.protocol
    chosen = np.linspace(0, len(protocol.targets) - 1, _GRID_ROWS).astype(int)
    requests = protocol.drawing_requests("retrieved", 2)
    truth = protocol.truth()
    blank = np.full((64, 64, 3), 235, np.uint8)
    rows = []
    for i in chosen:
        found = [hit.document.images[0].square(64) for hit in requests[i].context]
        row = [*found, *([blank] * (2 - len(found)))]
        made = [results.pictures[name] for name in _COLUMNS if name in results.pictures]
        row += [seeds[0][i].document.images[-1].square(64) for seeds in made]
        row.append(truth[i].images[0].square(64))
        rows.append(np.concatenate([np.pad(p, ((3, 3), (3, 3), (0, 0)), constant_values=255) for p in row], axis=1))
    half = len(rows) // 2
    blocks = [np.concatenate(rows[:half]), np.full((half * 70, 24, 3), 255, np.uint8), np.concatenate(rows[half:])]
    Image.fromarray(np.concatenate(blocks, axis=1)).save(path)
    return [truth[i].texts[0] for i in chosen]
