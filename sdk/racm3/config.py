"""A pipeline file: which components, with which settings. All that can stand in it:

    [retriever]
    name = "clip"
    model = "./encoder"
    [memory]
    name = "faiss"
    path = "./memory"                   # a path is relative to the file that it stands in
    [sampler]                           # left out: diverse
    name = "diverse"
    threshold = 0.9
    [generator]                         # left out: a pipeline that only searches
    name = "cm3"
    checkpoint = "./checkpoint"
    token = { env = "MY_TOKEN" }        # a secret, read from the environment
    [options]                           # of every answer, as far as a call gives no others; all but n
    context_guidance = 3.0

A mapping with the same tables does as well.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from .errors import ConfigError, RACM3Error, nearest
from .hookspecs import INTERFACES
from .registry import registry
from .settings import Secret

TABLES = tuple(INTERFACES)
DEFAULTS: Mapping[str, Mapping[str, Any]] = {"sampler": {"name": "diverse"}}
REQUIRED = ("retriever", "memory")
OPTIONS = "options"  # the table that is no component


@dataclass(frozen=True)
class ComponentConfig:
    """One table: a component's name, and its settings as they were given, with paths and secrets resolved."""

    interface: type
    name: str
    settings: Mapping[str, Any]

    def create(self) -> Any:
        """Make the component. Raises its errors; a `ConfigError` names the table that it is about."""
        try:
            return registry().create(self.interface, self.name, self.settings)
        except ConfigError as error:
            table = next(table for table, interface in INTERFACES.items() if interface is self.interface)
            raise type(error)(f"[{table}]: {error.message}", error.hint) from None


@dataclass(frozen=True)
class PipelineConfig:
    """A checked pipeline: every component is installed, and its settings fit."""

    retriever: ComponentConfig
    memory: ComponentConfig
    sampler: ComponentConfig
    generator: ComponentConfig | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


def load_config(
    source: str | Path | Mapping[str, Any], *, overrides: Mapping[str, Mapping[str, Any] | None] | None = None
) -> PipelineConfig:
    """Read and check a pipeline file, or a mapping with the same tables.

    overrides: settings that win over those of the source, by table; a table with another `name` replaces the source's,
    None leaves it out. Relative paths belong to the file's folder; in mappings and overrides, to the current folder.

    >>> tables = {"retriever": {"name": "clip"}, "memory": {"name": "faiss", "path": "./memory"}}
    >>> load_config(tables).memory.settings["path"].is_absolute()
    True
    """
    try:
        if isinstance(source, Mapping):
            return _checked(source, overrides or {}, Path.cwd())
        path = Path(source).expanduser()
        return _checked(_read(path), overrides or {}, path.resolve().parent)
    except RACM3Error as error:
        if isinstance(source, Mapping) or str(source) in error.message:
            raise
        raise type(error)(f"{source}: {error.message}", error.hint) from error.__cause__


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except FileNotFoundError:
        raise ConfigError(f"There is no pipeline file {path}.", "Is the path right?") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}.", "Write [table] and key = value lines.") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"{path} cannot be read: {why}.", "Give a TOML file that can be read.") from error


def _checked(
    tables: Mapping[str, Any], overrides: Mapping[str, Mapping[str, Any] | None], folder: Path
) -> PipelineConfig:
    for given in (tables, overrides):
        for table, content in given.items():
            if table not in (*TABLES, OPTIONS):
                known = (*TABLES, OPTIONS)
                raise ConfigError(f"No table {table!r}. Tables: {', '.join(known)}.", nearest(str(table), known))
            if not isinstance(content, Mapping) and not (given is overrides and content is None):
                inside = "its settings" if table == OPTIONS else 'name = "..."'
                mend = f"Write [{table}] with {inside} in it."
                if given is overrides:  # written in Python, not in a file
                    mend = f'Give its settings as a mapping: {table}={{"setting": value}}, such as memory={{"path": "./mine"}}.'
                raise ConfigError(f"{table} = {content!r} is not a table.", mend)
    made: dict[str, ComponentConfig] = {}
    for table in TABLES:
        own, over = tables.get(table, DEFAULTS.get(table)), overrides.get(table, {})
        if over is None:
            own, over = DEFAULTS.get(table), {}
        if own is not None and "name" in over and over["name"] != own.get("name"):
            own = {}
        if own is not None or over:
            made[table] = _component(table, own or {}, over, folder)
    for table in REQUIRED:
        if table not in made:
            raise ConfigError(f"The table [{table}] is missing.", f'Write [{table}] with name = "..." in it.')
    return PipelineConfig(**made, options=_options(tables, overrides, made.get("generator")))


def _options(
    tables: Mapping[str, Any], overrides: Mapping[str, Mapping[str, Any] | None], generator: ComponentConfig | None
) -> Mapping[str, Any]:
    """The options of every answer, checked if there is a generator to answer."""
    over = overrides.get(OPTIONS, {})
    given = {} if over is None else {**tables.get(OPTIONS, {}), **over}
    if given and generator is not None:
        from .answering import check_defaults

        try:
            check_defaults(registry().options_model(generator.interface, generator.name), given)
        except ConfigError as error:
            raise ConfigError(f"[options]: {error.message}", error.hint) from None
    return given


def _component(table: str, own: Mapping[str, Any], over: Mapping[str, Any], folder: Path) -> ComponentConfig:
    interface = INTERFACES[table]
    name = over.get("name", own.get("name"))
    if not isinstance(name, str):
        known = ", ".join(registry().names(interface))
        raise ConfigError(f"The table [{table}] needs a name, a str. Installed: {known}.")
    fields = registry().settings_model(registry().component(interface, name)).model_fields
    settings: dict[str, Any] = {}
    for given, base in ((own, folder), (over, Path.cwd())):
        for key, value in given.items():
            if key == "name":
                continue
            value = _secret(value, f"{table}.{key}")
            annotation = fields[key].annotation if key in fields else None
            settings[key] = _rooted(value, annotation, base)
    registry().validate(interface, name, settings)
    return ComponentConfig(interface, name, settings)


def _secret(value: Any, where: str) -> Any:
    """The value of `{ env = "VAR" }`, also of one inside a table; anything else as it is."""
    if not isinstance(value, Mapping):
        return value
    if set(value) != {"env"}:
        return {key: _secret(inner, f"{where}.{key}") for key, inner in value.items()}
    variable = value["env"]
    if not isinstance(variable, str) or variable not in os.environ:
        raise ConfigError(f"{where}: the environment variable {variable!r} is not set.", f"export {variable}=...")
    return Secret(os.environ[variable])


def _rooted(value: Any, annotation: Any, folder: Path) -> Any:
    """A setting annotated `Path` as an absolute path. One that may also be a plain str (a model's name, say) counts as
    a path if it starts like one, or if the file is there."""
    types = {annotation, *get_args(annotation)}
    if Path not in types or not isinstance(value, (str, Path)) or isinstance(value, Secret):
        return value
    path = folder / Path(value).expanduser()
    if str in types and isinstance(value, str) and not value.startswith((".", "~", "/")) and not path.exists():
        return value
    return path
