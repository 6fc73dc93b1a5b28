"""Stage one: the image tokenizer, a vector-quantised autoencoder (paper section 3.2; VQGAN, arXiv 2012.09841).

The codebook is an exponential moving average of what falls to each code, and codes that nothing falls to are started
again from a latent of the batch at hand; the first steps run without quantisation, so that the codebook starts among
latents that already mean something. A trained one can be trained further; its decoder alone, and no token becomes another.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from diffusers import VQModel
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..errors import CheckpointError, ConfigError
from ..generators.cm3.image_tokenizer import ImageTokenizer, to_model_range
from ..interfaces import Progress
from .data import VARIANTS, TrainingSet, generator_at, variant
from .perceptual import PerceptualDistance
from .recipe import read_table
from .trainer import Stage, TrainerSettings, WeightFormat, train

PAINTING = ("decoder.", "post_quant_conv.")  # how the names of the parameters begin that make pictures of codes


class ImageTokenizerSettings(BaseModel):
    """The `[model]` table of an image-tokenizer recipe."""

    model_config = ConfigDict(extra="forbid")

    size: int = Field(64, ge=8, description="side of a picture in pixels")
    channels: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (16, 32, 96, 128), min_length=2, description="width per resolution; each but the last halves it"
    )
    layers: int = Field(1, ge=1, description="residual blocks per resolution")
    norm_groups: int = Field(8, ge=1, description="groups of channels that are normalised together")
    codes: int = Field(1024, ge=2, le=2**16, description="size of the codebook")
    code_width: int = Field(16, ge=1, description="numbers of a code")
    batch_size: int = Field(32, ge=1, description="pictures in a micro-batch")
    commitment: float = Field(0.25, ge=0, description="weight of the pull of latents towards their codes")
    free_steps: int = Field(200, ge=0, description="first steps without quantisation")
    decay: float = Field(0.98, ge=0, lt=1, description="of the codebook's moving average")
    restart_below: float = Field(
        0.03, ge=0, description="usage, as a share of the uniform one, under which a code restarts"
    )
    recolour: float = Field(0.5, ge=0, le=1, description="share of pictures in a variant (mirrored, hue moved)")
    perceptual: Path | None = Field(
        None,
        description="folder of a CLIP, such as a trained retriever/model, to which pictures are to look alike as well",
    )
    perceptual_weight: float = Field(0.4, ge=0, description="of that in the loss")
    start: Path | None = Field(None, description="folder of a trained image tokenizer of this shape, to train further")
    trained: Literal["all", "decoder"] = Field(
        "all", description="all; or decoder, from a start: its codes stay, and so does what was trained on its tokens"
    )
    weight_format: WeightFormat = Field("float16", description="of the exported model: float32, float16 or bfloat16")

    @model_validator(mode="after")
    def _fit(self) -> ImageTokenizerSettings:
        """Told here, and not by diffusers when all documents have been read."""
        halved = 2 ** (len(self.channels) - 1)
        if self.size % halved:
            raise ValueError(f"size = {self.size} cannot be halved {len(self.channels) - 1} times")
        if odd := [width for width in self.channels if width % self.norm_groups]:
            raise ValueError(f"channels = {odd[0]} is no multiple of norm_groups = {self.norm_groups}")
        if self.perceptual is None and "perceptual_weight" in self.model_fields_set:
            raise ValueError("perceptual_weight needs a perceptual: the folder of a trained retriever")
        if self.trained == "decoder" and self.start is None:
            raise ValueError("trained = 'decoder' needs a start: the folder of a trained image tokenizer")
        return self


class QuantizedAutoencoder(torch.nn.Module):
    """The `VQModel` together with the moving averages that move its codebook."""

    usage: torch.Tensor
    sums: torch.Tensor

    def __init__(self, settings: ImageTokenizerSettings) -> None:
        super().__init__()
        levels = len(settings.channels)
        make: Any = VQModel  # diffusers' models are untyped
        self.vq = make(
            down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=settings.channels, layers_per_block=settings.layers, sample_size=settings.size,
            latent_channels=settings.code_width, vq_embed_dim=settings.code_width, num_vq_embeddings=settings.codes,
            norm_num_groups=settings.norm_groups,
        )  # fmt: skip
        self.vq.to(memory_format=torch.channels_last)
        self.vq.quantize.embedding.weight.requires_grad_(False)
        self.register_buffer("usage", torch.ones(settings.codes))  # [codes]
        self.register_buffer("sums", torch.zeros(settings.codes, settings.code_width))  # [codes, width]
        if settings.start is not None:
            self._start_from(settings.start)
        if settings.trained == "decoder":
            for name, weight in self.vq.named_parameters():
                if not name.startswith(PAINTING):
                    weight.requires_grad_(False)
                    if not torch.equal(weight, weight.to(getattr(torch, settings.weight_format)).float()):
                        raise ConfigError(
                            f"[model] weight_format = '{settings.weight_format}' would round {name}, and change tokens.",
                            "Set it to that of the image tokenizer that is trained further, such as 'float32'.",
                        )

    def _start_from(self, folder: Path) -> None:
        given = ImageTokenizer.load(folder)
        try:
            self.vq.load_state_dict(given.model.state_dict())
        except RuntimeError as error:
            why = str(error).splitlines()[-1].strip().rstrip(".")
            raise CheckpointError(
                f"Training cannot start from {folder}: {why}.", "Its [model] table must give the same shape."
            ) from error

    def forward(
        self, images: torch.Tensor, quantise: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Pictures [B, 3, S, S] to reconstruction, commitment loss, latents [B*g*g, width] and ids [B*g*g]."""
        latents = self.vq.quant_conv(self.vq.encoder(images)).float()  # [B, width, g, g]
        flat = latents.permute(0, 2, 3, 1).reshape(-1, latents.shape[1])
        codebook = self.vq.quantize.embedding.weight
        with torch.no_grad():
            ids = torch.cdist(flat, codebook).argmin(1)
        if not quantise:
            return self._paint(latents), latents.new_zeros(()), flat.detach(), ids
        chosen = codebook[ids].view(latents.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2)
        commitment = (latents - chosen).square().mean()
        # Straight-through: the decoder sees the code, the encoder gets the gradient.
        return self._paint(latents + (chosen - latents).detach()), commitment, flat.detach(), ids

    def _paint(self, latents: torch.Tensor) -> torch.Tensor:
        return self.vq.decoder(self.vq.post_quant_conv(latents)).float()


class ImageTokenizerStage(Stage):
    """Trains a `VQModel` on the pictures of a set; held-out figures on another."""

    best = "highest"

    def __init__(
        self, settings: ImageTokenizerSettings, data: TrainingSet, held_out: TrainingSet, *, seed: int = 0
    ) -> None:
        self.settings, self.data, self.held_out, self.seed = settings, data, held_out, seed
        self._entities = data.rows_by_entity()
        self._free_steps = settings.free_steps if settings.start is None else 0
        self._perceptual = None if settings.perceptual is None else PerceptualDistance(settings.perceptual)
        self._seen: list[tuple[torch.Tensor, torch.Tensor]] = []  # of each micro-batch of a step

    def build(self) -> torch.nn.Module:
        return QuantizedAutoencoder(self.settings)

    def batch(self, step: int, micro: int) -> dict[str, Any]:
        """Entities drawn uniformly, then a drawing of each, so that much-varied things do not dominate."""
        rng = generator_at(self.seed, step, micro)
        pictures = []
        for entity in rng.integers(len(self._entities), size=self.settings.batch_size):
            picture = self.data.pixels[rng.choice(self._entities[entity])]
            number = int(rng.integers(1, VARIANTS)) if rng.random() < self.settings.recolour else 0
            pictures.append(variant(picture, number))
        return {"pixels": torch.from_numpy(np.stack(pictures)), "quantise": step >= self._free_steps}

    def loss(
        self, model: torch.nn.Module, batch: dict[str, Any]
    ) -> tuple[torch.Tensor, dict[str, float | torch.Tensor]]:
        images = to_model_range(batch["pixels"]).contiguous(memory_format=torch.channels_last)
        painted, commitment, latents, ids = model(images, batch["quantise"])
        self._seen.append((latents, ids))
        error = painted - images
        squared = error.square().mean()
        loss = error.abs().mean() + 4 * squared + self.settings.commitment * commitment
        figures = {"psnr": psnr(error).mean(), "commitment": commitment.detach(), "codes_used": ids.unique().numel()}
        if self._perceptual is not None:
            apart = self._perceptual(painted, images)
            loss, figures["perceptual"] = loss + self.settings.perceptual_weight * apart, apart.detach()
        return loss, figures

    def after_step(self, model: torch.nn.Module, step: int) -> None:
        """Move the codebook to the mean of what fell to each code, and restart codes that nothing fell to."""
        assert isinstance(model, QuantizedAutoencoder)
        if self.settings.trained == "decoder":
            self._seen.clear()
            return
        latents, ids = (_of_all_processes(list(seen)) for seen in zip(*self._seen, strict=True))
        self._seen.clear()
        codebook, codes = model.vq.quantize.embedding.weight, self.settings.codes
        generator = torch.Generator(device="cpu").manual_seed(self.seed * 1_000_003 + step)
        if step <= self._free_steps:
            picks = torch.randint(len(latents), (codes,), generator=generator).to(latents.device)
            codebook.copy_(latents[picks])
            model.usage.fill_(1.0)
            model.sums.copy_(codebook)
            return
        if step == 1:  # with a start: as if its codes had been used alike so far
            model.usage.fill_(len(ids) / codes)
            model.sums.copy_(codebook * model.usage.unsqueeze(1))
        decay = self.settings.decay
        counts = torch.bincount(ids, minlength=codes).float()
        sums = torch.zeros_like(model.sums).index_add_(0, ids, latents)
        model.usage.mul_(decay).add_(counts, alpha=1 - decay)
        model.sums.mul_(decay).add_(sums, alpha=1 - decay)
        codebook.copy_(model.sums / model.usage.clamp_min(1e-5).unsqueeze(1))
        idle = (model.usage < self.settings.restart_below * len(ids) / codes).nonzero().squeeze(1)
        if len(idle):
            picks = torch.randint(len(latents), (len(idle),), generator=generator).to(latents.device)
            codebook[idle] = latents[picks]
            model.usage[idle] = len(ids) / codes
            model.sums[idle] = latents[picks] * (len(ids) / codes)

    def evaluate(self, model: torch.nn.Module) -> dict[str, float]:
        """Mean PSNR in dB of the held-out pictures, and the share of the codebook that they use."""
        assert isinstance(model, QuantizedAutoencoder)
        if not len(self.held_out):
            return {}
        tokenizer = ImageTokenizer(model.vq)
        pixels = np.asarray(self.held_out.pixels)
        ids = tokenizer.encode(pixels)
        error = (tokenizer.decode(ids).astype(np.float32) - pixels) / 127.5
        figures = psnr(torch.from_numpy(error).permute(0, 3, 1, 2))
        return {
            "held_out_psnr": float(figures.mean()),
            "held_out_codes_used": len(np.unique(ids)) / self.settings.codes,
        }

    def export(self, model: torch.nn.Module, folder: Path) -> None:
        assert isinstance(model, QuantizedAutoencoder)
        # By torch itself: diffusers' own says each time which modules it keeps in float32, and that there are none.
        torch.nn.Module.to(model.vq, getattr(torch, self.settings.weight_format))
        model.vq.save_pretrained(folder, safe_serialization=True)


def _of_all_processes(mine: list[torch.Tensor]) -> torch.Tensor:
    """What all micro-batches of a step gave, in their order, whichever process had them."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        stacked = torch.stack(mine)  # [micro-batches here, n, ...]
        every = [torch.empty_like(stacked) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(every, stacked)
        mine = [part for micro in zip(*every, strict=True) for part in micro]
    return torch.cat(mine)


def psnr(error: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB, [n], of errors [n, 3, h, w] on a scale from -1 to 1."""
    return 10 * torch.log10(4.0 / error.square().mean(dim=(1, 2, 3)).clamp_min(1e-8))


def train_image_tokenizer(
    recipe: Mapping[str, Any],
    data: TrainingSet,
    held_out: TrainingSet,
    folder: Path,
    *,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Train from a recipe (tables `model` and `trainer`), in `folder`; the result is `folder/model`."""
    settings = read_table(ImageTokenizerSettings, recipe, "model")
    trainer = read_table(TrainerSettings, recipe, "trainer")
    return train(ImageTokenizerStage(settings, data, held_out, seed=trainer.seed), trainer, folder, progress=progress)
