"""racm3 plugins check: run the contract of a component, without pytest."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..discovery import canonical
from ..errors import ConfigError, PluginNotFound, RACM3Error, WeightsNotFound
from ..hookspecs import INTERFACES, Component
from ..registry import registry
from . import output
from .options import ConfigOption, JsonOption, PresetOption, configured
from .settings import parse_settings

if TYPE_CHECKING:
    from ..testing.contract import Verdict

MARKS = {"passed": "ok", "failed": "FAILED", "skipped": "skipped"}


def check(
    name: Annotated[str, typer.Argument(help="A component, or a distribution: all components of it.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting to make it with; repeatable.")
    ] = None,
    config: ConfigOption = None,
    preset: PresetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check a component against the contract of its interface: every rule, what is broken, and what is skipped and why.

    It is made from its defaults, or from the settings that a pipeline (--config, --preset) has for it; a memory is put
    into temporary folders. The exit code is 1 when a rule is broken.
    """
    from ..testing.contract import run
    from ..testing.installed import contract_of

    given = parse_settings(settings)
    reports = []
    found, unmade = _named(name), list[tuple[str, RACM3Error]]()
    for component, known_as in found:
        chosen = {**_of_pipeline(component, config, preset), **given}
        try:
            contract, made_with = contract_of(component, known_as, chosen)
        except (ConfigError, WeightsNotFound) as error:
            unmade.append((f"{component.kind} {known_as}", error))
            if len(unmade) == len(found):  # nothing is left to check
                raise
            continue
        if not as_json:
            output.answer_console().print(f"{component.kind} {known_as}, {component.target}", soft_wrap=True)
        verdicts = []
        for verdict in run(contract, made_with):
            verdicts.append(verdict)
            if not as_json:
                _tell(verdict)
        reports.append(_report(component, known_as, verdicts))
        if not as_json:
            output.answer_console().print(_summary(verdicts), soft_wrap=True)
    for what, reason in unmade:
        output.note(f"{what} is not checked: {reason}")
    if as_json:
        output.print_json(reports)
    if any(report["failed"] for report in reports):
        raise typer.Exit(1)


def _named(name: str) -> list[tuple[Component, str]]:
    """The components of that name, or of that distribution, each with a name by which the registry finds it."""
    for info in registry().plugins():
        if info.status != "ok" and canonical(name) == info.distribution:
            raise info.as_error()
    found = []
    for interface in INTERFACES.values():
        try:
            found.append((registry().component(interface, name), name))
        except PluginNotFound:
            continue
    if found:
        return found
    infos = [info for info in registry().plugins() if info.distribution == canonical(name)]
    found = [(component, f"{info.distribution}:{component.name}") for info in infos for component in info.components]
    if not found:
        known = sorted({known for interface in INTERFACES.values() for known in registry().names(interface)})
        hint = registry().hint_for(name, known)
        raise PluginNotFound(f"No component named {name!r}. Installed: {', '.join(known)}.", hint)
    return found


def _of_pipeline(component: Component, config: Path | None, preset: str | None) -> dict[str, Any]:
    """The settings that a pipeline has for a component; none without a pipeline."""
    if config is None and preset is None:
        return {}
    chosen = getattr(configured(config, preset), component.kind)
    if chosen is None or registry().component(chosen.interface, chosen.name) != component:
        has = "none" if chosen is None else repr(chosen.name)
        raise ConfigError(f"That pipeline's {component.kind} is {has}, not {component.name!r}.", "Use --set KEY=VALUE.")
    return dict(chosen.settings)


def _tell(verdict: Verdict) -> None:
    console = output.answer_console()
    style = {"passed": "green", "failed": "bold red", "skipped": "yellow"}[verdict.outcome]
    console.print(f"  {MARKS[verdict.outcome]:<8}", style=style, end="")
    console.print(f"{verdict.check.removeprefix('test_')}: {verdict.rule}", soft_wrap=True)
    if verdict.why:
        console.print(f"          {verdict.why}", soft_wrap=True)


def _summary(verdicts: list[Verdict]) -> str:
    count = Counter[str](verdict.outcome for verdict in verdicts)
    told = ", ".join(f"{count[outcome]} {outcome}" for outcome in MARKS)
    return f"{len(verdicts)} rules: {told}, in {sum(verdict.seconds for verdict in verdicts):.1f} s."


def _report(component: Component, name: str, verdicts: list[Verdict]) -> dict[str, Any]:
    return {
        "name": name,
        "interface": component.kind,
        "target": component.target,
        **{outcome: sum(verdict.outcome == outcome for verdict in verdicts) for outcome in MARKS},
        "checks": [
            {
                "check": verdict.check,
                "rule": verdict.rule,
                "outcome": verdict.outcome,
                "why": verdict.why,
                "seconds": round(verdict.seconds, 3),
            }
            for verdict in verdicts
        ],
    }
