"""How far apart two pictures are to a trained encoder: what its layers see of them, position by position.

The perceptual term of VQGAN (arXiv 2012.09841), by LPIPS (arXiv 1801.03924) without its learnt weights, and with any CLIP in
place of an ImageNet network: the run's own retriever will do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from ..errors import ConfigError


class PerceptualDistance:
    """The distance by the vision tower of an open_clip folder. It is no module: its weights are nobody's to train."""

    def __init__(self, folder: Path) -> None:
        from ..retrievers.clip import ClipRetriever

        self._tower: Any = ClipRetriever(str(folder), device="cpu").vision_tower
        if not hasattr(self._tower, "forward_intermediates"):
            raise ConfigError(f"The vision tower of {folder} does not show what its layers see.", "Give another CLIP.")
        side = self._tower.image_size
        self._size = (side, side) if isinstance(side, int) else tuple(side)
        mean, std = (
            torch.tensor(values).view(1, 3, 1, 1) for values in (self._tower.image_mean, self._tower.image_std)
        )
        self._shift, self._scale = 2 * mean - 1, 2 * std  # of pictures from -1 to 1

    def __call__(self, painted: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        """The mean over layers and positions of the squared distance between directions: a scalar from 0 to 4.

        painted, images: [B, 3, S, S] from -1 to 1; gradients reach both.
        """
        pairs = list(zip(self._directions(painted), self._directions(images), strict=True))
        apart = [(one - other).square().sum(1).mean() for one, other in pairs]
        return torch.stack(apart).mean()

    def _directions(self, images: torch.Tensor) -> list[torch.Tensor]:
        """What each layer sees at each position, as a unit vector: [B, channels, height, width] each."""
        self._tower.to(images.device)
        normalised = (images - self._shift.to(images.device)) / self._scale.to(images.device)
        sized = functional.interpolate(normalised, self._size, mode="bilinear", antialias=True)
        layers = self._tower.forward_intermediates(sized, intermediates_only=True)["image_intermediates"]
        return [functional.normalize(layer.float(), dim=1) for layer in layers]
