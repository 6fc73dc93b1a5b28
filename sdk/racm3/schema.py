"""The JSON Schema of pipeline files, made of what is installed: for editors, and for forms."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from .config import DEFAULTS, OPTIONS, REQUIRED
from .errors import PluginError
from .hookspecs import INTERFACES
from .interfaces import Generator
from .registry import registry

DIALECT = "https://json-schema.org/draft/2020-12/schema"
ENV = {
    "type": "object",
    "description": "a secret, read from the environment",
    "properties": {"env": {"type": "string"}},
    "required": ["env"],
    "additionalProperties": False,
}


def pipeline_schema() -> tuple[dict[str, Any], dict[str, PluginError]]:
    """The schema, and why the components that it leaves out cannot be described, by "memory chroma".

    Every table takes one of the installed components, with its settings; any setting may be `{ env = "VARIABLE" }`.
    """
    definitions: dict[str, Any] = {"env": ENV}
    left_out: dict[str, PluginError] = {}
    tables = {}
    for kind, interface in INTERFACES.items():
        choices = []
        for name in registry().names(interface):
            try:
                model = registry().settings_model(registry().component(interface, name))
            except PluginError as error:
                left_out[f"{kind} {name}"] = error
                continue
            own = f"{kind}.{name}"
            described = model.model_json_schema(ref_template=f"#/$defs/{own}.{{model}}")
            nested = described.pop("$defs", {})
            definitions |= {f"{own}.{key}": value for key, value in nested.items()}
            definitions[own] = _with_name(described, name, registry().component(interface, name).summary)
            choices.append({"$ref": f"#/$defs/{own}"})
        tables[kind] = {"oneOf": choices} | ({"default": dict(DEFAULTS[kind])} if kind in DEFAULTS else {})
    tables[OPTIONS] = _options(definitions)
    schema = {
        "$schema": DIALECT,
        "title": "A racm3 pipeline",
        "type": "object",
        "properties": tables,
        "required": list(REQUIRED),
        "additionalProperties": False,
        "$defs": definitions,
    }
    return schema, left_out


def _options(definitions: dict[str, Any]) -> dict[str, Any]:
    """The schema of the options of answers: the common ones, or those of an installed generator."""
    from .options import Options

    models: dict[type[Options], str] = {Options: "common"}
    for name in registry().names(Generator):
        with suppress(PluginError):  # it is left out above
            models.setdefault(registry().options_model(Generator, name), name)
    for model, name in models.items():
        described = model.model_json_schema(ref_template=f"#/$defs/{OPTIONS}.{name}.{{model}}")
        nested = described.pop("$defs", {})
        definitions |= {f"{OPTIONS}.{name}.{key}": value for key, value in nested.items()}
        definitions[f"{OPTIONS}.{name}"] = described
    return {"anyOf": [{"$ref": f"#/$defs/{OPTIONS}.{name}"} for name in models.values()]}


def _with_name(described: dict[str, Any], name: str, summary: str) -> dict[str, Any]:
    """The schema of a component's settings as that of its table, which says its name too."""
    settings = {
        key: {"anyOf": [value, {"$ref": "#/$defs/env"}]} for key, value in described.get("properties", {}).items()
    }
    return {
        **described,
        "title": name,
        "description": summary,
        "properties": {"name": {"const": name}, **settings},
        "required": ["name", *described.get("required", [])],
    }
