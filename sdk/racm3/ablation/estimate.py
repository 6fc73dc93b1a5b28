"""How long an analysis will take: each training run, by the operations that it needs and by what this machine reached."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..training.account import read_lines
from ..training.estimate import SHARE, estimate
from ..training.runs import recorded
from .analysis import Ablation

_GUESS = (
    f"Training is assumed to reach {SHARE:.0%} of the matrix peak, as it was measured just now: begin, and ask again for a "
    "better estimate."
)


def estimates(ablation: Ablation) -> dict[str, Any]:
    """The runs with parameters, steps, seconds that are left, and state (trained, begun, waiting); and their sum.

    Training alone: measuring and drawing come on top. The operations a second are those of runs in this folder, where
    there are any: a share of the matrix peak is a worse guess.
    """
    rate = _reached(ablation)
    runs, assumed = [], "As fast as the runs here were so far." if rate else _GUESS
    for model, seed, state in ablation.training_runs():
        found = estimate(model.recipe, ablation.run)
        done = found.steps if state == "trained" else _steps_done(ablation.folder(model.name, seed))
        runs.append(
            {
                "model": model.name, "seed": seed, "parameters": found.parameters, "steps": found.steps, "state": state,
                "seconds": (found.steps - done) * found.operations / (rate or found.peak * found.share),
                "conditions": [condition.name for condition in ablation.plan.conditions(model.name)],
            }
        )  # fmt: skip
    return {"runs": runs, "seconds": sum(run["seconds"] for run in runs), "assumed": assumed}


def _reached(ablation: Ablation) -> float | None:
    """Operations a second of the runs that were begun, the middle one; None where there are none."""
    rates = []
    for folder in [*(ablation.out / "models").glob("*"), ablation.run.folder / "generator"]:
        seconds = [line["seconds_per_step"] for line in read_lines(folder) if "seconds_per_step" in line]
        if seconds and (folder / "stage.json").is_file():
            rates.append(estimate(recorded(folder)[1], ablation.run).operations / float(np.median(seconds)))
    return float(np.median(rates)) if rates else None


def _steps_done(folder: Path) -> int:
    return max((line["step"] for line in read_lines(folder)), default=0)
