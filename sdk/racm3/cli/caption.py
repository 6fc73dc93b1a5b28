"""racm3 caption: describe a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import output
from .generate import tell_grounds
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
    chosen_pipeline,
)


def caption(
    image: Annotated[Path, typer.Argument(metavar="IMAGE_FILE", help="The picture to describe.")],
    n: SamplesOption = 1,
    seed: SeedOption = None,
    k: DocumentsOption = 2,
    where: WhereOption = None,
    temperature: TemperatureOption = 1.0,
    top_p: TopPOption = 1.0,
    max_text_tokens: Annotated[int, typer.Option(min=1, help="The longest that a caption may get.")] = 64,
    memory: MemoryOption = None,
    config: ConfigOption = None,
    preset: PresetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Describe a picture in words, grounded on documents from the memory."""
    from ..document import Image
    from ..generation import filled_parts
    from ..pipeline import Pipeline

    picture = Image(image)
    _ = picture.picture  # a broken file is found out before any weights are loaded
    with Pipeline.from_config(chosen_pipeline(config, preset, memory)) as pipeline, output.working("Looking"):
        options = {"temperature": temperature, "top_p": top_p, "max_text_tokens": max_text_tokens}
        generation = pipeline.caption(picture, k=k, where=where, n=n, seed=seed, options=options)
    if as_json:
        output.print_json(generation.to_json())
        return
    for sample in generation.outputs:
        typer.echo(" ".join(getattr(part, "text", "") for part in filled_parts(generation.prompt, sample.document)))
    tell_grounds(generation)
