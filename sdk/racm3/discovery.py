"""How plugins are found and loaded, each on its own, so that a broken one takes nothing else down.

The loop over `importlib.metadata` is ours: pluggy's own stops at the first plugin that fails, and drops a second plugin
of the same entry-point name in silence. Every plugin gets a plugin manager of its own, so that its hooks are called, and
can fail, without any other's.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Collection, Iterable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from types import ModuleType
from typing import Any, Literal

import pluggy

from . import hookspecs
from .errors import PluginError, PluginIncompatible, PluginLoadFailed, nearest, sentence
from .hookspecs import PROJECT, Component, Preset, kind_of

Status = Literal["ok", "broken", "incompatible", "blocked"]
LOCAL = "local"  # in place of a distribution, for what is registered without being installed
HOOKS = tuple(sorted(name for name in vars(hookspecs) if name.startswith(f"{PROJECT}_")))
# The specifications alone: pluggy inspects every name of what it is given, once for each plugin.
_SPECIFICATIONS = ModuleType(hookspecs.__name__, hookspecs.__doc__)
vars(_SPECIFICATIONS).update({hook: getattr(hookspecs, hook) for hook in HOOKS})


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
    def way_out(self) -> str:
        """What somebody can do who has this plugin, and cannot use it."""
        if self.distribution == LOCAL:
            return "It was registered by hand, not installed: mend it there."
        return f"Update or remove it: pip install -U {self.distribution}"

    @property
    def records(self) -> tuple[Component | Preset, ...]:
        return (*self.components, *self.presets)

    def fail(self, doing: str, error: BaseException) -> None:
        """Mark as broken. What it provides stays listed, so that who asks for it by name is told why."""
        self.status, self.cause = "broken", error
        self.error = f"{doing}: {describe(error)}"

    def as_error(self, wanted: str = "") -> PluginError:
        """The error for somebody who asked for it (wanted: by which name)."""
        subject = f"{wanted} comes from {self}, which" if wanted else f"The plugin {self}"
        if self.status == "blocked":
            return PluginLoadFailed(
                f"{subject} is not loaded.", f"Add {self.distribution} to RACM3_PLUGINS, or unset it."
            )
        kind = PluginIncompatible if self.status == "incompatible" else PluginLoadFailed
        error = kind(f"{subject} is {self.status}: {sentence(self.error)}", self.way_out)
        error.__cause__ = self.cause
        return error


def describe(error: BaseException) -> str:
    """An error in one phrase. Its text is the plugin's own code, which may fail as well."""
    try:
        return f"{type(error).__name__}: {error}".rstrip(":. ")
    except Exception:
        return type(error).__name__


def canonical(distribution: str) -> str:
    """A distribution's name as packaging compares it: racm3-chroma for RACM3_Chroma.

    The rule of PEP 503, spelled out: importing `packaging` takes longer than all that is done with it here.
    """
    return re.sub(r"[-_.]+", "-", distribution).lower()


def discover(allowed: Collection[str] | None = None) -> Iterator[PluginInfo]:
    """Find and load every installed plugin. allowed: names of distributions or entry points; None: all."""
    wanted = None if allowed is None else {canonical(name) for name in allowed}
    for found in _installed():
        try:
            entry_points = [point for point in found.distribution.entry_points if point.group == PROJECT]
        except Exception as error:
            info = PluginInfo("", found.name, found.version)
            info.fail("entry_points.txt cannot be read", error)
            yield info
            continue
        for entry_point in entry_points:
            info = PluginInfo(entry_point.name, found.name, found.version)
            if wanted is not None and not wanted & {found.name, canonical(entry_point.name)}:
                info.status, info.error = "blocked", "not in RACM3_PLUGINS"
            elif unmet := next(filter(None, map(_unmet, found.requires)), ""):
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
        manager.add_hookspecs(_SPECIFICATIONS)
        manager.register(plugin, info.name)
        manager.check_pending()
        if not any(getattr(manager.hook, hook).get_hookimpls() for hook in HOOKS):
            raise TypeError(f"{plugin!r} has no function marked @hookimpl")
        info.hooks = manager.hook
        doing = "racm3_components failed"
        info.components = _records(info.hooks.racm3_components, Component)
        doing = "racm3_presets failed"
        info.presets = _records(info.hooks.racm3_presets, Preset)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit, and what compiled extensions derive from BaseException
        info.fail(doing, error)


def _load(info: PluginInfo, entry_point: metadata.EntryPoint) -> None:
    # What a plugin prints while it is loaded is no answer of racm3: stdout may be read as JSON.
    with redirect_stdout(sys.stderr):
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


def _records(hook: Any, record: type[Component] | type[Preset]) -> tuple[Any, ...]:
    results = hook()
    if hook.get_hookimpls() and not results:  # pluggy leaves out None
        raise TypeError(f"expected {record.__name__} records, not None: is a yield missing?")
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


@dataclass
class _Found:
    """An installed distribution that may hold plugins, and what its metadata says."""

    distribution: metadata.Distribution
    name: str
    version: str = ""
    requires: list[str] = field(default_factory=list)


def _installed() -> list[_Found]:
    """Distributions that may hold a plugin, by name; of two with one name the first on the path, as with imports."""
    found: dict[str, _Found] = {}
    for distribution in metadata.distributions():
        try:
            # Most distributions have no plugin: looking into this small file first spares reading their metadata.
            if PROJECT not in (distribution.read_text("entry_points.txt") or ""):
                continue
        except Exception:
            # Of those that cannot be read, only what is called a plugin of ours is our business.
            if PROJECT not in _folder_name(distribution):
                continue
        stated = _stated(distribution)
        found.setdefault(stated.name, stated)
    return [found[name] for name in sorted(found) if name != PROJECT]


def _stated(distribution: metadata.Distribution) -> _Found:
    """Name, version and requirements, from the head of METADATA. `Distribution.metadata` would parse the whole of it as
    an e-mail at each access, which takes longer than all the rest of discovery."""
    made = _Found(distribution, _folder_name(distribution))
    try:
        text = distribution.read_text("METADATA")
        if text is None:  # an .egg-info, which keeps its requirements elsewhere
            stated = distribution.metadata
            name, made.version = stated["Name"], stated["Version"] or ""
            made.name = canonical(name) if name else made.name
            made.requires = distribution.requires or []
            return made
    except Exception:
        return made
    for line in text.splitlines():
        if not line.strip():
            break
        key, _, value = line.partition(":")
        if key == "Name" and value.strip():
            made.name = canonical(value.strip())
        elif key == "Version":
            made.version = value.strip()
        elif key == "Requires-Dist":
            made.requires.append(value.strip())
    return made


def _folder_name(distribution: metadata.Distribution) -> str:
    path = getattr(distribution, "_path", None)
    return canonical(path.name.split("-")[0]) if path is not None else "unknown"


@cache
def own_version() -> str:
    return metadata.version(PROJECT)


@cache
def _unmet(line: str) -> str:
    """What a requirement asks of racm3 and does not get, in words; empty when all is well."""
    name = re.match(r"[\w.-]+", line)
    if name is None or canonical(name[0]) != PROJECT or _within_plain_bounds(line[name.end() :]):
        return ""
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        requirement = Requirement(line)
    except InvalidRequirement as error:
        return f"its requirement {line!r} cannot be read: {str(error).splitlines()[0]}"
    if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
        return ""
    if requirement.specifier.contains(own_version(), prereleases=True):
        return ""
    return f"it requires racm3{requirement.specifier}, and this is racm3 {own_version()}"


def _within_plain_bounds(specifiers: str) -> bool:
    """Whether racm3 lies within bounds such as ">=0.1,<0.2". They are what nearly every plugin states; whatever is not
    as plain is left to `packaging`, whose import would take as long as finding fifty plugins."""
    if not specifiers.strip():
        return True
    bounds = [re.fullmatch(r"\s*(>=|<)\s*(\d[\d.]*)\s*", specifier) for specifier in specifiers.split(",")]
    ours = _plain_version(own_version())
    return bool(ours) and all(
        bound and _plain_version(bound[2]) and (ours >= _plain_version(bound[2])) == (bound[1] == ">=")
        for bound in bounds
    )


def _plain_version(version: str) -> tuple[int, ...]:
    """The numbers of a version without those zeros at its end that do not count; empty for any other version."""
    if not re.fullmatch(r"\d+(\.\d+)*", version):
        return ()
    return tuple(map(int, re.sub(r"(\.0+)+$", "", version).split(".")))
