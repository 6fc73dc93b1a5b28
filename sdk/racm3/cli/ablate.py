"""racm3 ablate: the paper's analysis of one's own recipe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import output
from .options import JsonOption
from .train import RUN, RecipeArgument, RunOption
from .writing import cannot_write, check_folder

if TYPE_CHECKING:
    from ..ablation.analysis import Ablation

RowsOption = Annotated[
    str,
    typer.Option(
        "--rows",
        help="Some groups, such as relevance,alpha. There are: relevance, modality, diversity, alpha, k, parameters, "
        "fine-tuning. Default: all of them.",
    ),
]
StepsOption = Annotated[int | None, typer.Option("--steps", min=1, help="Of a model. Default: the recipe's.")]
SeedsOption = Annotated[int, typer.Option("--seeds", min=1, help="Models of each kind, each with a seed of its own.")]
DrawingsOption = Annotated[
    int, typer.Option("--drawings", min=0, help="Held-out pictures that each model draws, for recall@1. 0: none.")
]
EncoderOption = Annotated[
    Path | None,
    typer.Option(
        "--encoder", help="open_clip folder that recognises drawings. Default: RUN/evaluation-encoder/model, if there."
    ),
]
OutOption = Annotated[
    Path | None, typer.Option("--out", "-o", help="Folder of the models and the report. Default: RUN/ablation.")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="List the training runs and their time; train nothing.")]


def ablate(
    recipe: RecipeArgument,
    run: RunOption = RUN,
    rows: RowsOption = "",
    steps: StepsOption = None,
    seeds: SeedsOption = 3,
    drawings: DrawingsOption = 64,
    encoder: EncoderOption = None,
    out: OutOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """What matters, and how much: train a generator's recipe with one thing changed at a time, and compare.

    Needs the run's image tokenizer and retriever. An analysis that was stopped goes on.
    """
    from ..training.stage_recipes import check_recipe, read_stage_recipe

    found = read_stage_recipe(recipe)
    check_recipe("generator", found)
    run_ablation(
        found, run, rows=rows, steps=steps, seeds=seeds, drawings=drawings, encoder=encoder, out=out, dry_run=dry_run,
        as_json=as_json,
    )  # fmt: skip


def run_ablation(
    recipe: Mapping[str, Any],
    folder: Path,
    *,
    rows: str,
    steps: int | None,
    seeds: int,
    drawings: int,
    encoder: Path | None,
    out: Path | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """The command, for a recipe that has been read."""
    from ..ablation.analysis import Ablation, analyse, judge_of
    from ..ablation.plots import require_matplotlib
    from ..ablation.report import markdown, write_report
    from ..ablation.rows import plan
    from ..training.runs import Run, open_corpus

    made = plan(recipe, [name.strip() for name in rows.split(",") if name.strip()], steps=steps)
    run = Run(folder)
    ablation = Ablation(run, made, out or folder / "ablation", seeds, drawings)
    ablation.check()
    if dry_run:
        _list(ablation, as_json)
        return
    require_matplotlib()
    check_folder(ablation.out)
    run.model("image-tokenizer")  # what is missing is said before the documents are read
    judge, notes = None, []
    if drawings:
        judge, apart = judge_of(run, recipe, encoder)
        if not apart:
            notes.append(
                "Drawings are recognised by the encoder that also retrieves, which favours what it found: give another, --encoder."
            )
    try:
        with output.watched(f"Analysis in {ablation.out}") as progress:
            corpus = open_corpus(run, "generator", recipe, progress)
            figures: dict[str, Any] = {}
            for bench in analyse(ablation, corpus, judge, progress=progress):
                figures = write_report(ablation, bench, notes)  # a look at what there is, while the rest is trained
    except OSError as error:
        raise cannot_write(ablation.out, error) from error
    if as_json:
        output.print_json(figures)
        return
    typer.echo(markdown(figures))
    typer.echo(f"The report is in {ablation.out / 'index.html'}.")


def _list(ablation: Ablation, as_json: bool) -> None:
    from ..ablation.estimate import estimates
    from ..training.estimate import duration

    found = estimates(ablation)
    if as_json:
        output.print_json(found)
        return
    output.table(
        ["model", "seed", "parameters", "steps", "time left", "state", "measured with"],
        [
            [one["model"], str(one["seed"]), f"{one['parameters'] / 1e6:.1f} M", str(one["steps"]), duration(one["seconds"]), one["state"], ", ".join(one["conditions"])]
            for one in found["runs"]
        ],
    )  # fmt: skip
    typer.echo(f"{len(found['runs'])} runs, {duration(found['seconds'])} of training left. {found['assumed']}")
