"""Plots of the analysis, one for each group: how much likelier the held-out pictures are, row by row."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import ConfigError

_OURS, _OTHERS, _SEED = "#0969da", "#57606a", "#8c959f"


def require_matplotlib() -> None:
    """Raise `ConfigError` where the library that draws the plots is missing."""
    if find_spec("matplotlib") is None:
        raise ConfigError("Plots are drawn with matplotlib.", 'pip install "racm3[evaluation]"')


def plot_group(group: Mapping[str, Any], path: Path) -> None:
    """Write a PNG: a line for each row, how far it lies from the reference, and each seed as a small dot.

    The differences, and not the rows themselves, as documents differ more from each other than rows do.
    """
    from matplotlib.figure import Figure

    reference = next(row for row in group["rows"] if row["reference"])
    rows = [row for row in group["rows"] if row["reference"] or row["difference"] is not None]
    figure = Figure(figsize=(7.2, 1.1 + 0.42 * len(rows)), dpi=144, layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color=_OURS, linewidth=1, linestyle=":")
    for place, row in enumerate(rows):
        if row["reference"]:
            axes.plot([0], [place], "o", color=_OURS, markersize=7)
            continue
        found = row["difference"]
        axes.hlines(place, *found["interval"], color=_OTHERS, linewidth=2, alpha=0.5)
        axes.plot(found["by_seed"], [place] * len(found["by_seed"]), ".", color=_SEED, markersize=4)
        axes.plot([found["value"]], [place], "o", color=_OTHERS, markersize=7)
    axes.set_yticks(range(len(rows)), [row["label"] for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.margins(x=0.1)
    axes.set_xlabel(f"nats per image token, against “{reference['label']}” (to the left is better)")
    axes.set_title(group["title"], loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Software": None})
