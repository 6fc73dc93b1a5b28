"""racm3 train: the three models, from a recipe and the user's own documents."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from . import output
from .options import JsonOption
from .writing import check_folder

train = typer.Typer(
    no_args_is_help=True,
    help="Train the models from a recipe (TOML), stage by stage.",
    epilog="Example: racm3 train generator generator.toml --run runs/mine --dry-run",
)

RecipeArgument = Annotated[Path, typer.Argument(metavar="RECIPE.toml", help="See examples/recipes.")]
RunOption = Annotated[Path, typer.Option("--run", help="Folder of the run, which the stages share.")]
NameOption = Annotated[str, typer.Option("--name", help="Sub-folder of the run. Default: the stage's name.")]
RUN = Path("run")


@train.command(epilog="Example: racm3 train image-tokenizer image-tokenizer.toml --run runs/mine")
def image_tokenizer(
    recipe: RecipeArgument, run: RunOption = RUN, name: NameOption = "", as_json: JsonOption = False
) -> None:
    """Stage one: pictures to tokens and back. A run that was stopped goes on."""
    _start("image-tokenizer", recipe, run, name, as_json)


@train.command(epilog="Example: racm3 train retriever retriever.toml --run runs/mine")
def retriever(recipe: RecipeArgument, run: RunOption = RUN, name: NameOption = "", as_json: JsonOption = False) -> None:
    """Stage two: the encoder that finds documents. Not needed where the generator's recipe names another."""
    _start("retriever", recipe, run, name, as_json)


@train.command(epilog="Example: racm3 train generator generator.toml --run runs/mine --dry-run --gpus 8")
def generator(
    recipe: RecipeArgument,
    run: RunOption = RUN,
    name: NameOption = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Parameters, memory, tokens and time; nothing is trained.")
    ] = False,
    gpus: Annotated[int | None, typer.Option(min=1, help="With --dry-run: for so many data-centre GPUs.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Stage three: the generator, with retrieved documents before each document."""
    if dry_run:
        _estimate(recipe, run, gpus, as_json)
    elif gpus is not None:
        raise typer.BadParameter(
            "goes with --dry-run; training takes the processes that torchrun starts", param_hint="--gpus"
        )
    else:
        _start("generator", recipe, run, name, as_json)


@train.command(epilog="Example: racm3 train resume runs/mine/generator")
def resume(
    folder: Annotated[Path, typer.Argument(help="Folder of a stage, such as run/generator.")],
    as_json: JsonOption = False,
) -> None:
    """Go on with a run that was stopped, by the recipe that it was started with."""
    from ..training.runs import Run, recorded

    folder = folder.resolve()
    kind, recipe = recorded(folder)
    _train(kind, recipe, Run(folder.parent), folder.name, as_json)


@train.command(epilog="Example: racm3 train keys generator")
def keys(
    stage: Annotated[str, typer.Argument(help="image-tokenizer, retriever or generator.")] = "generator",
    as_json: JsonOption = False,
) -> None:
    """Every key of a stage's recipe, with what it is when it is left out; a retriever's own table is as in a pipeline file."""
    from ..training.stage_recipes import check_tables, settings_of

    check_tables(stage, {})
    rows = [
        (
            f"[{table}]",
            name,
            _default(stage, name, field),
            field.description or "",
        )
        for table, settings in settings_of(stage).items()
        for name, field in settings.model_fields.items()
    ]
    if as_json:
        output.print_json([dict(zip(("table", "key", "default", "meaning"), row, strict=True)) for row in rows])
    else:
        output.table(["table", "key", "default", "meaning"], [list(row) for row in rows])


def _default(stage: str, name: str, field: Any) -> str:
    """As a recipe would say it; nothing, where leaving it out is the only way to say so."""
    if field.is_required():
        return "that of its size" if (stage, name) == ("generator", "learning_rate") else "needed"
    return "" if field.get_default() is None else json.dumps(field.get_default())


def _taken(kind: str) -> set[str]:
    """What a stage of a kind is not called: there it would be looked for as something else."""
    from ..training.generator_inputs import DECODER
    from ..training.stage_recipes import TABLES

    return {"data", "prepared", *TABLES, *([] if kind == "image-tokenizer" else [DECODER])} - {kind}


def _start(kind: str, path: Path, folder: Path, name: str, as_json: bool) -> None:
    from ..training.runs import Run, check_same_recipe
    from ..training.stage_recipes import check_recipe, read_stage_recipe

    if name and (Path(name).name != name or name.startswith(".") or name in _taken(kind)):
        raise typer.BadParameter(f"{name!r} is no name for a {kind} in the run's folder", param_hint="--name")
    check_folder(folder, "--run")
    recipe = read_stage_recipe(path)
    check_recipe(kind, recipe)
    check_same_recipe(folder / (name or kind), kind, recipe)
    _train(kind, recipe, Run(folder), name or kind, as_json)


def _train(kind: str, recipe: Mapping[str, Any], run: Any, name: str, as_json: bool) -> None:
    from ..training.dataset import skipped
    from ..training.generator_inputs import check_trained
    from ..training.runs import open_corpus, train_stage

    if kind == "generator":
        check_trained(run, recipe)  # before anything is read
    with output.watched(f"{name} in {run.folder}") as progress:
        corpus = open_corpus(run, kind, recipe, progress)
        bad = skipped(run.folder / "data")
        if bad:
            output.note(
                f"{output.count(len(bad), 'sample')} passed over, and listed in {run.folder / 'data' / 'skipped.jsonl'}:"
            )
            for sample in bad[:5]:
                output.note(f"  {sample['where']}: {sample['error']}")
            if len(bad) > 5:
                output.note(f"  and {len(bad) - 5} more")
        try:
            figures = train_stage(run, kind, recipe, corpus, name=name, progress=progress)
        except KeyboardInterrupt:
            output.note(f"Stopped. Go on: racm3 train resume {run.folder / name}")
            raise
    model = run.folder / name / "model"
    if as_json:
        output.print_json(
            {
                "stage": kind, "model": str(model), "documents": len(corpus.data), "held_out": len(corpus.held_out),
                "skipped": len(bad), "figures": figures,
            }
        )  # fmt: skip
        return
    typer.echo(f"{len(corpus.data)} documents, {len(corpus.held_out)} of them held out. The model is in {model}.")
    if figures:
        typer.echo("On held-out documents: " + ", ".join(f"{key} {value:.4g}" for key, value in figures.items()))


def _estimate(path: Path, folder: Path, gpus: int | None, as_json: bool) -> None:
    from ..training.estimate import estimate
    from ..training.runs import Run
    from ..training.stage_recipes import check_recipe, read_stage_recipe

    recipe = read_stage_recipe(path)
    check_recipe("generator", recipe)
    found = estimate(recipe, Run(folder), gpus=gpus)
    if as_json:
        output.print_json(found.as_json())
    else:
        output.table(["", ""], [[label, value] for label, value in found.lines()])
