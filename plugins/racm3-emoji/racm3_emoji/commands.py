"""The commands that this plugin adds: `racm3 demo`, and `racm3 emoji build | train | bundle | evaluate | ablate | learn`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from racm3.cli import output
from racm3.cli.ablate import (
    DrawingsOption,
    DryRunOption,
    OutOption,
    RowsOption,
    SeedsOption,
    StepsOption,
    run_ablation,
)
from racm3.cli.options import ContextGuidanceOption, TemperatureOption, TopPOption, given
from racm3.cli.writing import cannot_write, check_folder

if TYPE_CHECKING:
    from racm3 import Generation

RUN = Path("runs/emoji")

_Json = Annotated[bool, typer.Option("--json", help="Print one JSON value.")]
_Run = Annotated[Path, typer.Option("--run", help="Folder of the training run.")]
_Hardware = Annotated[str, typer.Option("--hardware", help="Recipes: cpu, gpu, or a folder with one's own.")]


def add_to(app: typer.Typer) -> None:
    """Add the commands to racm3's application."""
    app.command(epilog="Example: racm3 demo --out ./racm3-demo --seed 7")(demo)
    emoji = typer.Typer(
        no_args_is_help=True,
        help="The emoji world: its data, its models, its figures.",
        epilog="Example: racm3 emoji evaluate --seeds 1",
    )
    emoji.command(epilog="Example: racm3 emoji build")(build)
    emoji.command(epilog="Example: racm3 emoji train generator --run runs/emoji")(train)
    emoji.command(epilog="Example: racm3 emoji bundle --run runs/emoji")(bundle)
    emoji.command(epilog="Example: racm3 emoji evaluate --vanilla runs/emoji/vanilla/model")(evaluate)
    emoji.command(epilog="Example: racm3 emoji ablate --rows relevance,alpha --steps 400 --dry-run")(ablate)
    emoji.command(epilog="Example: racm3 emoji learn --entities 20")(learn)
    app.add_typer(emoji, name="emoji")


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the pictures and the page.")] = Path("racm3-demo"),
    count: Annotated[int, typer.Option(min=1, max=140, help="How many unseen things.")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same pictures.")] = 0,
    json: _Json = False,
) -> None:
    """Draw and caption things that the model never saw, with and without looking them up."""
    began = time.perf_counter()
    out = out.expanduser()
    check_folder(out)
    with output.stages("Loading the models") as progress:
        # Here, and not above: `racm3 --help` must not wait for any of it.
        from racm3 import Pipeline

        from .demo import compare, write_pictures
        from .page import render

        with Pipeline.from_preset("emoji") as pipeline:
            comparisons = compare(pipeline, count, seed, progress)
    page = out / "index.html"
    try:
        out.mkdir(parents=True, exist_ok=True)
        pictures = write_pictures(comparisons, out)
        page.write_text(render(comparisons, seed=seed, seconds=time.perf_counter() - began), encoding="utf-8")
    except OSError as error:
        raise cannot_write(out, error) from error
    if json:
        output.print_json(
            {
                "page": str(page.resolve()),
                "pictures": [str(path.resolve()) for path in pictures],
                "seed": seed,
                "seconds": round(time.perf_counter() - began, 1),
                "things": [
                    {
                        "prompt": c.truth.texts[0],
                        "drawing": {"documents": _looked_up(c.drawn)},
                        "captioning": {
                            "documents": _looked_up(c.captioned),
                            "caption": c.captioned.text,
                            "caption_without": c.captioned_alone.text,
                        },
                    }
                    for c in comparisons
                ],
            }
        )
        return
    typer.echo("From words to a picture\n")
    output.table(
        ["prompt", "documents that were looked up"],
        [[c.truth.texts[0], _listed(c.drawn)] for c in comparisons],
    )
    typer.echo("\nFrom a picture to words\n")
    output.table(
        ["picture", "documents that were looked up", "caption with them", "caption without"],
        [
            [c.truth.texts[0], _listed(c.captioned), c.captioned.text or "", c.captioned_alone.text or ""]
            for c in comparisons
        ],
    )
    typer.echo(f"\n{len(pictures)} pictures in {out.resolve()}\nOpen {page.resolve()} in a browser.")


def _looked_up(generation: Generation) -> list[dict[str, Any]]:
    return [{"id": hit.id, "text": hit.document.text, "score": hit.score} for hit in generation.hits]


def _listed(generation: Generation) -> str:
    return "\n".join(f"{hit.score:.2f} {output.shortened(hit.document.text)}" for hit in generation.hits)


def build(json: _Json = False) -> None:
    """Fetch the drawings (npm packages, checked by hash) and prepare the emoji world in the cache folder."""
    from .world import build as build_world

    with output.progress("Building the emoji world") as progress:
        world = build_world(progress=progress)
    counts = {
        split: {
            "entities": len({world.drawings[row].entity for row in world.select(split=split)}),
            "drawings": len(world.select(split=split)),
            "base_forms": len(world.select(split=split, base_form=True)),
        }
        for split in ("train", "validation", "test")
    }
    if json:
        output.print_json(counts)
        return
    output.table(
        ["split", "entities", "drawings", "base forms"],
        [[split, *(str(value) for value in row.values())] for split, row in counts.items()],
    )


def train(
    stages: Annotated[list[str] | None, typer.Argument(help="Stages; all of them, in order, by default.")] = None,
    run: _Run = RUN,
    hardware: _Hardware = "cpu",
    json: _Json = False,
) -> None:
    """Train the models from nothing; a stage that was stopped goes on where it was.

    Stages: image-tokenizer, retriever, evaluation-encoder, decoder (of the image tokenizer, further), generator, vanilla.
    """
    from .stages import STAGES, Run, recipes_for, train_stage
    from .world import build as build_world

    check_folder(run, "--run")
    chosen = Run(run, recipes_for(hardware), build_world())
    figures: dict[str, Any] = {}
    # A folder of recipes of one's own may do without the decoder.
    for stage in stages or [
        stage for stage in STAGES if (chosen.recipes / f"{stage}.toml").is_file() or stage != "decoder"
    ]:
        if not stages and (run / stage / "model").is_dir():
            output.note(f"{stage} is trained already: {run / stage / 'model'}")
            continue
        with output.progress(f"Training {stage} in {run / stage}") as progress:
            figures[stage] = train_stage(chosen, stage, progress)
        if not json:
            typer.echo(f"{stage}: " + ", ".join(f"{name} {value:.4g}" for name, value in figures[stage].items()))
    if json:
        output.print_json(figures)


def bundle(run: _Run = RUN, hardware: _Hardware = "cpu", out: Annotated[Path | None, typer.Option()] = None) -> None:
    """Put a run's models, and a memory made with them, where the preset "emoji" looks (or into --out)."""
    from .bundle import BUNDLE, assemble
    from .stages import Run, recipes_for
    from .world import build as build_world

    check_folder(out or BUNDLE)
    with output.progress("Bundling") as progress:
        assemble(Run(run, recipes_for(hardware), build_world()), out or BUNDLE, progress)
    size = sum(path.stat().st_size for path in (out or BUNDLE).rglob("*") if path.is_file())
    typer.echo(f"{size / 1e6:.1f} MB in {out or BUNDLE}")


def evaluate(
    vanilla: Annotated[Path | None, typer.Option(help="A vanilla model to compare with.")] = None,
    bundle: Annotated[Path | None, typer.Option(help="The bundle to measure; the shipped one by default.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for figures.json, report.md and grid.png.")] = Path("runs/report"),
    split: Annotated[
        Literal["test", "validation"], typer.Option(help="test, or validation for choosing settings.")
    ] = "test",
    temperature: TemperatureOption = 1.0,
    top_p: TopPOption = 1.0,
    context_guidance: ContextGuidanceOption = None,
    seeds: Annotated[int, typer.Option(min=1, help="Sampling seeds.")] = 3,
    json: _Json = False,
) -> None:
    """Measure everything on entities that were never trained on, and write a report."""
    from racm3.options import Options

    from .bundle import OPTIONS
    from .report import evaluate_bundle, write_report

    check_folder(out)
    asked = given(temperature=temperature, top_p=top_p, context_guidance=context_guidance)
    with output.progress("Evaluating") as progress:
        results = evaluate_bundle(
            bundle, vanilla, split=split, options=Options(**(OPTIONS | asked)), seeds=seeds, progress=progress
        )
    write_report(results, out)
    if json:
        output.print_json(results.figures)
        return
    typer.echo((out / "report.md").read_text(encoding="utf-8"))


def ablate(
    run: _Run = RUN,
    hardware: _Hardware = "cpu",
    rows: RowsOption = "",
    steps: StepsOption = None,
    seeds: SeedsOption = 3,
    drawings: DrawingsOption = 64,
    out: OutOption = None,
    dry_run: DryRunOption = False,
    json: _Json = False,
) -> None:
    """What matters, and how much: train the generator with one thing changed at a time, and compare.

    Needs the run's image tokenizer, retriever and evaluation encoder; measured on the validation entities. An analysis
    that was stopped goes on.
    """
    from .stages import Run, recipes_for
    from .world import build as build_world

    chosen = Run(run, recipes_for(hardware), build_world())
    for stage in ("image-tokenizer", "retriever", *(["evaluation-encoder"] if drawings else [])):
        chosen.model(stage)
    run_ablation(
        chosen.analysed(), run, rows=rows, steps=steps, seeds=seeds, drawings=drawings, encoder=None, out=out,
        dry_run=dry_run, as_json=json,
    )  # fmt: skip


def learn(
    entities: Annotated[int | None, typer.Option(min=1, help="How many unseen things; all of them by default.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Drawings per prompt.")] = 1,
    json: _Json = False,
) -> None:
    """New knowledge without training: draw unseen things before and after their documents are in the memory."""
    with output.progress("Loading the models") as progress:
        from .learn import learn as measure

        learned = measure(entities, seeds=seeds, progress=progress)
    if json:
        output.print_json(learned.to_json())
        return
    output.table(
        ["memory", "recall@1", "95 % interval"],
        [
            [name, f"{figure.value:.3f}", f"{figure.low:.3f} to {figure.high:.3f}"]
            for name, figure in (("before", learned.before), ("after", learned.after))
        ],
    )
    typer.echo(
        f"{learned.pairs} drawings of {learned.entities} things that the model never saw. {learned.documents} documents "
        f"were added in {learned.seconds:.1f} s; nothing was trained."
    )
