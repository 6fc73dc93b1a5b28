"""Every error that racm3 raises on purpose.

A message says what was asked and what there is; the hint says what mends it.
"""

from __future__ import annotations

from collections.abc import Iterable


class RACM3Error(Exception):
    """The root of all racm3 errors: `message` says what is wrong, `hint` what mends it."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(f"{message} {hint}".strip())
        self.message = message
        self.hint = hint


class PluginError(RACM3Error):
    """Something about an installed (or missing) plugin."""


class PluginNotFound(PluginError):
    """No installed plugin provides a component of that name."""


class PluginLoadFailed(PluginError):
    """A plugin was found, but importing or resolving it failed."""


class PluginIncompatible(PluginError):
    """A plugin requires another version of racm3."""


class PluginConflict(PluginError):
    """Several plugins claim one short name."""


class ConfigError(RACM3Error):
    """A setting is unknown, missing or of the wrong type."""


class MemoryStoreError(RACM3Error):
    """A memory cannot do what was asked."""


class DuplicateDocument(MemoryStoreError):
    """A document with that id is already stored."""


class DimensionMismatch(MemoryStoreError):
    """Vectors have another width than the memory."""


class EncoderMismatch(MemoryStoreError):
    """The memory was filled by another encoder: its vectors cannot be compared."""


class MemoryCorrupt(MemoryStoreError):
    """What is on disk does not match its checksum or its format."""


class MemoryLocked(MemoryStoreError):
    """Another process is writing to this memory (`owner`: its process id, where that is known), or it is read-only."""

    def __init__(self, message: str, hint: str = "", *, owner: int | None = None) -> None:
        super().__init__(message, hint)
        self.owner = owner


class FilterError(MemoryStoreError):
    """A `where` filter is not well formed."""


class ModalityError(RACM3Error):
    """A component was given, or asked for, a modality that it does not handle."""


class InvalidDocument(RACM3Error):
    """A document is empty, or its metadata is not plain."""


class InvalidImage(RACM3Error):
    """An image cannot be read, or exceeds a limit."""


class WeightsNotFound(RACM3Error):
    """Model weights are not where they were looked for."""


class CheckpointError(RACM3Error):
    """A checkpoint is incomplete, or its parts do not belong together."""


class GenerationError(RACM3Error):
    """Generation cannot start or go on."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A sentence "Did you mean 'x'?" for the closest of the known names, or an empty string."""
    import difflib

    matches = difflib.get_close_matches(name, sorted(known), n=1)
    return f"Did you mean '{matches[0]}'?" if matches else ""


def sentence(text: object) -> str:
    """What an error of another kind says, with a full stop where it ends without a mark."""
    said = str(text)
    return said if said.endswith((".", "?", "!")) else f"{said}."
