"""`--set KEY=VALUE`: a setting on the command line, written as in a pipeline file."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from typing import Any

import typer


def parse_settings(given: Iterable[str] | None) -> dict[str, Any]:
    """Settings by name. A value is TOML (`0.9`, `true`, `[1, 2]`, `"5"`); what is not, is a str as it stands."""
    settings = {}
    for pair in given or ():
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier():
            raise typer.BadParameter(f"KEY=VALUE is needed, not {pair!r}", param_hint="--set")
        try:
            settings[key] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            settings[key] = value
    return settings
