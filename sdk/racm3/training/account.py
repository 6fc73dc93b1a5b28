"""The log of a training run: what is written down after every so many steps."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .hardware import matrix_peak

if TYPE_CHECKING:
    import torch


class Account:
    """What has been seen since the last line of the log: figures, tokens, operations, and the time that they took."""

    def __init__(self, device: torch.device, precision: str) -> None:
        self.device, self.precision = device.type, precision
        self._open()

    def _open(self) -> None:
        self.began, self.steps, self.tokens, self.operations = time.perf_counter(), 0, 0, 0.0
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}

    def add(self, figures: dict[str, Any]) -> None:
        for name, value in figures.items():
            figure = float(value.detach() if hasattr(value, "detach") else value)
            counted = not math.isnan(figure) or name == "loss"  # NaN: this batch has nothing to measure it on
            self.sums[name] = self.sums.get(name, 0.0) + (figure if counted else 0.0)
            self.counts[name] = self.counts.get(name, 0) + counted

    def add_work(self, tokens: int, operations: float) -> None:
        self.tokens, self.operations = self.tokens + tokens, self.operations + operations

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What is done meanwhile takes no time."""
        paused = time.perf_counter()
        yield
        self.began += time.perf_counter() - paused

    def close(self, accelerator: Any) -> dict[str, float]:
        """Means over all processes, seconds a step, tokens a second, the share of the matrix peak; and begin anew."""
        import torch

        seconds = time.perf_counter() - self.began
        steps, operations = self.steps, self.operations
        sums, counts, tokens = list(self.sums.values()), list(self.counts.values()), float(self.tokens)
        if accelerator.num_processes > 1:
            mine = torch.tensor([*sums, *map(float, counts), tokens, self.operations], dtype=torch.float64)
            *both, tokens, operations = accelerator.reduce(mine.to(accelerator.device)).tolist()
            sums, counts = both[: len(sums)], both[len(sums) :]
        figures = {"seconds_per_step": round(seconds / steps, 4)}
        figures |= {n: round(s / c, 5) for n, s, c in zip(self.sums, sums, counts, strict=True) if c}
        if tokens:
            peak = matrix_peak(self.device, self.precision) * accelerator.num_processes
            figures |= {
                "tokens_per_second": round(tokens / seconds),
                "matrix_share": round(operations / seconds / peak, 4),
            }
        self._open()
        return figures


def write_line(folder: Path, **figures: float) -> None:
    """Add a line to `log.jsonl`."""
    with (folder / "log.jsonl").open("a") as file:
        file.write(json.dumps(figures) + "\n")
