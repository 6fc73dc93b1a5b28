"""racm3 generate: draw a caption."""

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
    SamplesOption,
    SeedOption,
    TemperatureOption,
    TopPOption,
    WhereOption,
    chosen_pipeline,
    given,
    given_text,
)
from .writing import cannot_write, check_file, save_picture

if TYPE_CHECKING:
    from ..generation import Generation

MOST_SKIPPED = 3  # of the documents that the sampler passed over, so many are named
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")


def generate(
    caption: Annotated[str, typer.Argument(help="What to draw.")],
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", metavar="FILE", help="Replaced if it is there. Several samples: FILE-1, FILE-2 ..."
        ),
    ] = (Path("generated.png")),
    n: SamplesOption = 1,
    seed: SeedOption = None,
    k: DocumentsOption = 2,
    where: WhereOption = None,
    temperature: TemperatureOption = None,
    top_p: TopPOption = None,
    context_guidance: ContextGuidanceOption = None,
    memory: MemoryOption = None,
    config: ConfigOption = None,
    preset: PresetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Draw a caption, grounded on documents from the memory."""
    from ..pipeline import Pipeline

    caption = given_text(caption, "give a text that says what to draw", option="CAPTION")
    if out.suffix.lower() not in SUFFIXES:
        raise typer.BadParameter(f"a picture's name ends in one of {' '.join(SUFFIXES)}", param_hint="--out")
    files = _files(out.expanduser(), n)
    for file in {files[0], files[-1]}:
        check_file(file)
    options = given(temperature=temperature, top_p=top_p, context_guidance=context_guidance)
    chosen = chosen_pipeline(config, preset, memory)
    with output.interruptible(), Pipeline.from_config(chosen) as pipeline, output.working("Drawing"):
        generation = pipeline.imagine(caption, k=k, where=where, n=n, seed=seed, options=options)
    _save(generation, files)
    if as_json:
        output.print_json({**generation.to_json(), "files": [str(file) for file in files]})
        return
    for file in files:
        typer.echo(file)
    tell_grounds(generation)


def tell_grounds(generation: Generation) -> None:
    """Notes on what an answer was grounded on, one document a line, and on how to repeat it."""
    for hit in generation.hits:
        score = "by hand" if hit.score is None else f"{hit.score:.3f}"
        output.note(f"grounded on {hit.id} ({score}) {output.shortened(hit.document.text)}".rstrip())
    for skip in generation.skipped[:MOST_SKIPPED]:
        because = f" {skip.because_of}" if skip.because_of else ""
        output.note(f"passed over {skip.hit.id}: {skip.reason}{because}")
    if len(generation.skipped) > MOST_SKIPPED:
        output.note(f"passed over {len(generation.skipped) - MOST_SKIPPED} more, which --json lists")
    output.note(f"--seed {generation.seed} gives the same again")


def _files(out: Path, n: int) -> list[Path]:
    return [out] if n == 1 else [out.with_stem(f"{out.stem}-{number}") for number in range(1, n + 1)]


def _save(generation: Generation, files: list[Path]) -> None:
    from ..document import Image
    from ..generation import filled_parts

    samples = [filled_parts(generation.prompt, sample.document) for sample in generation.outputs]
    pictures = [part for parts in samples for part in parts if isinstance(part, Image)]
    for picture, file in zip(pictures, files, strict=True):
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            save_picture(picture, file)
        except OSError as error:
            raise cannot_write(file, error) from error
