"""Weights, gradients and optimiser state shared out over processes (FSDP2), and whole tensors again where one is needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import ConfigError

if TYPE_CHECKING:
    import torch


def shard(model: torch.nn.Module, device: torch.device) -> None:
    """Share a model's weights out over all processes, layer by layer, in place. `ConfigError` if it has no layers."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    layers = getattr(getattr(model, "model", None), "layers", None)
    if layers is None:
        raise ConfigError(
            f"{type(model).__name__} cannot be sharded: it has no layers.", 'Set [trainer] sharding = "none".'
        )
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def whole(value: Any) -> Any:
    """A tensor of which this process may hold a part, in full; all processes must call it."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def shared_like(value: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """A whole tensor, shared out as another one of its shape is, if that is."""
    if not hasattr(other, "full_tensor") or value.shape != other.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    there: Any = other
    return distribute_tensor(value.to(there.device), there.device_mesh, there.placements)
