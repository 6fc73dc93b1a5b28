"""The registry: every component, preset and observer that is installed, by name.

    from racm3 import MemoryStore
    from racm3.registry import registry

    memory = registry().create(MemoryStore, "faiss", {"path": "./memory"})

Names are short ("faiss") or qualified by the distribution ("racm3-chroma:chroma"). A short name that two plugins claim
is an error that names both; a built-in keeps its short name.
"""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Collection, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from . import builtin
from .discovery import HOOKS, LOCAL, PluginInfo, PluginWarning, canonical, describe, discover, load_plugin, own_version
from .errors import ConfigError, PluginConflict, PluginLoadFailed, PluginNotFound, RACM3Error, nearest, sentence
from .hookspecs import PROJECT, Component, Preset, kind_of
from .settings import settings_model, validate

if TYPE_CHECKING:
    from pydantic import BaseModel

    from .generation import Generation
    from .interfaces import Query, Selection
    from .options import Options

logger = logging.getLogger("racm3.plugins")

_Entry: TypeAlias = tuple[Any, PluginInfo]  # a Component or a Preset, and whose it is


class Registry:
    """Everything that is installed. Use `registry()`: one for the process is enough.

    strict: raise at the first plugin that is broken or incompatible, instead of warning once and going on without it.
    """

    def __init__(self, *, strict: bool = False) -> None:
        self.strict = strict
        self._plugins: list[PluginInfo] = []
        self._entries: dict[str, dict[str, list[_Entry]]] = {}
        self._classes: dict[Component, type] = {}
        self._models: dict[Component, type[BaseModel]] = {}
        self._hooks: dict[str, list[tuple[PluginInfo, Any]]] = {}
        self.register(builtin, name="builtin", distribution=PROJECT, version=own_version())

    def discover(self, allowed: Collection[str] | None = None) -> Registry:
        """Load the installed plugins. allowed: only these distributions or entry points; None: all."""
        for info in discover(allowed):
            self._take_in(info)
        return self

    def register(self, plugin: object, *, name: str, distribution: str = LOCAL, version: str = "") -> PluginInfo:
        """Use a plugin that is not installed: any module or object with hooks. A broken one raises.

        >>> from racm3 import Component, Sampler, hookimpl
        >>> class Mine:
        ...     @hookimpl
        ...     def racm3_components(self):
        ...         yield Component(Sampler, "mine", "my_package:MySampler")
        >>> Registry().register(Mine(), name="mine").components[0].name
        'mine'
        """
        info = PluginInfo(name, canonical(distribution), version)
        load_plugin(info, plugin)
        if info.status != "ok":
            raise info.as_error()
        self._take_in(info)
        return info

    def plugins(self) -> list[PluginInfo]:
        """All plugins, usable or not, the built-in one first."""
        return list(self._plugins)

    def names(self, interface: type) -> list[str]:
        """The names under which components of an interface can be asked for: short ones, or qualified on a conflict."""
        return self._names(kind_of(interface))

    def presets(self) -> list[str]:
        """The names of the presets."""
        return self._names("preset")

    def component(self, interface: type, name: str) -> Component:
        """The record of a component by short or qualified name. Raises `PluginNotFound`, `PluginConflict`, or, where
        the plugin is known and unusable, `PluginLoadFailed` or `PluginIncompatible`."""
        component: Component = self._find(kind_of(interface), name)[0]
        return component

    def resolve(self, component: Component) -> type:
        """Import a component's class. Raises `PluginLoadFailed` with the distribution and the cause."""
        if component not in self._classes:
            self._classes[component] = self._import(component)
        return self._classes[component]

    def settings_model(self, component: Component) -> type[BaseModel]:
        """The settings of a component, as a pydantic model."""
        if component not in self._models:
            try:
                self._models[component] = settings_model(self.resolve(component))
            except TypeError as error:
                raise self._load_failed(component, str(error)) from error
        return self._models[component]

    def validate(self, interface: type, name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Check settings for a component, and convert them to what its constructor takes. Raises `ConfigError`."""
        component = self.component(interface, name)
        return validate(self.settings_model(component), settings, _label(component.kind, name))

    def options_model(self, interface: type, name: str) -> type[Options]:
        """What a generator can be asked for at each call."""
        from .options import Options

        generator: Any = self.resolve(self.component(interface, name))
        return generator.options_type or Options

    def create(self, interface: type, name: str, settings: Mapping[str, Any] | None = None) -> Any:
        """Make a component from its name and settings. Raises `ConfigError` for settings that do not fit."""
        component = self.component(interface, name)
        given = self.validate(interface, name, settings or {})
        try:
            return self.resolve(component)(**given)
        except (RACM3Error, KeyboardInterrupt):
            raise
        except BaseException as error:
            raise self._load_failed(component, f"its constructor raised {describe(error)}") from error

    def preset(self, name: str) -> Mapping[str, Any] | Path:
        """The tables of a preset, or the TOML file that holds them: what `load_config` takes."""
        preset, info = self._find("preset", name)
        factory: Any = preset.factory
        if isinstance(factory, str):
            try:
                factory = _attribute(factory)()
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                if isinstance(error, RACM3Error):
                    raise
                raise PluginLoadFailed(
                    f"The preset {name!r} of {info} failed: {sentence(describe(error))}", info.way_out
                ) from error
        if not isinstance(factory, (Mapping, Path)):
            what = f"The preset {name!r} of {info} gave {type(factory).__name__}, not a mapping or Path."
            raise PluginLoadFailed(what, info.way_out)
        return factory

    def faults(self, info: PluginInfo) -> list[tuple[Component | Preset, RACM3Error]]:
        """What of a usable plugin cannot be had by its short name, with the error that asking for it gives.

        This imports the plugin's components, which discovery does not.
        """
        found: list[tuple[Component | Preset, RACM3Error]] = []
        for record in info.records if info.status == "ok" else ():
            kind = _kind(record)
            try:
                if isinstance(record, Component):
                    self.settings_model(record)
                else:
                    self.preset(f"{info.distribution}:{record.name}")
                owner = self._find(kind, record.name)[1]
                if owner is not info:
                    raise PluginConflict(
                        f"{_label(kind, record.name)} is {owner}'s own: that of {info} goes by its full name.",
                        f"Ask for '{info.distribution}:{record.name}'.",
                    )
            except RACM3Error as error:
                found.append((record, error))
        return found

    def hint_for(self, name: str, known: Collection[str]) -> str:
        """What may help somebody who asked for a name that is not known: a like one, and the plugins that cannot be used
        and might have provided it."""
        hint = nearest(name, known) or "`racm3 plugins` shows what is installed."
        dark = [f"{info} ({info.status})" for info in self._plugins if info.status != "ok" and not info.records]
        return f"{hint} Not usable, as `racm3 plugins` explains: {', '.join(dark)}." if dark else hint

    def owner(self, component: object) -> tuple[str, PluginInfo | None]:
        """Whose a component is, in words, for messages; and the plugin, where the component was made by its name."""
        kind = type(component)
        for record, found in self._classes.items():
            if found is kind and (info := self._plugin_of(record)) is not None:
                return f"{_label(record.kind, record.name)} of {info}", info
        return f"{kind.__module__}.{kind.__qualname__}", None

    def implementations(self, hook: str) -> list[tuple[PluginInfo, Any]]:
        """Who implements a hook: each plugin with a function that calls only its own."""
        return list(self._hooks.get(hook, ()))

    def notify_retrieved(self, query: Query, selection: Selection) -> None:
        """Tell observers. They get lists of their own, so that none of them can change what comes after."""
        if self._hooks.get("racm3_retrieved"):
            shown = replace(selection, hits=list(selection.hits), skipped=list(selection.skipped))
            self._notify("racm3_retrieved", query=query, selection=shown)

    def notify_generated(self, generation: Generation) -> None:
        """Tell observers, as with `notify_retrieved`."""
        if self._hooks.get("racm3_generated"):
            shown = replace(
                generation,
                outputs=list(generation.outputs),
                hits=list(generation.hits),
                skipped=list(generation.skipped),
            )
            self._notify("racm3_generated", generation=shown)

    def disable(self, info: PluginInfo, doing: str, error: BaseException) -> None:
        """Take a plugin out because one of its hooks failed: it is remembered as broken, and warned about."""
        info.fail(doing, error)
        self._take_out(info)
        self._complain(info)

    def unregister(self, info: PluginInfo) -> None:
        """Forget a plugin that `register` took in, as a test does when it ends."""
        self._take_out(info)
        self._plugins = [known for known in self._plugins if known is not info]

    def _take_in(self, info: PluginInfo) -> None:
        for record in info.records if info.status == "ok" else ():
            entries = self._entries.get(_kind(record), {}).get(record.name, [])
            if any(other.distribution == info.distribution for _, other in entries):
                twice = ValueError(f"{_label(_kind(record), record.name)} is given by two entry points of {info}")
                info.fail("its names clash", twice)
        self._plugins.append(info)
        if info.status != "ok":
            self._complain(info)
            return
        for record in info.records:
            self._entries.setdefault(_kind(record), {}).setdefault(record.name, []).append((record, info))
        for hook in HOOKS:
            if getattr(info.hooks, hook).get_hookimpls():
                self._hooks.setdefault(hook, []).append((info, getattr(info.hooks, hook)))

    def _take_out(self, info: PluginInfo) -> None:
        for calls in self._hooks.values():
            calls[:] = [entry for entry in calls if entry[0] is not info]
        for entries in self._entries.values():
            for short in list(entries):
                entries[short] = [entry for entry in entries[short] if entry[1] is not info]
                if not entries[short]:
                    del entries[short]

    def _complain(self, info: PluginInfo) -> None:
        if info.status == "blocked":
            return
        if self.strict:
            raise info.as_error()
        # With the level of the caller's caller, since nobody here is to blame.
        warnings.warn(f"The racm3 plugin {info} is {info.status}: {sentence(info.error)}", PluginWarning, stacklevel=4)

    def _names(self, kind: str) -> list[str]:
        names = []
        for short, entries in self._entries.get(kind, {}).items():
            if len(entries) == 1:
                names.append(short)
            else:
                names += [
                    short if info.distribution == PROJECT else f"{info.distribution}:{short}" for _, info in entries
                ]
        return sorted(names)

    def _find(self, kind: str, name: str) -> _Entry:
        if not isinstance(name, str):
            raise ConfigError(f"A {kind} is asked for by its name, a str, not {type(name).__name__}.")
        owner, _, short = name.rpartition(":")
        entries = self._entries.get(kind, {}).get(short, [])
        if owner:
            entries = [entry for entry in entries if entry[1].distribution == canonical(owner)]
        elif len(entries) > 1:
            builtins = [entry for entry in entries if entry[1].distribution == PROJECT]
            if not builtins:
                names = [f"{info.distribution}:{short}" for _, info in entries]
                raise PluginConflict(
                    f"Several plugins provide a {kind} named {short!r}: {', '.join(names)}.", f"Ask for '{names[0]}'."
                )
            entries = builtins
        if entries:
            return entries[0]
        for info in self._plugins:
            if info.status != "ok" and self._might_provide(info, kind, owner, short):
                raise info.as_error(_label(kind, name))
        known = self._names(kind)
        raise PluginNotFound(
            f"No {kind} named {name!r}. Installed: {', '.join(known) or 'none'}.", self.hint_for(name, known)
        )

    @staticmethod
    def _might_provide(info: PluginInfo, kind: str, owner: str, short: str) -> bool:
        """Whether an unusable plugin is the one that was asked for. What it would have provided is often unknown."""
        if owner:
            return info.distribution == canonical(owner)
        if info.records:
            return any((_kind(record), record.name) == (kind, short) for record in info.records)
        return short in (info.name, info.distribution) or info.distribution == canonical(f"{PROJECT}-{short or '?'}")

    def _import(self, component: Component) -> type:
        try:
            found = _attribute(component.target)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise self._load_failed(component, f"{component.target}: {describe(error)}") from error
        interface = component.interface
        if not isinstance(found, type) or not issubclass(found, interface):
            raise self._load_failed(component, f"{component.target} is not a subclass of {interface.__name__}")
        missing: Collection[str] = getattr(found, "__abstractmethods__", ())
        if missing:
            raise self._load_failed(component, f"{component.target} does not implement {', '.join(sorted(missing))}")
        return found

    def _load_failed(self, component: Component, why: str) -> PluginLoadFailed:
        info = self._plugin_of(component)
        others = [name for name in self._names(component.kind) if name != component.name]
        instead = f" Other choices: {', '.join(others)}." if others else ""
        return PluginLoadFailed(
            f"{_label(component.kind, component.name)} of {info or 'an unknown plugin'} cannot be loaded: {sentence(why)}",
            f"{info.way_out if info else '`racm3 plugins` shows what is installed'}.{instead}",
        )

    def _plugin_of(self, component: Component) -> PluginInfo | None:
        entries = self._entries.get(component.kind, {}).get(component.name, [])
        # By identity first: two plugins may name one class in the same words.
        same = [info for record, info in entries if record is component]
        return next(iter(same or [info for record, info in entries if record == component]), None)

    def _notify(self, hook: str, **arguments: object) -> None:
        for info, call in self._hooks.get(hook, ()):
            try:
                call(**arguments)
            except KeyboardInterrupt:
                raise
            except BaseException:
                info.observer_errors += 1
                logger.exception("%s of the plugin %s failed; going on without it.", hook, info)


def _kind(record: Component | Preset) -> str:
    return record.kind if isinstance(record, Component) else "preset"


def _label(kind: str, name: str) -> str:
    return f"{kind.capitalize()} {name!r}"


def _attribute(target: str) -> Any:
    module, _, path = target.partition(":")
    found: Any = import_module(module)
    for name in path.split("."):
        found = getattr(found, name)
    return found


_lock = threading.RLock()
_registry: Registry | None = None


def registry() -> Registry:
    """The registry of this process, with all installed plugins; made on the first call.

    RACM3_PLUGINS: names of distributions or entry points, separated by commas; only these are loaded (empty: none).
    RACM3_STRICT=1: a plugin that is broken or incompatible raises at once.
    """
    global _registry
    with _lock:
        if _registry is None:
            names = os.environ.get("RACM3_PLUGINS")
            allowed = None if names is None else [name.strip() for name in names.split(",") if name.strip()]
            # Assigned before discovery: a plugin that asks for the registry at import must not start another.
            _registry = Registry(strict=os.environ.get("RACM3_STRICT", "") not in ("", "0"))
            try:
                _registry.discover(allowed)
            except BaseException:
                _registry = None
                raise
        return _registry
