"""How plugins are found and loaded, each on its own, so that a broken one takes nothing else down.

The loop over `importlib.metadata` is ours: pluggy's own stops at the first plugin that fails, and drops a second plugin
of the same entry-point name in silence. Every plugin gets a plugin manager of its own, so that its hooks are called, and
can fail, without any other's.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from typing import Any, Literal

import pluggy

from . import hookspecs
from .errors import PluginError, PluginIncompatible, PluginLoadFailed, nearest
from .hookspecs import PROJECT, Component, Preset, kind_of

logger = logging.getLogger(__name__)

Status = Literal["ok", "broken", "incompatible", "blocked"]
HOOKS = tuple(sorted(name for name in vars(hookspecs) if name.startswith(f"{PROJECT}_")))


class PluginWarning(UserWarning):
    """A plugin that is installed cannot be used."""


@dataclass
class PluginInfo:
    """What is known about an installed plugin, usable or not.

    status: "ok"; "broken": it failed to import, to name its hooks, or in a hook; "incompatible": it requires another
    version of racm3; "blocked": RACM3_PLUGINS leaves it out. error: why it is not ok.
    """

    name: str
    distribution: str
    version: str
    status: Status = "ok"
    error: str = ""
    components: tuple[Component, ...] = ()
    presets: tuple[Preset, ...] = ()
    observer_errors: int = 0
    cause: BaseException | None = field(default=None, repr=False)
    hooks: Any = field(default=None, repr=False)

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}".strip()

    @property
    def records(self) -> tuple[Component | Preset, ...]:
        return (*self.components, *self.presets)

    def fail(self, doing: str, error: BaseException) -> None:
        """Mark as broken. What it provides stays listed, so that who asks for it by name is told why."""
        self.status, self.cause = "broken", error
        self.error = f"{doing}: {type(error).__name__}: {error}".rstrip(": ")

    def as_error(self, wanted: str = "") -> PluginError:
        """The error for somebody who asked for it (wanted: by which name)."""
        subject = f"{wanted} comes from {self}, which" if wanted else f"The plugin {self}"
        if self.status == "blocked":
            return PluginLoadFailed(
                f"{subject} is not loaded.", f"Add {self.distribution} to RACM3_PLUGINS, or unset it."
            )
        kind = PluginIncompatible if self.status == "incompatible" else PluginLoadFailed
        error = kind(
            f"{subject} is {self.status}: {self.error}.", f"Update or remove it: pip install -U {self.distribution}"
        )
        error.__cause__ = self.cause
        return error


def canonical(distribution: str) -> str:
    """A distribution's name as packaging compares it: racm3-chroma for RACM3_Chroma."""
    from packaging.utils import canonicalize_name

    return str(canonicalize_name(distribution))


def discover(allowed: Collection[str] | None = None) -> Iterator[PluginInfo]:
    """Find and load every installed plugin. allowed: names of distributions or entry points; None: all."""
    wanted = None if allowed is None else {canonical(name) for name in allowed}
    for name, version, distribution in _distributions():
        try:
            entry_points = [point for point in distribution.entry_points if point.group == PROJECT]
        except Exception as error:
            info = PluginInfo("", name, version)
            info.fail("entry_points.txt cannot be read", error)
            yield info
            continue
        for entry_point in entry_points:
            info = PluginInfo(entry_point.name, name, version)
            if wanted is not None and not wanted & {name, canonical(entry_point.name)}:
                info.status, info.error = "blocked", "not in RACM3_PLUGINS"
            elif unmet := _unmet_requirement(distribution):
                info.status, info.error = "incompatible", unmet
            else:
                _load(info, entry_point)
            yield info


def load_plugin(info: PluginInfo, plugin: object) -> None:
    """Check the hooks of a plugin and call those that say what it provides; a failure is written into `info`."""
    doing = "its hooks are not valid"
    try:
        _check_names(plugin)
        manager = pluggy.PluginManager(PROJECT)
        manager.add_hookspecs(hookspecs)
        manager.register(plugin, info.name)
        manager.check_pending()
        if not any(getattr(manager.hook, hook).get_hookimpls() for hook in HOOKS):
            raise TypeError(f"{plugin!r} has no function marked @hookimpl")
        info.hooks = manager.hook
        doing = "racm3_components failed"
        info.components = _records(info.hooks.racm3_components(), Component)
        doing = "racm3_presets failed"
        info.presets = _records(info.hooks.racm3_presets(), Preset)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit, and what compiled extensions derive from BaseException
        info.fail(doing, error)


def _load(info: PluginInfo, entry_point: metadata.EntryPoint) -> None:
    try:
        plugin = entry_point.load()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        info.fail(f"{entry_point.value!r} cannot be imported", error)
    else:
        load_plugin(info, plugin)


def _check_names(plugin: object) -> None:
    """Refuse functions that look like hooks and would never be called: misspelled, or without the marker."""
    for name in dir(plugin):
        if not name.startswith(f"{PROJECT}_"):
            continue
        function = inspect.getattr_static(plugin, name)
        if not inspect.isfunction(function):
            continue
        if name not in HOOKS:
            raise TypeError(f"there is no hook {name!r}. {nearest(name, HOOKS)}".rstrip())
        if not hasattr(function, f"{PROJECT}_impl"):
            raise TypeError(f"{name!r} is not marked with @hookimpl")


def _records(results: Iterable[Any], record: type[Component] | type[Preset]) -> tuple[Any, ...]:
    found: dict[tuple[str, str], Any] = {}
    for result in results:
        if isinstance(result, (str, bytes)) or not isinstance(result, Iterable):
            raise TypeError(f"expected {record.__name__} records, not {result!r}")
        for item in result:
            if not isinstance(item, record):
                raise TypeError(f"expected {record.__name__} records, not {item!r}")
            key = (kind_of(item.interface) if isinstance(item, Component) else "preset", item.name)
            if key in found:
                raise ValueError(f"the {key[0]} {key[1]!r} is given twice")
            found[key] = item
    return tuple(found.values())


def _distributions() -> list[tuple[str, str, metadata.Distribution]]:
    """Distributions that may hold a plugin, by name; of two with one name the first on the path, as with imports."""
    found: dict[str, tuple[str, str, metadata.Distribution]] = {}
    for distribution in metadata.distributions():
        try:
            # Most distributions have no plugin: looking into this small file first spares parsing their metadata.
            if PROJECT in (distribution.read_text("entry_points.txt") or ""):
                name, version = _identity(distribution)
                found.setdefault(name, (name, version, distribution))
        except Exception as error:
            logger.debug("An installed distribution cannot be read: %s", error)
    return [found[name] for name in sorted(found) if name != PROJECT]


def _identity(distribution: metadata.Distribution) -> tuple[str, str]:
    try:
        stated = distribution.metadata  # parsed anew at each access
        return canonical(stated["Name"]), str(stated["Version"] or "")
    except Exception:  # no METADATA, or none that can be parsed
        path = getattr(distribution, "_path", None)
        return canonical(path.name.split("-")[0]) if path is not None else "unknown", ""


@cache
def _own_version() -> str:
    return metadata.version(PROJECT)


def _unmet_requirement(distribution: metadata.Distribution) -> str:
    """What a plugin requires of racm3 and does not get, in words; empty when all is well."""
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        lines = distribution.requires or []
    except Exception:
        return ""
    ours = _own_version()
    for line in lines:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue  # the installer's business
        if canonical(requirement.name) != PROJECT or (
            requirement.marker is not None and not requirement.marker.evaluate({"extra": ""})
        ):
            continue
        if not requirement.specifier.contains(ours, prereleases=True):
            return f"it requires racm3{requirement.specifier}, and this is racm3 {ours}"
    return ""
