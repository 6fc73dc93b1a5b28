"""FID (arXiv 1706.08500) by torchmetrics: Fréchet distance in the space of the Inception network, where its weights are."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from ..document import Image
from ..errors import CheckpointError, ConfigError, WeightsNotFound

# As torch-fidelity publishes them: the network with which all published FIDs are computed.
WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"
_SIZE = 299


def inception_weights(path: str | Path | None = None) -> Path | None:
    """The file of Inception weights: the one given, else the one in torch's cache, else None. Nothing is downloaded."""
    if path is not None:
        if not Path(path).is_file():
            raise WeightsNotFound(
                f"There are no Inception weights at {path}.", f"The file is {WEIGHTS}, of torch-fidelity."
            )
        return Path(path)
    import torch

    cached = Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS
    return cached if cached.is_file() and find_spec("torch_fidelity") is not None else None


def inception_vectors(images: Sequence[Image], weights: Path, *, batch_size: int = 32) -> np.ndarray:
    """What the Inception network sees of pictures, [n, 2048]."""
    import torch

    require_torchmetrics()
    from torchmetrics.image.fid import NoTrainInceptionV3

    try:
        network = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(weights))
    except Exception as error:  # torch, zipfile and pickle each raise their own
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{weights} holds no Inception weights: {why}",
            f"The file is {WEIGHTS}, of torch-fidelity.",
        ) from error
    vectors = []
    for start in range(0, len(images), batch_size):
        pixels = np.stack([image.square(_SIZE) for image in images[start : start + batch_size]])
        with torch.inference_mode():
            vectors.append(network(torch.from_numpy(pixels).permute(0, 3, 1, 2)).numpy())
    return np.concatenate(vectors)


def fid(made: np.ndarray, real: np.ndarray) -> float:
    """The figure of vectors [n, dim] and [m, dim], from whichever network; n and m are 2 at least."""
    import torch

    require_torchmetrics()
    from torchmetrics.image.fid import FrechetInceptionDistance

    network = torch.nn.Identity()
    network.num_features = made.shape[1]  # type: ignore[assignment]
    metric = FrechetInceptionDistance(feature=network)
    metric.update(torch.from_numpy(np.asarray(real, np.float64)), real=True)
    metric.update(torch.from_numpy(np.asarray(made, np.float64)), real=False)
    return max(0.0, float(metric.compute()))


def require_torchmetrics() -> None:
    if find_spec("torchmetrics") is None:
        raise ConfigError("FID needs torchmetrics.", "pip install 'racm3[evaluation]'")
