"""racm3 evaluate: does retrieval help, on one's own pictures?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import output
from .options import (
    ConfigOption,
    ContextGuidanceOption,
    DocumentsOption,
    JsonOption,
    MemoryOption,
    PresetOption,
    TemperatureOption,
    TopPOption,
    chosen_pipeline,
    given,
)
from .writing import cannot_write, check_folder

if TYPE_CHECKING:
    from ..interfaces import Retriever


def evaluate(
    data: Annotated[Path, typer.Argument(help="Folder with captions, .jsonl, COCO captions .json, or .tar shards.")],
    images: Annotated[Path | None, typer.Option("--images", help="Folder of the COCO pictures.")] = None,
    vanilla: Annotated[Path | None, typer.Option("--vanilla", help="CM3 checkpoint trained without documents.")] = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            "--encoder", help="open_clip folder or MODEL:WEIGHTS that judges the drawings; not the retriever's own."
        ),
    ] = None,
    entity: Annotated[
        str | None, typer.Option("--entity", help="Metadata key of what is shown: a drawing of it counts as right.")
    ] = None,
    label: Annotated[
        str | None, typer.Option("--label", help="Metadata key of class names, for k-shot classification.")
    ] = None,
    shots: Annotated[int, typer.Option("--shots", min=1, help="Examples of each class.")] = 1,
    ways: Annotated[int, typer.Option("--ways", min=2, help="Classes to choose from.")] = 2,
    k: DocumentsOption = 2,
    limit: Annotated[
        int | None, typer.Option("--limit", min=2, help="Only so many pairs, drawn once and for all.")
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Drawings per prompt.")] = 1,
    temperature: TemperatureOption = 0.8,
    top_p: TopPOption = 0.95,
    context_guidance: ContextGuidanceOption = None,
    inception: Annotated[
        Path | None, typer.Option("--inception", help="Weights file of FID's Inception network.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the report.")] = Path("evaluation"),
    memory: MemoryOption = None,
    config: ConfigOption = None,
    preset: PresetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare answers with documents, without, with random ones, of a vanilla model, and the retrieval baseline."""
    check_folder(out)
    skipped: list[str] = []
    with output.progress("Evaluation") as progress:
        # Here, and not above: `racm3 --help` must not wait for numpy.
        from ..evaluation.evaluate import evaluate as run
        from ..evaluation.pairs import read_pairs
        from ..evaluation.report import markdown, write_report
        from ..pipeline import Pipeline

        pairs = read_pairs(
            data,
            images=images,
            entity=entity,
            limit=limit,
            on_skip=lambda where, error: skipped.append(f"{where}: {error}"),
        )
        with Pipeline.from_config(chosen_pipeline(config, preset, memory)) as pipeline:
            model = None
            if vanilla is not None:
                from ..generators.cm3.generator import Cm3Generator

                model = Cm3Generator(checkpoint=vanilla)
            evaluation = run(
                pipeline, pairs, vanilla=model, encoder=_judge(encoder), k=k, seeds=seeds, label=label, shots=shots, ways=ways,
                options=given(temperature=temperature, top_p=top_p, context_guidance=context_guidance),
                inception=inception, progress=progress,
            )  # fmt: skip
        skipped += evaluation.figures["skipped"]
        evaluation.figures["data"], evaluation.figures["skipped"] = str(data), skipped
        try:
            files = write_report(evaluation, out)
        except OSError as error:
            raise cannot_write(out, error) from error
    if skipped:
        more = f"; and {len(skipped) - 5} more, in evaluation.json" if len(skipped) > 5 else ""
        output.note(f"{len(skipped)} passed over: " + "; ".join(skipped[:5]) + more)
    if as_json:
        output.print_json({**evaluation.figures, "files": [str(file) for file in files]})
        return
    typer.echo(markdown(evaluation.figures))
    typer.echo(f"{evaluation.figures['seconds']:.0f} s. " + " ".join(str(file) for file in files))


def _judge(name: str | None) -> Retriever | None:
    """The encoder that an option names: a folder, or an open_clip model and the tag of its weights."""
    if name is None:
        return None
    from ..retrievers.clip import ClipRetriever

    if Path(name).expanduser().exists():
        return ClipRetriever(str(Path(name).expanduser()))
    model, _, weights = name.partition(":")
    return ClipRetriever(model, pretrained=weights) if weights else ClipRetriever(model)
