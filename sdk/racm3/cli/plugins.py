"""racm3 plugins: what is installed, usable or not."""

from __future__ import annotations

from typing import Any

from ..discovery import PluginInfo
from ..errors import PluginError
from . import output
from .options import JsonOption


def plugins(as_json: JsonOption = False) -> None:
    """List all that is installed, and why what is broken is broken."""
    infos = _plugins()
    if as_json:
        output.print_json([_as_json(info) for info in infos])
        return
    rows = []
    for info in infos:
        owner = [info.distribution, info.version, info.status]
        rows += [[record.name, record.kind, *owner, record.summary] for record in info.components]
        rows += [[preset.name, "preset", *owner, preset.summary] for preset in info.presets]
        if not info.records:
            rows.append([info.name, "", *owner, ""])
    output.table(["name", "interface", "distribution", "version", "status", "summary"], rows)
    for info in infos:
        if info.error:
            output.answer_console().print(f"\n{info} ({info.name}) is {info.status}: {info.error}", soft_wrap=True)


def _plugins() -> list[PluginInfo]:
    import warnings

    from ..registry import Registry, registry

    try:
        return registry().plugins()
    except PluginError:  # RACM3_STRICT: this command shows what is wrong all the same
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Registry().discover().plugins()


def _as_json(info: PluginInfo) -> dict[str, Any]:
    return {
        "name": info.name,
        "distribution": info.distribution,
        "version": info.version,
        "status": info.status,
        "error": info.error,
        "components": [
            {"interface": record.kind, "name": record.name, "target": record.target, "summary": record.summary}
            for record in info.components
        ],
        "presets": [{"name": preset.name, "summary": preset.summary} for preset in info.presets],
        "commands": bool(info.hooks is not None and info.hooks.racm3_commands.get_hookimpls()),
    }
