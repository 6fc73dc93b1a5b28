"""Stopping by validation: of all weights that were evaluated, the best are exported."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..errors import ConfigError
from .run_files import reading

if TYPE_CHECKING:
    import torch

    from .trainer import WeightAverage


MEND = "Delete it: the best weights are those that are evaluated from now on."


def check_figure(name: str, figures: Mapping[str, float]) -> None:
    """`ConfigError` unless there is a held-out figure of that name."""
    if name not in figures:
        there = f"There are: {', '.join(figures)}." if figures else "There are none, as nothing is held out."
        raise ConfigError(
            f"No held-out figure named '{name}' to keep the best weights by. {there}",
            "Set [trainer] keep_best to one that there is, or leave it out.",
        )


class BestWeights:
    """The weights with the best held-out figure so far, in a file, so that a resumed run knows them too.

    best: which of two figures that is, the lower or the higher one.
    """

    def __init__(self, path: Path, figure: str, best: Literal["lowest", "highest"]) -> None:
        self.path, self.figure, self.sign = path, figure, 1 if best == "lowest" else -1

    def offer(self, figures: Mapping[str, float], model: torch.nn.Module, average: WeightAverage | None) -> None:
        """Keep the weights that were evaluated, if they are the best."""
        from safetensors import safe_open
        from safetensors.torch import save_file

        if self.path.is_file():
            with reading(self.path, MEND), safe_open(self.path, "pt") as file:
                before = float(file.metadata()["figure"])
                if not self.sign * figures[self.figure] < self.sign * before:
                    return
        weights = average.weights if average else model.state_dict()
        # Cloned, since a weight that is shared is written twice; safetensors has no other layout than the plain one.
        plain = {name: weight.detach().cpu().contiguous().clone() for name, weight in weights.items()}
        unfinished = self.path.with_suffix(".new")
        save_file(plain, unfinished, {"figure": repr(figures[self.figure])})
        unfinished.replace(self.path)

    def copy_to(self, model: torch.nn.Module) -> None:
        from safetensors.torch import load_file

        dtypes = {n: w.dtype for n, w in model.state_dict().items()}
        with reading(self.path, MEND):
            weights = load_file(self.path)
        model.load_state_dict({n: w.to(dtypes[n]) for n, w in weights.items()}, strict=False)
