"""Contracts of what is installed: the one that a component names, or its interface's, with the component made by name."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from ..discovery import describe
from ..errors import ConfigError, PluginLoadFailed, WeightsNotFound
from ..hookspecs import Component
from ..interfaces import Generator, MemoryStore, Retriever, Sampler
from ..registry import registry
from .contract import Contract
from .generator_contract import GeneratorContract
from .memory_contract import MemoryStoreContract
from .retriever_contract import RetrieverContract
from .sampler_contract import SamplerContract

INTERFACES: Mapping[str, type[Contract]] = {
    "retriever": RetrieverContract,
    "memory": MemoryStoreContract,
    "sampler": SamplerContract,
    "generator": GeneratorContract,
}


class _Installed(Contract):
    """`settings` holds the name by which the registry knows the component, and what it is to be made with."""

    def _make(self, interface: type, **more: Any) -> Any:
        return registry().create(interface, self.settings["name"], {**self.settings["settings"], **more})


class InstalledMemory(_Installed, MemoryStoreContract):
    """Each check has a memory of its own: at a new path, where there is a setting `path`."""

    def open(self, path: Path) -> MemoryStore:
        return cast(MemoryStore, self._make(MemoryStore, **_placed(self.settings["name"], path)))


class InstalledRetriever(_Installed, RetrieverContract):
    def create(self) -> Retriever:
        return cast(Retriever, self._make(Retriever))


class InstalledSampler(_Installed, SamplerContract):
    def create(self) -> Sampler:
        return cast(Sampler, self._make(Sampler))


class InstalledGenerator(_Installed, GeneratorContract):
    def create(self) -> Generator:
        return cast(Generator, self._make(Generator))


_GENERAL: Mapping[str, type[_Installed]] = {
    "retriever": InstalledRetriever,
    "memory": InstalledMemory,
    "sampler": InstalledSampler,
    "generator": InstalledGenerator,
}


def contract_of(component: Component, name: str, settings: Mapping[str, Any]) -> tuple[type[Contract], dict[str, Any]]:
    """The contract of an installed component, and the settings to run it with.

    name: by which the registry knows it. Raises `PluginLoadFailed` when the component, or the contract that it names,
    cannot be had; `ConfigError` for settings that do not fit.
    """
    interface = component.interface
    registry().resolve(component)
    if not component.contract:
        placed = _placed(name, Path()) if component.kind == "memory" else {}
        registry().validate(interface, name, {**settings, **placed})
        try:  # once, before each rule says the same
            if component.kind != "memory":
                registry().create(interface, name, settings)
        except (ConfigError, WeightsNotFound):
            raise
        except Exception:
            pass  # whatever else is wrong with it the rules say
        return _GENERAL[component.kind], {"name": name, "settings": dict(settings)}
    module, _, attribute = component.contract.partition(":")
    try:
        found = getattr(import_module(module), attribute)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        message = f"The contract of {component.name!r}, {component.contract}, cannot be loaded: {describe(error)}."
        raise PluginLoadFailed(message) from error
    expected = INTERFACES[component.kind]
    if not (isinstance(found, type) and issubclass(found, expected)):
        raise PluginLoadFailed(f"The contract of {component.name!r}, {component.contract}, is no {expected.__name__}.")
    return found, dict(settings)


def _placed(memory: str, path: Path) -> dict[str, Path]:
    """The setting that puts a memory somewhere, if it has one."""
    fields = registry().settings_model(registry().component(MemoryStore, memory)).model_fields
    return {"path": path} if "path" in fields else {}
