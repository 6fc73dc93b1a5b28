"""The device that a model is loaded on."""

from __future__ import annotations

from .errors import ConfigError


def device_named(name: str) -> str:
    """A torch device by name; "auto" is a GPU where there is one, else the CPU. `ConfigError` for what is not there."""
    import torch

    there = ["cpu"]
    if torch.cuda.is_available():
        there.insert(0, "cuda")
    if torch.backends.mps.is_available():
        there.insert(0, "mps")
    if name == "auto":
        return there[0]
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    count = torch.cuda.device_count() if "cuda" in there else 0
    if device is None or device.type not in there or (device.type == "cuda" and (device.index or 0) >= count):
        raise ConfigError(f"There is no device {name!r} here. There are: auto, {', '.join(there)}.")
    return name
