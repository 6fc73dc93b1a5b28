"""racm3 plugins: what is installed, usable or not."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any

from ..discovery import PluginInfo
from ..errors import PluginConflict, PluginError, RACM3Error
from ..hookspecs import Component, Preset
from . import output
from .options import JsonOption

if TYPE_CHECKING:
    from ..registry import Registry


def plugins(as_json: JsonOption = False) -> None:
    """List all that is installed, and why what is broken is broken."""
    found = _registry()
    infos = found.plugins()
    with redirect_stdout(sys.stderr):  # what a plugin prints when it is imported is no answer
        faults = {id(record): error for info in infos for record, error in found.faults(info)}
    if as_json:
        output.print_json([_as_json(info, faults) for info in infos])
        return
    rows = []
    for info in infos:
        for record in info.records:
            kind = record.kind if isinstance(record, Component) else "preset"
            status = _status(info, faults.get(id(record)))
            rows.append([record.name, kind, info.distribution, info.version, status, record.summary])
        if not info.records:
            rows.append([info.name, "", info.distribution, info.version, info.status, ""])
    output.table(["name", "interface", "distribution", "version", "status", "summary"], rows)
    causes = [f"{info} ({info.name}) is {info.status}: {info.error}" for info in infos if info.error]
    causes += [
        f"{info} ({info.name}): {faults[id(one)]}" for info in infos for one in info.records if id(one) in faults
    ]
    for cause in causes:
        output.answer_console().print(f"\n{cause}", soft_wrap=True)


def _registry() -> Registry:
    import warnings

    from ..registry import Registry, registry

    try:
        return registry()
    except PluginError:  # RACM3_STRICT: this command shows what is wrong all the same
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Registry().discover()


def _status(info: PluginInfo, fault: RACM3Error | None) -> str:
    if fault is None:
        return info.status
    return "name taken" if isinstance(fault, PluginConflict) else "broken"


def _as_json(info: PluginInfo, faults: Mapping[int, RACM3Error]) -> dict[str, Any]:
    def state(record: Component | Preset) -> dict[str, str]:
        fault = faults.get(id(record))
        return {"summary": record.summary, "status": _status(info, fault), "error": str(fault or "")}

    return {
        "name": info.name,
        "distribution": info.distribution,
        "version": info.version,
        "status": info.status,
        "error": info.error,
        "components": [
            {"interface": record.kind, "name": record.name, "target": record.target, **state(record)}
            for record in info.components
        ],
        "presets": [{"name": preset.name, **state(preset)} for preset in info.presets],
        "commands": bool(info.hooks is not None and info.hooks.racm3_commands.get_hookimpls()),
    }
