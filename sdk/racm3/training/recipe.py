"""Recipes: TOML files with one table per concept, each validated by the settings model that it belongs to."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from ..errors import ConfigError, nearest
from ..settings import first_fault

Settings = TypeVar("Settings", bound=BaseModel)


def read_recipe(path: str | Path) -> dict[str, Any]:
    """The tables of a recipe file; `ConfigError` when it is missing or no TOML."""
    path = Path(path)
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"No recipe at {path}: {error.strerror}.", "Give the path of a TOML file.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"The recipe {path} is not valid TOML: {error}") from error
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise ConfigError(
                f"In {path}, {name} is no table.", f"Keys stand in tables: [{name}], and below it key = value."
            )
    return tables


def read_table(model: type[Settings], recipe: Mapping[str, Any], table: str) -> Settings:
    """One table of a recipe as settings; `ConfigError` names the table, the key, and the nearest key there is."""
    try:
        return model.model_validate(recipe.get(table, {}))
    except ValidationError as error:
        key, said, kind, _ = first_fault(error)
        if kind == "extra_forbidden":
            known = f"Keys: {', '.join(model.model_fields)}."
            raise ConfigError(
                f"[{table}] of the recipe has no key {key!r}. {known}", nearest(key, model.model_fields)
            ) from error
        raise ConfigError(f"In [{table}] of the recipe, {f'{key}: ' if key else ''}{said}.") from error
