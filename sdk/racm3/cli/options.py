"""The options that commands share: which pipeline, which memory, how many, how to answer."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigError, FilterError
from ..options import Options
from ..registry import registry
from ..settings import first_fault

if TYPE_CHECKING:
    from ..config import PipelineConfig

DEFAULT_PRESET = "emoji"


def parse_where(text: str) -> Mapping[str, Any]:
    """The filter of `--where`, checked as far as that can be done without a memory."""
    from ..retrieval import check_filter

    try:
        where = json.loads(text)
        if not isinstance(where, dict):
            raise typer.BadParameter("a JSON object is needed")
        check_filter(where)
    except FilterError as error:
        raise typer.BadParameter(str(error)) from error
    except (ValueError, RecursionError) as error:
        raise typer.BadParameter(f"not valid JSON: {error}") from error
    return where


def _fits(option: str) -> Callable[[Any], Any]:
    """A callback that holds a value against the field of `Options`, where its range is written."""

    def check(value: Any) -> Any:
        from pydantic import ValidationError

        try:
            Options(**given(**{option: value}))
        except ValidationError as error:
            raise typer.BadParameter(first_fault(error).said) from error
        return value

    return check


def given_text(text: str | None, hint: str, *, option: str) -> str:
    """A text that was given on the command line. An empty one, or one of spaces alone, is none: wrong usage."""
    if text is None or not text.strip():
        raise typer.BadParameter(hint, param_hint=option)
    return text


ConfigOption = Annotated[Path | None, typer.Option("--config", "-c", metavar="FILE", help="A pipeline file (TOML).")]
PresetOption = Annotated[
    str | None,
    typer.Option("--preset", metavar="NAME", help=f"A pipeline of a plugin. Default: {DEFAULT_PRESET}, if installed."),
]
MemoryOption = Annotated[
    str | None,
    typer.Option(
        "--memory", metavar="PATH|NAME", help="This memory, not the pipeline's own: a path, or one installed."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON value.")]
DocumentsOption = Annotated[int, typer.Option("-k", min=0, help="How many documents to ground the answer on.")]
SamplesOption = Annotated[int, typer.Option("-n", min=1, help="How many samples.")]
SeedOption = Annotated[int | None, typer.Option("--seed", min=0, help="Repeats an answer. Default: drawn, and told.")]
WhereOption = Annotated[
    Mapping[str, Any] | None,
    typer.Option(
        "--where", parser=parse_where, metavar="JSON",
        help='Only documents whose metadata fit: {"year": {"$gt": 2020}}',
    ),
]  # fmt: skip
# Left out, these are as the pipeline has them.
TemperatureOption = Annotated[
    float | None, typer.Option("--temperature", callback=_fits("temperature"), help="0: the most likely answer.")
]
ContextGuidanceOption = Annotated[
    float | None,
    typer.Option(
        "--context-guidance", callback=_fits("context_guidance"),
        help="Above 1: closer to the documents than the model is of itself.",
    ),
]  # fmt: skip
TopPOption = Annotated[
    float | None,
    typer.Option(
        "--top-p", callback=_fits("top_p"), help="Only the likeliest tokens, this much of them: above 0, up to 1."
    ),
]


def given(**options: Any) -> dict[str, Any]:
    """Those options of an answer that were given on the command line."""
    return {name: value for name, value in options.items() if value is not None}


def chosen_pipeline(
    config: Path | None, preset: str | None, memory: str | None, *, writes: bool = False, generates: bool = True
) -> PipelineConfig:
    """The pipeline that the options choose. writes: the memory may be new; otherwise it has to be there."""
    from .memory_option import is_missing, memory_path, not_a_name, only_read, with_memory

    chosen = configured(config, preset)
    if memory is not None:
        chosen = with_memory(chosen, memory)
    path = memory_path(chosen)
    if path is not None and not writes:
        if is_missing(path):
            again = ["--config", str(config)] if config else ["--preset", preset] if preset else []
            if memory is not None or config is None:
                again += ["--memory", str(memory or path)]
            what = f"There is no memory at {memory or path}."
            if memory is not None:
                what = f"{what} {not_a_name(memory) or ''}".rstrip()
            raise ConfigError(what, f"Make one: racm3 index FOLDER {shlex.join(again)}")
        chosen = replace(chosen, memory=only_read(chosen.memory))
    return chosen if generates else replace(chosen, generator=None)


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
