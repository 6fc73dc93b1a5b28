"""The report of an analysis: `ablation.json`, `report.md`, a plot for each group, and `index.html` with sample grids."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping
from html import escape
from typing import Any

from ..document import Image
from ..durable import replace_file
from ..evaluation.page import grounds, page, picture, table
from ..training.run_files import reading
from .analysis import Ablation, shown_places
from .figures import figures
from .measure import Bench
from .plots import plot_group
from .rows import Row

COLUMNS = (
    "row", "nats per image token ↓", "spread over seeds", "against the reference, in nats", "perplexity ↓", "recall@1 ↑",
    "seeds", "parameters", "minutes of training",
)  # fmt: skip


def write_report(ablation: Ablation, bench: Bench, notes: list[str] | None = None) -> dict[str, Any]:
    """Write all files into the folder of the analysis, and give the figures; what is not measured yet is left blank."""
    found, out = figures(ablation, bench, notes or []), ablation.out
    out.mkdir(parents=True, exist_ok=True)
    for group in found["groups"]:
        plot_group(group, out / f"{group['name']}.png")
    files = {
        "ablation.json": json.dumps(found, indent=2) + "\n",
        "report.md": markdown(found),
        "index.html": html(ablation, bench, found),
    }
    for name, content in files.items():
        replace_file(out / name, content)
    return found


def markdown(found: Mapping[str, Any]) -> str:
    """A table for each group."""
    lines = ["# What matters, and how much", "", _setting(found), ""]
    for group in found["groups"]:
        lines += [f"## {group['title']}", "", "| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
        lines += ["| " + " | ".join(_cells(row, "**{}**".format)) + " |" for row in group["rows"]]
        lines += ["", f"![{group['title']}]({group['name']}.png)", ""]
    lines += [f"- {note}" for note in _notes(found)]
    return "\n".join(lines) + "\n"


def html(ablation: Ablation, bench: Bench, found: Mapping[str, Any]) -> str:
    """The same in one file, with the plots and with grids of samples."""
    body = [f"<h1>What matters, and how much</h1><p class='lead'>{escape(_setting(found))}</p>"]
    for group in found["groups"]:
        shown = (
            "<tr>" + "".join(f"<td>{cell}</td>" for cell in _cells(row, "<b>{}</b>".format)) + "</tr>"
            for row in group["rows"]
        )
        drawn = base64.b64encode((ablation.out / f"{group['name']}.png").read_bytes()).decode()
        body += [
            f"<h2>{escape(group['title'])}</h2>", table(COLUMNS, shown),
            f'<p><img alt="{escape(group["title"])}" style="width:46rem;max-width:100%;height:auto" '
            f'src="data:image/png;base64,{drawn}"></p>',
            *_grid(ablation, bench, [row for row in ablation.plan.rows if row.group == group["name"]]),
        ]  # fmt: skip
    body.append("<ul>" + "".join(f"<li>{escape(note)}</li>" for note in _notes(found)) + "</ul>")
    return page("What matters, and how much", "\n".join(body))


def _grid(ablation: Ablation, bench: Bench, rows: list[Row]) -> Iterator[str]:
    """What the models of a group drew for the same captions: the first seed, evenly spread, picked by nobody."""
    places = shown_places(bench.spread(ablation.drawings)) if ablation.drawings else []
    reference = next(row for row in rows if row.reference)

    def drawn(row: Row, place: int) -> str:
        measured = ablation.measurement(row.key, 0)
        path = measured.with_suffix("") / f"{place}.png"
        if not path.is_file():
            return ""
        with reading(path, f"Delete {measured}: it is measured again."):
            return picture(Image(path), row.label)

    def line(place: int) -> str:
        truth = bench.truth(place)
        hits = grounds(bench.hits(place, reference.condition, 0)).replace("<b>by hand</b> ", "")
        return (
            f'<tr><td class="prompt">{escape(truth.text)}</td><td class="hits">{hits}</td>'
            + "".join(f"<td>{drawn(row, place)}</td>" for row in rows)
            + f"<td>{picture(truth.image, truth.text)}</td></tr>"
        )

    if places:
        titles = ["Prompt", "Documents of the reference", *(row.label for row in rows), "The true picture"]
        yield table(titles, map(line, places))


def _cells(row: Mapping[str, Any], strong: Callable[[str], str]) -> list[str]:
    label = strong(row["label"]) if row["reference"] else row["label"]
    if row["nats"] is None:
        return [label, "not measured yet", *[""] * (len(COLUMNS) - 2)]
    nats, difference, recall = row["nats"], row["difference"], row["recall_at_1"]
    return [
        label,
        f"{nats['value']:.4f}",
        "" if nats["spread"] is None else f"{nats['spread']:.4f}",
        "reference" if difference is None and row["reference"] else _within(difference, "+.4f"),
        _within(row["perplexity"], ".2f"),
        _within(recall, ".3f"),
        str(len(row["seeds"])),
        f"{row['parameters'] / 1e6:.1f} M",
        f"{row['training_seconds'] / 60:.1f}",
    ]


def _within(figure: Mapping[str, Any] | None, form: str) -> str:
    if figure is None:
        return ""
    low, high = figure["interval"]
    return f"{figure['value']:{form}} ({low:{form}} to {high:{form}})"


def _setting(found: Mapping[str, Any]) -> str:
    hardware, drawings = found["hardware"], found["drawings"]
    said = (
        f"{found['steps']} steps a model on {found['training_documents']} documents, {found['training_hours']:.2f} hours of "
        f"training in all on {hardware['device']}, {hardware['cores']} cores, {hardware['precision']}, torch {hardware['torch']}. "
        f"Measured on {found['held_out']} held-out documents of {found['entities']} entities, shown K = {found['k']} documents "
        "where nothing else is said, which their captions found. "
    )
    if drawings:
        said += (
            f"recall@1: of {min(drawings, found['held_out'])} drawings a seed, at temperature {found['options']['temperature']} and "
            f"top-p {found['options']['top_p']}, without re-ranking, those nearest to a picture of their own entity. "
        )
    return said


def _notes(found: Mapping[str, Any]) -> list[str]:
    notes = [
        "Every entity weighs the same. Intervals: 95 %, bootstrap over entities, of the mean over the seeds; the spread is the "
        "standard deviation between models of different seeds, which the intervals do not hold.",
        "Against the reference: the same documents and the same seeds, pair by pair; below zero is better.",
        "More documents than in training are read in groups, and the predicted probabilities averaged.",
        "The model with random documents is trained without copies of the document itself among them.",
    ]
    few = {len(row["seeds"]) for group in found["groups"] for row in group["rows"]}
    if max(few) == 1:
        notes.append("One seed: differences smaller than what another seed would make cannot be told from chance.")
    elif len(few) > 1:
        notes.append("Not all rows have the same number of seeds; a difference is taken over those that both have.")
    return [*notes, *found["notes"]]
