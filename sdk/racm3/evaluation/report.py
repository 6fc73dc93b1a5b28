"""The report of an evaluation: `evaluation.json`, `report.md`, and `index.html` with a grid of samples."""

from __future__ import annotations

import json
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from ..durable import replace_file
from .conditions import CONDITIONS
from .evaluate import Evaluation, Sample
from .page import grounds, page, picture, table
from .published import PUBLISHED

# Titles of figures, how many decimals they have, and which way is better.
_METRICS = {
    "recall_at_1": ("recall@1 ↑", 3), "mrr": ("MRR ↑", 3), "clip_score": ("CLIPScore ↑", 1),
    "frechet_distance": ("Fréchet distance ↓", 3), "cmmd": ("CMMD ↓", 3), "fid": ("FID ↓", 3),
    "cider": ("CIDEr ↑", 1), "bleu_4": ("BLEU-4 ↑", 1), "exact_match": ("exact match ↑", 3), "token_f1": ("token F1 ↑", 3),
    "perplexity": ("perplexity ↓", 2), "accuracy": ("accuracy ↑", 3),
}  # fmt: skip
_PUBLISHED = {"fid": "FID ↓, text → image", "cider": "CIDEr ↑, image → text", "classification": "k-shot accuracy ↑"}


def write_report(evaluation: Evaluation, folder: str | Path) -> list[Path]:
    """Write the three files into a folder, which is made, and return their paths. Raises OSError where it cannot."""
    files = {
        "evaluation.json": json.dumps({**evaluation.figures, "published_not_run": PUBLISHED}, indent=2) + "\n",
        "report.md": markdown(evaluation.figures),
        "index.html": html(evaluation),
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        replace_file(folder / name, content)
    return [folder / name for name in files]


def markdown(figures: dict[str, Any]) -> str:
    """Tables of all figures, of what they rest on, and of the published rows beside them."""
    lines = [f"# Evaluation on {figures['pairs']} pairs of {figures['entities']} entities", "", _setting(figures), ""]
    for title, rows in _sections(figures):
        names = _columns(rows)
        lines += [f"## {title}", "", "| condition | " + " | ".join(_METRICS[name][0] for name in names) + " |"]
        lines.append("|---" * (1 + len(names)) + "|")
        lines += [
            f"| {CONDITIONS[condition]} | " + " | ".join(_cell(name, row.get(name)) for name in names) + " |"
            for condition, row in rows.items()
        ]
        lines.append("")
    lines += [f"- {note}" for note in figures["notes"]]
    lines += ["", "## Published, not run here", "", "Rows of papers, on MS-COCO, by other models on other data.", ""]
    for name, published in PUBLISHED.items():
        lines.append(f"- {_PUBLISHED[name]}: " + " · ".join(f"{row['model']} {row['value']}" for row in published))
    return "\n".join(lines) + "\n"


def html(evaluation: Evaluation) -> str:
    """The same with a grid of samples."""
    figures = evaluation.figures
    title = f"Evaluation on {figures['pairs']} pairs of {figures['entities']} entities"
    body = [f'<h1>{title}</h1><p class="lead">{escape(_setting(figures))}</p>']
    for section, rows in _sections(figures):
        names = _columns(rows)
        shown = [
            f'<tr><td class="prompt">{escape(CONDITIONS[condition])}</td>'
            + "".join(
                f'<td class="figure">{_cell(name, row.get(name), "<br><small>", "</small>")}</td>' for name in names
            )
            + "</tr>"
            for condition, row in rows.items()
        ]
        body += [f"<h2>{escape(section)}</h2>", table(["condition", *(_METRICS[name][0] for name in names)], shown)]
    body.append("<ul>" + "".join(f"<li>{escape(note)}</li>" for note in figures["notes"]) + "</ul>")
    body.append("<h2>Published, not run here</h2><p>Rows of papers, on MS-COCO, by other models on other data.</p>")
    for name, published in PUBLISHED.items():
        rows_shown = (f"<tr><td>{escape(row['model'])}</td><td>{row['value']}</td></tr>" for row in published)
        body.append(table([_PUBLISHED[name], "published"], rows_shown))
    body += _grids(evaluation.samples)
    return page(title, "\n".join(body))


def _grids(samples: list[Sample]) -> Iterator[str]:
    if not samples:
        return
    names = list(samples[0].drawings)
    titles = [CONDITIONS[name] for name in names]
    yield f"<h2>Text to picture</h2><p>{len(samples)} pairs, evenly spread, picked by nobody; the first seed.</p>"
    yield table(
        ["Prompt", "Retrieved documents, with scores", *titles, "The true picture"],
        (
            f'<tr><td class="prompt">{escape(one.pair.caption)}</td><td class="hits">{grounds(one.hits)}</td>'
            + "".join(f"<td>{picture(one.drawings[name], one.pair.caption)}</td>" for name in names)
            + f"<td>{picture(one.pair.image, one.pair.caption)}</td></tr>"
            for one in samples
        ),
    )
    yield "<h2>Picture to text</h2>"
    yield table(
        ["Picture", *titles, "A true caption"],
        (
            f"<tr><td>{picture(one.pair.image, one.pair.caption)}</td>"
            + "".join(f"<td>{escape(one.captions[name])}</td>" for name in names)
            + f"<td>{escape(one.pair.caption)}</td></tr>"
            for one in samples
        ),
    )


def _sections(figures: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    yield "Text to picture", figures["text_to_image"]
    yield "Picture to text", figures["image_to_text"]
    if asked := figures.get("classification"):
        title = f"{asked['shots']}-shot classification, {asked['ways']} classes, {asked['episodes']} pictures"
        yield title, asked["figures"]


def _columns(rows: dict[str, Any]) -> list[str]:
    present = {name for row in rows.values() for name in row}
    return [name for name in _METRICS if name in present]


def _cell(name: str, figure: dict[str, Any] | None, before: str = " (", after: str = ")") -> str:
    if figure is None:
        return ""
    digits = _METRICS[name][1]
    low, high = figure["interval"]
    return f"{figure['value']:.{digits}f}{before}{low:.{digits}f} to {high:.{digits}f}{after}"


def _setting(figures: dict[str, Any]) -> str:
    options = figures["options"]
    drawings = "1 drawing" if figures["seeds"] == 1 else f"{figures['seeds']} drawings"
    network = "Inception" if figures["fid_network"] == "inception" else "the evaluation encoder"
    return (
        f"{figures['k']} documents a prompt, from a memory of {figures['memory']}; {drawings} a prompt at "
        f"temperature {options['temperature']} and top-p {options['top_p']}; captions greedily; context guidance "
        f"{options['context_guidance']}. Every entity weighs the same; 95 % intervals, bootstrap over entities. FID in the "
        f"space of {network}; CMMD times 1000; CIDEr and BLEU times 100, by the {figures['caption_tokenizer']} tokenizer."
    )
