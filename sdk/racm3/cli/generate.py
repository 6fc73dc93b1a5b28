"""racm3 generate: draw a caption."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import ConfigError
from . import output
from .options import (
    ConfigOption,
    DocumentsOption,
    JsonOption,
    MemoryOption,
    PresetOption,
    SamplesOption,
    SeedOption,
    TemperatureOption,
    TopPOption,
    WhereOption,
    open_pipeline,
    parse_where,
)

if TYPE_CHECKING:
    from ..generation import Generation

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")


def generate(
    caption: Annotated[str, typer.Argument(help="What to draw.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="Several samples: FILE-1, FILE-2 ...")] = (
        Path("generated.png")
    ),
    n: SamplesOption = 1,
    seed: SeedOption = None,
    k: DocumentsOption = 2,
    where: WhereOption = None,
    temperature: TemperatureOption = 1.0,
    top_p: TopPOption = 1.0,
    memory: MemoryOption = None,
    config: ConfigOption = None,
    preset: PresetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Draw a caption, grounded on documents from the memory."""
    if out.suffix.lower() not in SUFFIXES:
        raise typer.BadParameter(f"a picture's name ends in one of {' '.join(SUFFIXES)}", param_hint="--out")
    wanted = parse_where(where)
    with open_pipeline(config, preset, memory) as pipeline:
        with output.working("Drawing"):
            options = {"temperature": temperature, "top_p": top_p}
            generation = pipeline.imagine(caption, k=k, where=wanted, n=n, seed=seed, options=options)
        files = _save(generation, out)
    if as_json:
        output.print_json({**generation.to_json(), "files": [str(file) for file in files]})
        return
    for file in files:
        typer.echo(file)
    tell_grounds(generation)


def tell_grounds(generation: Generation) -> None:
    """A note on what an answer was grounded on, and how to repeat it."""
    for hit in generation.hits:
        score = "by hand" if hit.score is None else f"{hit.score:.3f}"
        output.note(f"grounded on {hit.id} ({score}) {hit.document.text}".rstrip())
    output.note(f"seed {generation.seed}")


def _save(generation: Generation, out: Path) -> list[Path]:
    from ..document import Image
    from ..generation import filled_parts

    samples = [filled_parts(generation.prompt, sample.document) for sample in generation.outputs]
    pictures = [part for parts in samples for part in parts if isinstance(part, Image)]
    files = [
        out if len(pictures) == 1 else out.with_stem(f"{out.stem}-{number}") for number in range(1, len(pictures) + 1)
    ]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        for picture, file in zip(pictures, files, strict=True):
            picture.picture.save(file)
    except OSError as error:
        raise ConfigError(f"{out} cannot be written: {error.strerror or error}.") from error
    return files
