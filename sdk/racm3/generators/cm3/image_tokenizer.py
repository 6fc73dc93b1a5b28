"""Pictures to image tokens and back: a VQGAN in diffusers' format (paper section 3.2).

`VQModel.encode` does not quantise, so ids come from its `quantize`; pictures come from `get_codebook_entry`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import CheckpointError, WeightsNotFound

if TYPE_CHECKING:
    import torch


class ImageTokenizer:
    """Turns square pictures into `grid * grid` token ids and back.

    size: side of a picture in pixels; grid: side of the token grid; codes: number of distinct image tokens.
    """

    def __init__(self, model: Any) -> None:
        self.model: Any = model
        self.model.eval()
        config = self.model.config
        self.size = int(config["sample_size"])
        self.grid = self.size // 2 ** (len(config["block_out_channels"]) - 1)
        self.codes = int(config["num_vq_embeddings"])

    @classmethod
    def load(cls, folder: str | Path, *, device: str = "cpu") -> ImageTokenizer:
        """Open a diffusers `VQModel` folder; `WeightsNotFound` or `CheckpointError` say what is wrong with it."""
        import torch
        from diffusers import VQModel

        folder = Path(folder)
        if not (folder / "config.json").is_file():
            raise WeightsNotFound(f"No image tokenizer in {folder}: config.json is missing.", "Give a VQModel folder.")
        if not list(folder.glob("*.safetensors")):
            raise WeightsNotFound(f"No weights in {folder}: there is no .safetensors file.", "Give a VQModel folder.")
        again = "Copy the whole checkpoint folder again."
        try:
            model, loaded = VQModel.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, torch_dtype=torch.float32, low_cpu_mem_usage=False,
                output_loading_info=True,
            )  # fmt: skip
        except Exception as error:
            raise CheckpointError(f"The image tokenizer in {folder} cannot be read: {error}", again) from error
        if loaded["missing_keys"]:  # diffusers warns, and goes on with random weights
            missing = ", ".join(sorted(loaded["missing_keys"])[:3])
            raise CheckpointError(f"The image tokenizer in {folder} lacks weights: {missing}.", again)
        for name, weight in model.named_parameters():
            if not torch.isfinite(weight).all():
                raise CheckpointError(
                    f"The image tokenizer in {folder} has NaN or infinite weights in '{name}'.", "Train it again."
                )
        return cls(model.to(device))

    def save(self, folder: str | Path) -> None:
        """Write a diffusers `VQModel` folder, the same wherever this one came from."""
        import copy

        import torch

        weights = self.model.state_dict().values()
        # Opened from half precision, it is written in half precision: nothing is lost, and half of the bytes saved.
        exact = all(torch.equal(weight.half().float(), weight.float()) for weight in weights)
        # torch's own `half`: that of diffusers warns of an empty list of exceptions.
        model = torch.nn.Module.half(copy.deepcopy(self.model)) if exact else self.model
        model.save_pretrained(folder, safe_serialization=True)
        path = Path(folder) / "config.json"
        config = json.loads(path.read_text())
        config.pop("_name_or_path", None)  # diffusers writes down the folder that the model was opened from
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")

    @property
    def tokens(self) -> int:
        """Tokens per picture."""
        return self.grid * self.grid

    @property
    def codebook(self) -> torch.Tensor:
        """The codebook, float32 [codes, width]."""
        return self.model.quantize.embedding.weight.detach()

    def encode(self, pixels: np.ndarray, *, batch_size: int = 128) -> np.ndarray:
        """Token ids, int64 [n, tokens], row by row, of uint8 pictures [n, size, size, 3]."""
        import torch

        device = self.codebook.device
        ids = [np.empty((0, self.tokens), np.int64)]
        with torch.inference_mode():
            for start in range(0, len(pixels), batch_size):
                images = to_model_range(torch.from_numpy(np.array(pixels[start : start + batch_size])).to(device))
                _, _, (_, _, found) = self.model.quantize(self.model.encode(images).latents)
                ids.append(found.view(len(images), self.tokens).cpu().numpy())
        return np.concatenate(ids)

    def decode(self, ids: np.ndarray, *, batch_size: int = 128) -> np.ndarray:
        """Pictures, uint8 [n, size, size, 3], of token ids [n, tokens]."""
        import torch

        device = self.codebook.device
        pictures = [np.empty((0, self.size, self.size, 3), np.uint8)]
        with torch.inference_mode():
            for start in range(0, len(ids), batch_size):
                rows = torch.from_numpy(np.asarray(ids[start : start + batch_size], dtype=np.int64)).to(device)
                shape = (len(rows), self.grid, self.grid, self.codebook.shape[1])
                latents = self.model.quantize.get_codebook_entry(rows.reshape(-1), shape)
                pictures.append(to_pixels(self.model.decode(latents, force_not_quantize=True).sample))
        return np.concatenate(pictures)


def to_model_range(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 [n, h, w, 3] to float32 [n, 3, h, w] in -1..1."""
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1.0


def to_pixels(images: torch.Tensor) -> np.ndarray:
    """float [n, 3, h, w] in -1..1 to uint8 [n, h, w, 3]."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
