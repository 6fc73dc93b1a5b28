"""What a training run needs to go on after it was stopped: weights, optimiser, weight average, random state.

Tensors in safetensors, numbers in JSON: accelerate's own `save_state` pickles, and we never do.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..durable import replaced_folder
from ..errors import CheckpointError
from .run_files import read_json, reading
from .sharding import shared_like, whole

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
        """Write the state of a run after `step` steps; a kill at any moment leaves the old or the new state.

        All processes call it, and the first one writes: whole tensors, so that any number of processes can go on.
        """
        import torch

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
        rank, processes = _place()
        if processes > 1:
            # Each process has random states of its own; the first one's keep their plain names.
            for name in [name for name in tensors if name.startswith("random.")]:
                mine = tensors[name].to(_device_of(self.model))
                others = [torch.empty_like(mine) for _ in range(processes)]
                torch.distributed.all_gather(others, mine)
                tensors[name] = others[0]
                tensors.update({f"{name}.{i}": other for i, other in enumerate(others) if i})
        tensors = {name: whole(value.detach()) for name, value in tensors.items()}
        if rank == 0:
            self._write(folder, tensors, numbers)
        if processes > 1:
            torch.distributed.barrier()

    @staticmethod
    def _write(folder: Path, tensors: dict[str, torch.Tensor], numbers: dict[str, Any]) -> None:
        from safetensors.torch import save_file

        with replaced_folder(folder) as new:
            new.mkdir()
            save_file(
                {name: value.cpu().contiguous().clone() for name, value in tensors.items()}, new / "state.safetensors"
            )
            (new / "state.json").write_text(json.dumps(numbers))

    def load(self, folder: Path) -> int:
        """Take over a saved state and return its step; 0 when there is none."""
        import torch
        from safetensors.torch import load_file

        if not folder.is_dir():
            # A kill between the two renames of `save` leaves only the old one.
            folder = folder.with_name(folder.name + ".old")
        if not folder.is_dir():
            return 0
        mend = f"Delete {folder} to begin anew: what was trained is lost with it."
        numbers = read_json(folder / "state.json", mend)
        with reading(folder / "state.safetensors", mend):
            tensors = load_file(folder / "state.safetensors")
        parts: dict[str, dict[str, torch.Tensor]] = {}
        for name, value in tensors.items():
            part, _, rest = name.partition(".")
            parts.setdefault(part, {})[rest] = value
        try:
            now = self.model.state_dict()
            self.model.load_state_dict(
                {n: shared_like(v, now[n]) if n in now else v for n, v in parts["model"].items()}
            )
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
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            for name, value in parts.get("optimizer", {}).items():
                owner, index, key = name.split(".", 2)
                if int(owner) != i:
                    continue
                if int(index) >= len(parameters):
                    raise CheckpointError(
                        f"The saved state in {folder} belongs to another model: it has more parameters.",
                        "Train in a new folder, or restore the recipe that this run was started with.",
                    )
                state.setdefault(int(index), {})[key] = shared_like(value, parameters[int(index)])
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        if self.average is not None:
            self.average.updates = numbers["average_updates"]
            for name, weight in parts["average"].items():
                self.average.weights[name].copy_(shared_like(weight, self.average.weights[name]))
        rank, _ = _place()
        for device, restore in (("cpu", torch.set_rng_state), ("cuda", _restore_cuda)):
            # With more processes than before, the new ones keep the random states that they started with.
            mine = f"{device}.{rank}" if rank else device
            if mine in parts["random"]:
                restore(parts["random"][mine])
        return int(numbers["step"])


def _place() -> tuple[int, int]:
    """Which process this is, and of how many."""
    import torch.distributed as dist

    alone = not (dist.is_available() and dist.is_initialized())
    return (0, 1) if alone else (dist.get_rank(), dist.get_world_size())


def _device_of(model: torch.nn.Module) -> torch.device:
    return next(model.parameters()).device


def _restore_cuda(state: torch.Tensor) -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_rng_state(state)
