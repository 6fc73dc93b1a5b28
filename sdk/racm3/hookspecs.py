"""What a plugin may provide: five hooks, and the records that they yield.

A plugin is a module with functions marked `@hookimpl`, named by an entry point of the group `racm3`:

    [project.entry-points.racm3]
    chroma = "racm3_chroma"

It is imported whenever racm3 looks for plugins, so it imports nothing heavy: a component's target is a string, and is
imported when the component is first used. Implement only the hooks that you need, with only the arguments that you need.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pluggy

from .interfaces import Generator, MemoryStore, Retriever, Sampler

if TYPE_CHECKING:
    import typer

    from .generation import Generation
    from .interfaces import Query, Selection

PROJECT = "racm3"
INTERFACES: Mapping[str, type] = {
    "retriever": Retriever,
    "memory": MemoryStore,
    "sampler": Sampler,
    "generator": Generator,
}

F = TypeVar("F", bound=Callable[..., object])
hookspec: Callable[[F], F] = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]*[a-z0-9])?")
_TARGET = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def kind_of(interface: type) -> str:
    """The word for one of the four interfaces, as in a pipeline file: retriever, memory, sampler or generator."""
    for kind, known in INTERFACES.items():
        if interface is known:
            return kind
    names = ", ".join(known.__name__ for known in INTERFACES.values())
    raise TypeError(f"{interface!r} is not one of the interfaces {names}.")


def _check_name(name: object) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not a name: use lower-case letters, digits, '.', '_' and '-'.")


def _check_target(target: object) -> None:
    if not isinstance(target, str) or not _TARGET.fullmatch(target):
        raise ValueError(f"{target!r} is not a target of the form 'package.module:Name'.")


def _check_summary(summary: object) -> None:
    if not isinstance(summary, str):
        raise ValueError(f"the summary {summary!r} is not a str.")


@dataclass(frozen=True)
class Component:
    """A class that implements one of the four interfaces, under a name, imported when it is first used.

    contract: for `racm3 plugins check`, the subclass of one of the contracts in `racm3.testing` that makes the component;
    needed where its settings alone do not say how, or where rules are skipped.

    >>> from racm3 import Component, MemoryStore
    >>> Component(MemoryStore, "chroma", "racm3_chroma.memory:ChromaMemory", summary="Chroma, embedded").name
    'chroma'
    """

    interface: type
    name: str
    target: str
    summary: str = ""
    contract: str = ""

    def __post_init__(self) -> None:
        kind_of(self.interface)
        _check_name(self.name)
        _check_target(self.target)
        _check_summary(self.summary)
        if self.contract:
            _check_target(self.contract)

    @property
    def kind(self) -> str:
        """retriever, memory, sampler or generator."""
        return kind_of(self.interface)


@dataclass(frozen=True)
class Preset:
    """A named pipeline: the tables of a pipeline file, or where they come from.

    factory: the tables as a mapping; the `Path` of a TOML file; or "package.module:function", where the function takes
    no arguments and returns one of the two.

    >>> from racm3 import Preset
    >>> tables = {"retriever": {"name": "clip"}, "memory": {"name": "faiss", "path": "/srv/birds"}}
    >>> Preset("birds", tables, summary="Garden birds, search only").name
    'birds'
    """

    name: str
    factory: str | Path | Mapping[str, Any]
    summary: str = ""

    def __post_init__(self) -> None:
        _check_name(self.name)
        if not isinstance(self.factory, (Path, Mapping)):
            _check_target(self.factory)
        _check_summary(self.summary)


@hookspec
def racm3_components() -> Iterable[Component]:  # type: ignore[empty-body]
    """Provide retrievers, memories, samplers and generators. The class may live in any module of yours, and is imported
    when it is first used.

    from racm3 import Component, Sampler, hookimpl
    from racm3.interfaces import Selection

    class FirstSampler(Sampler):
        def sample(self, query, hits, *, k, rng):
            return Selection(list(hits[:k]))

    @hookimpl
    def racm3_components():
        yield Component(Sampler, "first", f"{__name__}:FirstSampler", summary="The k nearest, whatever they are")
    """


@hookspec
def racm3_presets() -> Iterable[Preset]:  # type: ignore[empty-body]
    """Provide pipelines that `Pipeline.from_preset(name)` and `racm3 --preset NAME` build: as tables, a TOML file's
    `Path`, or the name of a function.

    from racm3 import Preset, hookimpl

    @hookimpl
    def racm3_presets():
        tables = {
            "retriever": {"name": "clip", "model": "ViT-B-32", "pretrained": "laion2b_s34b_b79k"},
            "memory": {"name": "faiss", "path": "./birds"},
            "sampler": {"name": "diverse", "threshold": 0.8},
        }
        yield Preset("birds", tables, summary="Garden birds, search only")
    """


@hookspec
def racm3_commands(app: typer.Typer) -> None:
    """Add commands to `racm3`. A name that racm3 itself has is refused.

    from racm3 import hookimpl

    @hookimpl
    def racm3_commands(app):
        @app.command()
        def hello(name: str = "world"):
            "Say hello. Example: racm3 hello --name Ada"
            print(f"Hello, {name}!")
    """


@hookspec
def racm3_retrieved(query: Query, selection: Selection) -> None:
    """Observe what was retrieved for a prompt, before the generator sees it. An error here is logged, and work goes on.

    from racm3 import hookimpl

    @hookimpl
    def racm3_retrieved(query, selection):
        print(query.document.text, "->", [hit.id for hit in selection.hits])
    """


@hookspec
def racm3_generated(generation: Generation) -> None:
    """Observe a finished generation. An error here is logged, and work goes on.

    from racm3 import hookimpl

    @hookimpl
    def racm3_generated(generation):
        print(generation.seed, generation.log_probability)
    """
