"""racm3 caption: describe a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import output
from .generate import tell_grounds
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
)


def caption(
    image: Annotated[Path, typer.Argument(metavar="IMAGE_FILE", help="The picture to describe.")],
    n: SamplesOption = 1,
    seed: SeedOption = None,
    k: DocumentsOption = 2,
    where: WhereOption = None,
    temperature: TemperatureOption = None,
    top_p: TopPOption = None,
    context_guidance: ContextGuidanceOption = None,
    max_text_tokens: Annotated[int | None, typer.Option(min=1, help="The longest that a caption may get.")] = None,
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
        options = given(
            temperature=temperature, top_p=top_p, context_guidance=context_guidance, max_text_tokens=max_text_tokens
        )
        generation = pipeline.caption(picture, k=k, where=where, n=n, seed=seed, options=options)
    if as_json:
        output.print_json(generation.to_json())
        return
    for sample in generation.outputs:
        typer.echo(" ".join(getattr(part, "text", "") for part in filled_parts(generation.prompt, sample.document)))
    tell_grounds(generation)
