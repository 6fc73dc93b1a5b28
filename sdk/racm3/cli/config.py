"""racm3 config: what can stand in a pipeline file, and what a pipeline comes to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import typer

from ..config import OPTIONS, TABLES
from ..registry import registry
from ..settings import Secret
from . import output
from .memory_option import with_memory
from .options import ConfigOption, JsonOption, MemoryOption, PresetOption, configured

if TYPE_CHECKING:
    from ..config import ComponentConfig

app = typer.Typer(
    no_args_is_help=True, help="What can stand in a pipeline file, and what a pipeline comes to.",
    epilog="Example: racm3 config show --preset emoji",
)  # fmt: skip


@app.command(epilog="Example: racm3 config schema > pipeline.schema.json")
def schema() -> None:
    """Print the JSON Schema of pipeline files: every installed component with its settings."""
    from ..schema import pipeline_schema

    made, left_out = pipeline_schema()
    output.print_json(made)
    for name, error in left_out.items():
        output.note(f"{name} is left out: {error.message}")


@app.command(epilog="Example: racm3 config show --config pipeline.toml")
def show(
    config: ConfigOption = None,
    preset: PresetOption = None,
    memory: MemoryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print the pipeline that the options choose, as a pipeline file: all settings, with paths and defaults filled in.

    A secret is shown as ***.
    """
    pipeline = configured(config, preset)
    if memory is not None:
        pipeline = with_memory(pipeline, memory)
    tables = {table: getattr(pipeline, table) for table in TABLES if getattr(pipeline, table) is not None}
    if as_json:
        found: dict[str, Any] = {table: _as_json(component) for table, component in tables.items()}
        output.print_json(found | ({OPTIONS: dict(pipeline.options)} if pipeline.options else {}))
        return
    written = [_as_toml(table, component) for table, component in tables.items()]
    if pipeline.options:
        written.append(
            "\n".join([f"[{OPTIONS}]", *(f"{key} = {_toml(value)}" for key, value in pipeline.options.items())])
        )
    typer.echo("\n\n".join(written))


def _settings(component: ComponentConfig) -> dict[str, tuple[Any, bool]]:
    """All settings of a component, as plain values, each with whether it is the default."""
    record = registry().component(component.interface, component.name)
    model = registry().settings_model(record)
    given, values = component.settings, model(**component.settings).model_dump(mode="json")
    return {key: (_masked(value, given.get(key)), key not in given) for key, value in values.items()}


def _masked(value: Any, given: Any) -> Any:
    """A setting as it may be shown, by what was given for it."""
    if isinstance(given, Secret):
        return "***"
    if isinstance(given, Mapping) and isinstance(value, Mapping):
        return {key: _masked(inner, given.get(key)) for key, inner in value.items()}
    return value


def _owner(component: ComponentConfig) -> str:
    record = registry().component(component.interface, component.name)
    return next(str(info) for info in registry().plugins() if record in info.components)


def _as_json(component: ComponentConfig) -> dict[str, Any]:
    settings = {key: value for key, (value, _) in _settings(component).items()}
    return {"name": component.name, "distribution": _owner(component), "settings": settings}


def _as_toml(table: str, component: ComponentConfig) -> str:
    lines = [f"[{table}]", f"name = {_toml(component.name)}  # of {_owner(component)}"]
    for key, (value, default) in _settings(component).items():
        note = "  # default" if default else ""
        lines.append(f"# {key} is not set" if value is None else f"{key} = {_toml(value)}{note}")
    return "\n".join(lines)


def _toml(value: Any) -> str:
    """A plain value in TOML; what TOML has no word for (None inside of a list) is left out."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, Mapping):
        entries = (f"{_toml(key)} = {_toml(item)}" for key, item in value.items() if item is not None)
        return f"{{ {', '.join(entries)} }}"
    if isinstance(value, list):
        return f"[{', '.join(_toml(item) for item in value if item is not None)}]"
    return str(value).lower() if isinstance(value, bool) else repr(value)
