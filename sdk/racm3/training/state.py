"""What a training run needs to go on after it was stopped: weights, optimiser, weight average, random state.

Tensors in safetensors, numbers in JSON: accelerate's own `save_state` pickles, and we never do.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError

if TYPE_CHECKING:
    import torch

    from .trainer import WeightAverage


class RunState:
    """Saves and loads everything that changes during a run, as one folder that is replaced at once."""

    def __init__(
        self, model: torch.nn.Module, optimizers: list[torch.optim.Optimizer], average: WeightAverage | None
    ) -> None:
        self.model, self.optimizers, self.average = model, optimizers, average

    def save(self, folder: Path, step: int) -> None:
        """Write the state of a run after `step` steps; a kill at any moment leaves the old or the new state."""
        import torch
        from safetensors.torch import save_file

        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        numbers: dict[str, Any] = {"step": step, "optimizers": []}
        for i, optimizer in enumerate(self.optimizers):
            state = optimizer.state_dict()["state"]
            scalars: dict[str, dict[str, float]] = {}
            for index, values in state.items():
                for name, value in values.items():
                    if isinstance(value, torch.Tensor):
                        tensors[f"optimizer.{i}.{index}.{name}"] = value
                    else:
                        scalars.setdefault(str(index), {})[name] = value
            numbers["optimizers"].append(scalars)
        if self.average is not None:
            numbers["average_updates"] = self.average.updates
            tensors.update({f"average.{name}": value for name, value in self.average.weights.items()})
        tensors["random.cpu"] = torch.get_rng_state()
        if torch.cuda.is_available():
            tensors["random.cuda"] = torch.cuda.get_rng_state()

        new = folder.with_name(folder.name + ".new")
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        save_file({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}, new / "state.safetensors")
        (new / "state.json").write_text(json.dumps(numbers))
        old = folder.with_name(folder.name + ".old")
        if folder.exists():  # otherwise the old one may be all there is, until the new one stands in its place
            shutil.rmtree(old, ignore_errors=True)
            os.replace(folder, old)
        os.replace(new, folder)
        shutil.rmtree(old, ignore_errors=True)

    def load(self, folder: Path) -> int:
        """Take over a saved state and return its step; 0 when there is none."""
        import torch
        from safetensors.torch import load_file

        if not folder.is_dir():
            # A kill between the two renames of `save` leaves only the old one.
            folder = folder.with_name(folder.name + ".old")
        if not folder.is_dir():
            return 0
        numbers = json.loads((folder / "state.json").read_text())
        tensors = load_file(folder / "state.safetensors")
        parts: dict[str, dict[str, torch.Tensor]] = {}
        for name, value in tensors.items():
            part, _, rest = name.partition(".")
            parts.setdefault(part, {})[rest] = value
        try:
            self.model.load_state_dict(parts["model"])
        except (RuntimeError, KeyError) as error:
            raise CheckpointError(
                f"The saved state in {folder} belongs to another model: {error}",
                "Train in a new folder, or restore the recipe that this run was started with.",
            ) from error
        missing_average = self.average is not None and "average_updates" not in numbers
        if len(numbers["optimizers"]) != len(self.optimizers) or missing_average:
            raise CheckpointError(
                f"The saved state in {folder} was trained with another optimizer, or without a weight average.",
                "Train in a new folder, or restore the recipe that this run was started with.",
            )
        for i, optimizer in enumerate(self.optimizers):
            state: dict[int, dict[str, Any]] = {
                int(index): dict(values) for index, values in numbers["optimizers"][i].items()
            }
            for name, value in parts.get("optimizer", {}).items():
                owner, index, key = name.split(".", 2)
                if int(owner) == i:
                    state.setdefault(int(index), {})[key] = value
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        if self.average is not None:
            self.average.updates = numbers["average_updates"]
            for name, weight in parts["average"].items():
                self.average.weights[name].copy_(weight)
        torch.set_rng_state(parts["random"]["cpu"])
        if torch.cuda.is_available() and "cuda" in parts["random"]:
            torch.cuda.set_rng_state(parts["random"]["cuda"])
        return int(numbers["step"])
