"""What the hardware can do, measured, and what a training step asks of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ..generators.cm3.model import Size


def device_for(wanted: str) -> str:
    """Where work is done that is not shared out: "cuda" where there is one, unless a recipe wants the "cpu"."""
    import torch

    return "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"


def memory_of(device: str) -> int:
    """Bytes of memory that this device ("cpu" or "cuda") has in all."""
    import psutil  # which accelerate brings along
    import torch

    return int(torch.cuda.get_device_properties(0).total_memory if device == "cuda" else psutil.virtual_memory().total)


@cache
def matrix_peak(device: str, precision: str, seconds: float = 0.2) -> float:
    """The fastest that this device multiplied large matrices just now, in floating-point operations a second.

    device: "cpu" or "cuda"; precision: "fp32" or "bf16". Measured once a process; another program on the same cores
    makes it lower than it could be.
    """
    import torch

    width = 4096 if device == "cuda" else 1024
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    one = torch.full((width, width), 0.5, dtype=dtype, device=device)  # not drawn: no random state is touched
    best, began = 0.0, time.perf_counter()
    while best == 0.0 or time.perf_counter() - began < seconds:
        started = time.perf_counter()
        for _ in range(20 if device == "cuda" else 1):
            one @ one
        if device == "cuda":
            torch.cuda.synchronize()
        rate = (20 if device == "cuda" else 1) * 2 * width**3 / (time.perf_counter() - started)
        best = max(best, rate)
    return best


def training_operations(size: Size, vocabulary: int, lengths: Sequence[int] | np.ndarray) -> float:
    """Floating-point operations of one forward and backward pass over sequences of these lengths, padding not counted.

    Six for each weight of a matrix and token, and six for each pair of positions that attend to each other, layer and
    channel, half of the square being masked (as in PaLM, arXiv 2204.02311, appendix B, but causal).
    """
    counted = np.asarray(lengths, np.float64)
    matrices = size.layers * size.matrices + vocabulary * size.width
    return float(6 * matrices * counted.sum() + 6 * size.layers * size.width * (counted**2).sum())
