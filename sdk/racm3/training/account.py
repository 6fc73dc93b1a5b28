"""The log of a training run: what is written down after every so many steps."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..durable import replace_file
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
        self.figures: list[tuple[str, Any]] = []

    def add(self, figures: dict[str, Any]) -> None:
        """Figures of a micro-batch. They are read when the line is closed: reading one waits for the device."""
        self.figures += [
            (name, value.detach() if hasattr(value, "detach") else value) for name, value in figures.items()
        ]

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

        read = [(name, float(value)) for name, value in self.figures]
        seconds = time.perf_counter() - self.began
        steps, operations, tokens = self.steps, self.operations, float(self.tokens)
        names = list(dict.fromkeys(name for name, _ in read))
        # NaN: that micro-batch had nothing to measure it on. A loss that is NaN shows.
        kept = {n: [v for name, v in read if name == n and (n == "loss" or not math.isnan(v))] for n in names}
        sums, counts = [sum(kept[n]) for n in names], [float(len(kept[n])) for n in names]
        if accelerator.num_processes > 1:
            mine = torch.tensor([*sums, *counts, tokens, operations], dtype=torch.float64)
            *both, tokens, operations = accelerator.reduce(mine.to(accelerator.device)).tolist()
            sums, counts = both[: len(sums)], both[len(sums) :]
        figures = {"seconds_per_step": round(seconds / steps, 4)}
        figures |= {n: round(s / c, 5) for n, s, c in zip(names, sums, counts, strict=True) if c}
        if tokens:
            peak = matrix_peak(self.device, self.precision) * accelerator.num_processes
            figures |= {
                "tokens_per_second": round(tokens / seconds),
                "matrix_share": round(operations / seconds / peak, 4),
            }
        self._open()
        return figures


def read_lines(folder: Path) -> list[dict[str, Any]]:
    """The lines of `log.jsonl`, none if it is not there; without one that was cut off when the machine stopped."""
    log, lines = folder / "log.jsonl", list[dict[str, Any]]()
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else ():
        with suppress(ValueError):
            lines.append(json.loads(line))
    return lines


def take_back(folder: Path, step: int, *, finished: bool) -> None:
    """Forget what the log says of steps that are taken again after `step`, or, of a finished run, measured again."""
    if not (folder / "log.jsonl").is_file():
        return
    kept = [line for line in read_lines(folder) if line["step"] <= step and not (finished and _is_measured(line, step))]
    replace_file(folder / "log.jsonl", "".join(json.dumps(line) + "\n" for line in kept))


def _is_measured(line: dict[str, Any], step: int) -> bool:
    """Whether it has held-out figures, and not what steps have taken."""
    return line["step"] == step and "seconds_per_step" not in line


def write_line(folder: Path, **figures: float) -> None:
    """Add a line to `log.jsonl`."""
    with (folder / "log.jsonl").open("a") as file:
        file.write(json.dumps(figures) + "\n")
