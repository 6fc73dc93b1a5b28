"""What `--memory` means: a memory that is installed, by its name, or a path."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..config import ComponentConfig, PipelineConfig
from ..errors import ConfigError, PluginNotFound
from ..interfaces import MemoryStore
from ..registry import registry


def with_memory(pipeline: PipelineConfig, memory: str, *, writes: bool) -> PipelineConfig:
    """The pipeline with another memory.

    memory: the name of an installed one, which is made with its own defaults; or a path, at which the pipeline's kind of
    memory is opened: anything that is not a name, or has a separator in it (`./faiss`). writes: there may be nothing yet.
    """
    if is_name(memory):
        return replace(pipeline, memory=ComponentConfig(MemoryStore, memory, {}))
    path = Path(memory).expanduser()
    if not writes and not path.exists():
        names = ", ".join(registry().names(MemoryStore))
        raise ConfigError(
            f"There is no memory at {memory}, and none is named so. Installed: {names}.",
            f"Make one: racm3 index FOLDER --memory {memory}",
        )
    # The component stays; its other settings belong to the memory that is not used.
    return replace(pipeline, memory=replace(pipeline.memory, settings={"path": path.absolute()}))


def is_name(memory: str) -> bool:
    """Whether `--memory` names a component. A broken plugin, or a name that two plugins claim, raises its own error."""
    if "/" in memory or "\\" in memory or memory.startswith((".", "~")):
        return False
    try:
        registry().component(MemoryStore, memory)
    except PluginNotFound:
        return False
    return True
