"""The options that commands share: which pipeline, which memory, how many, how to answer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigError
from ..registry import registry

if TYPE_CHECKING:
    from ..config import PipelineConfig
    from ..pipeline import Pipeline

DEFAULT_PRESET = "emoji"

ConfigOption = Annotated[Path | None, typer.Option("--config", "-c", metavar="FILE", help="A pipeline file (TOML).")]
PresetOption = Annotated[
    str | None,
    typer.Option("--preset", metavar="NAME", help=f"A pipeline of a plugin. Default: {DEFAULT_PRESET}, if installed."),
]
MemoryOption = Annotated[
    str | None,
    typer.Option("--memory", metavar="PATH|NAME", help="This memory, not the pipeline's own: a path, or one installed."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON value.")]
WhereOption = Annotated[
    str | None,
    typer.Option("--where", metavar="JSON", help='Only documents whose metadata fit: {"year": {"$gt": 2020}}'),
]
DocumentsOption = Annotated[int, typer.Option("-k", min=0, help="How many documents to ground the answer on.")]
SamplesOption = Annotated[int, typer.Option("-n", min=1, help="How many samples.")]
SeedOption = Annotated[int | None, typer.Option("--seed", min=0, help="Repeats an answer. Default: drawn, and told.")]
TemperatureOption = Annotated[float, typer.Option("--temperature", min=0, help="0: the most likely answer.")]
TopPOption = Annotated[float, typer.Option("--top-p", max=1, help="Only the likeliest tokens, this much of them.")]


def parse_where(text: str | None) -> Mapping[str, Any] | None:
    """The filter of `--where`."""
    if text is None:
        return None
    try:
        where = json.loads(text)
    except json.JSONDecodeError as error:
        raise typer.BadParameter(f"not valid JSON: {error}", param_hint="--where") from error
    if not isinstance(where, dict):
        raise typer.BadParameter("a JSON object is needed", param_hint="--where")
    return where


def open_pipeline(
    config: Path | None, preset: str | None, memory: str | None, *, writes: bool = False, generates: bool = True
) -> Pipeline:
    """The pipeline that the options choose. writes: the memory may be new; otherwise it has to be there."""
    from ..pipeline import Pipeline
    from .memory import with_memory

    chosen = configured(config, preset)
    if memory is not None:
        chosen = with_memory(chosen, memory, writes=writes)
    if not generates:
        chosen = replace(chosen, generator=None)
    return Pipeline.from_config(chosen)


def configured(config: Path | None, preset: str | None) -> PipelineConfig:
    """The pipeline of a file or a preset."""
    from ..config import load_config

    if config is not None and preset is not None:
        raise typer.BadParameter("choose a pipeline by --config or by --preset, not both", param_hint="--preset")
    if config is not None:
        return load_config(config)
    if preset is None and DEFAULT_PRESET not in registry().presets():
        raise ConfigError(
            f"No pipeline is chosen, and the default one, of the plugin racm3-{DEFAULT_PRESET}, is not installed.",
            f"Give --config FILE or --preset NAME, or: pip install racm3-{DEFAULT_PRESET}",
        )
    return load_config(registry().preset(preset or DEFAULT_PRESET))
