"""What `--memory` means: a memory that is installed, by its name, or a path."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..config import ComponentConfig, PipelineConfig
from ..errors import PluginNotFound
from ..interfaces import MemoryStore
from ..registry import registry


def with_memory(pipeline: PipelineConfig, memory: str) -> PipelineConfig:
    """The pipeline with another memory.

    memory: the name of an installed one, which is made with its own defaults; or a path, at which the pipeline's kind of
    memory is opened: anything that is not a name, or has a separator in it (`./faiss`).
    """
    if not_a_name(memory) is None:
        return replace(pipeline, memory=ComponentConfig(MemoryStore, memory, {}))
    # The component stays; its other settings belong to the memory that is not used.
    path = Path(memory).expanduser().absolute()
    return replace(pipeline, memory=replace(pipeline.memory, settings={"path": path}))


def not_a_name(memory: str) -> str | None:
    """Why `--memory` names no component, in words (none for what is a path by its form); None when it does. A plugin that
    is known to be broken, or a name that two plugins claim, raises its own error."""
    if "/" in memory or "\\" in memory or memory.startswith((".", "~")):
        return ""
    try:
        registry().component(MemoryStore, memory)
    except PluginNotFound as error:
        return str(error)
    return None


def memory_path(pipeline: PipelineConfig) -> Path | None:
    """Where a pipeline's memory lies, if it is a file or a folder on this machine."""
    path = pipeline.memory.settings.get("path")
    return path if isinstance(path, Path) else None


def is_missing(path: Path) -> bool:
    """Whether a memory would be made at a path, because there is nothing, or an empty folder."""
    try:
        return not path.exists() or (path.is_dir() and not any(path.iterdir()))
    except OSError:
        return False  # what is wrong, the memory says


def only_read(memory: ComponentConfig) -> ComponentConfig:
    """Read-only, where the component can be: opening a memory for writing changes its files, a shipped one's too."""
    fields = registry().settings_model(registry().component(memory.interface, memory.name)).model_fields
    if "read_only" not in fields:
        return memory
    return replace(memory, settings={**memory.settings, "read_only": True})
