"""The training loop: one loop for every stage, short enough to read.

A `Stage` brings the model, the batches and the loss; the loop brings everything else: precision, accumulation,
clipping, schedule, weight averaging, logging, saving and resuming. Batches are a function of the step number, so a
resumed run sees the same data in the same order as one that was never stopped; and several processes share out the
micro-batches of a step, so they see together what one would have seen.
"""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from ..durable import replaced_folder
from ..errors import ConfigError
from ..interfaces import Progress
from .account import Account, take_back, write_line
from .best import BestWeights, check_figure
from .processes import on_cpu
from .sharding import shard, whole
from .state import RunState

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("racm3.training")


Share: TypeAlias = Annotated[float, Field(ge=0, lt=1)]
WeightFormat: TypeAlias = Literal["float32", "float16", "bfloat16"]  # of the model that is exported


class TrainerSettings(BaseModel):
    """Settings of the loop, the `[trainer]` table of a recipe."""

    model_config = ConfigDict(extra="forbid")

    steps: int = Field(gt=0, description="optimiser steps")
    learning_rate: float = Field(
        gt=0, allow_inf_nan=False, description="the highest; of a generator, when it is left out, that of its size"
    )
    warmup: int = Field(0, ge=0, description="steps of linear warm-up")
    schedule: Literal["linear", "cosine", "constant"] = Field(
        "cosine", description="linear, cosine or constant: how the learning rate falls"
    )
    final_rate: float = Field(0.0, ge=0, le=1, description="share of the learning rate left at the last step")
    optimizer: Literal["adamw", "muon"] = Field("adamw", description="adamw; or muon for the hidden matrices")
    muon_learning_rate: float = Field(
        0.02, gt=0, allow_inf_nan=False, description="learning rate of the hidden matrices under muon"
    )
    betas: tuple[Share, Share] = Field((0.9, 0.98), description="of AdamW: how long its two moments last")
    weight_decay: float = Field(0.0, ge=0, allow_inf_nan=False, description="of matrices, not of vectors")
    clip: float | None = Field(1.0, gt=0, description="largest gradient norm; inf: no clipping")
    accumulation: int = Field(1, ge=1, description="micro-batches per step, shared out over the processes")
    sharding: Literal["none", "full"] = Field(
        "none", description="over several processes; full: weights and optimiser are shared out too (FSDP2)"
    )
    precision: Literal["fp32", "bf16"] = Field("fp32", description="of products: fp32 or bf16; weights stay fp32")
    device: Literal["auto", "cpu"] = Field("auto", description="auto: a GPU where there is one; or cpu")
    ema: float | None = Field(None, gt=0, lt=1, description="decay of the weight average that is exported")
    seed: int = Field(0, ge=0, description="of the first weights, the batches and all that is drawn")
    log_every: int = Field(20, ge=1, description="steps to a line of log.jsonl; there is one at each save besides")
    compile: bool = Field(False, description="torch.compile model and loss: faster where a C++ compiler is at hand")
    evaluate_every: int = Field(0, ge=0, description="0: only at the end")
    keep_best: str | None = Field(None, description="export the weights with the best held-out figure of this name")
    save_every: int = Field(200, ge=1, description="steps after which a run can be taken up again")


class Stage(ABC):
    """What is trained. `batch` must depend on nothing but its arguments, or resuming is not exact.

    best: which held-out figures are better, those of losses ("lowest") or those of quality ("highest").
    """

    best: ClassVar[Literal["lowest", "highest"]] = "lowest"

    @abstractmethod
    def build(self) -> torch.nn.Module:
        """A new model, its weights drawn from torch's global random state."""

    @abstractmethod
    def batch(self, step: int, micro: int) -> Any:
        """Micro-batch number `micro` of optimiser step `step`: tensors in a dict, list or tuple."""

    @abstractmethod
    def loss(self, model: torch.nn.Module, batch: Any) -> tuple[torch.Tensor, dict[str, float | torch.Tensor]]:
        """The scalar loss of one micro-batch, and figures to log."""

    def after_step(self, model: torch.nn.Module, step: int) -> None:  # noqa: B027 (optional)
        """Called after every optimiser step, without gradients (a codebook's restart, say)."""

    def work(self, batch: Any) -> tuple[int, float]:
        """Tokens of a micro-batch, padding not counted, and the floating-point operations that they take, for the log."""
        return 0, 0.0

    def evaluate(self, model: torch.nn.Module) -> dict[str, float]:
        """Figures on held-out data."""
        return {}

    @abstractmethod
    def export(self, model: torch.nn.Module, folder: Path) -> None:
        """Write the trained model to `folder`, in the format that its users load."""


def learning_rate_share(step: int, settings: TrainerSettings) -> float:
    """The share of the learning rate at a step: linear warm-up, then the schedule down to `final_rate`."""
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    if settings.schedule == "constant":
        return 1.0
    done = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    fall = done if settings.schedule == "linear" else 0.5 * (1 - math.cos(math.pi * done))
    return 1.0 - (1.0 - settings.final_rate) * fall


def train(
    stage: Stage,
    settings: TrainerSettings,
    folder: str | Path,
    *,
    resume: bool = True,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Train a stage in `folder` and export the result to `folder/model`.

    Writes `log.jsonl` and `state/` (weights, optimiser, random states), from which a later call with the same folder
    goes on. Returns the last held-out figures.
    """
    import torch
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import set_seed

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    mixed = "bf16" if settings.precision == "bf16" else "no"
    # accelerate keeps precision and device for the whole process; the stage before this one may have had others.
    alone = not (torch.distributed.is_available() and torch.distributed.is_initialized())
    AcceleratorState._reset_state(reset_partial_state=alone)
    accelerator = Accelerator(mixed_precision=mixed, cpu=on_cpu(settings.device))
    processes, rank = accelerator.num_processes, accelerator.process_index
    if settings.accumulation % processes:
        raise ConfigError(
            f"{processes} processes cannot share out {settings.accumulation} micro-batches evenly.",
            f"Set [trainer] accumulation to a multiple of {processes}.",
        )
    set_seed(settings.seed)
    inner = stage.build()  # the same in all processes
    sharded = settings.sharding == "full" and processes > 1
    if sharded:
        shard(inner.to(accelerator.device), accelerator.device)
    model = inner if sharded else accelerator.prepare(inner)
    optimizers = [accelerator.prepare(o) for o in build_optimizers(inner, settings)]
    average = WeightAverage(inner, settings.ema) if settings.ema else None
    if rank:  # from here on, dropout and the like must differ
        torch.manual_seed(settings.seed + 7919 * rank)

    if sharded and settings.keep_best:
        raise ConfigError("Sharded weights are not kept by their figure.", "Leave [trainer] keep_best out.")
    best = None
    if settings.keep_best and not rank:
        best = BestWeights(folder / "best.safetensors", settings.keep_best, stage.best)
    state = RunState(inner, optimizers, average)
    step = state.load(folder / "state") if resume else 0
    if settings.keep_best and not step:
        check_figure(settings.keep_best, _evaluate(stage, inner, average, sharded))
    if best is not None and not step:
        best.path.unlink(missing_ok=True)  # of another run
    if not rank:
        take_back(folder, step, finished=step == settings.steps)
    if step:
        logger.info("resumed at step %d from %s", step, folder)

    loss_of: Any = stage.loss
    if settings.compile:
        # A shape per K and padding multiple: all of them may be compiled. Those of a run before count no more.
        torch._dynamo.reset()
        torch._dynamo.config.recompile_limit = 64
        loss_of = torch.compile(stage.loss, dynamic=False)

    model.train()
    account = Account(accelerator.device, settings.precision)
    micros = range(rank, settings.accumulation, processes)
    while step < settings.steps:
        share = learning_rate_share(step, settings)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * share
        for micro in micros:
            made = stage.batch(step, micro)
            account.add_work(*stage.work(made))
            batch = _to_device(made, accelerator.device)
            with _synchronised(accelerator, model, sharded, last=micro == micros[-1]):
                with accelerator.autocast():
                    loss, figures = loss_of(model, batch)
                accelerator.backward(loss / len(micros))
            account.add({"loss": loss, **figures})
        if settings.clip is not None:
            if sharded:
                torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
            else:
                accelerator.clip_grad_norm_(model.parameters(), settings.clip)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step += 1
        with torch.no_grad():
            stage.after_step(inner, step)
            if average is not None:
                average.update(inner)

        last = step == settings.steps
        account.steps += 1
        saves = step % settings.save_every == 0 or last
        if step % settings.log_every == 0 or saves:  # a line ends where a run may be taken up again: none is cut in two
            figures_of_log = account.close(accelerator)
            if not math.isfinite(figures_of_log.get("loss", 0.0)):
                raise ConfigError(
                    f"Training has diverged: at step {step} the loss is {figures_of_log['loss']}.",
                    "Lower [trainer] learning_rate, or raise warmup, and begin anew with another --run or --name.",
                )
            if rank == 0:
                write_line(folder, step=step, **figures_of_log)
                if progress is not None:
                    progress(step, settings.steps, " ".join(f"{k} {v:.4g}" for k, v in figures_of_log.items()))
        if settings.evaluate_every and step % settings.evaluate_every == 0 and not last:
            with account.paused():
                held_out = _evaluate(stage, inner, average, sharded)
                if best is not None:
                    best.offer(held_out, inner, average)
            if rank == 0:
                write_line(folder, step=step, **held_out)
        if saves:
            with account.paused():
                state.save(folder / "state", step)

    held_out = _evaluate(stage, inner, average, sharded)
    if best is not None:
        best.offer(held_out, inner, average)
        best.copy_to(inner)
    elif average is not None:
        average.copy_to(inner)
    final = _plain(stage, inner, sharded)
    if rank == 0:
        write_line(folder, step=step, **held_out)
        with replaced_folder(folder / "model") as new:
            stage.export(final.eval(), new)
    accelerator.wait_for_everyone()
    return held_out


def _synchronised(accelerator: Any, model: Any, sharded: bool, *, last: bool) -> Any:
    """Gradients are exchanged once a step, with its last micro-batch."""
    if sharded:
        model.set_requires_gradient_sync(last)
        return nullcontext()
    return nullcontext() if last else accelerator.no_sync(model)


def _plain(stage: Stage, model: torch.nn.Module, sharded: bool) -> torch.nn.Module:
    """The model as its stage built it; of a sharded one, a whole copy in each process."""
    import torch

    if not sharded:
        return model
    weights = {name: whole(weight) for name, weight in model.state_dict().items()}
    with torch.random.fork_rng():
        plain = stage.build()
    plain.load_state_dict(weights)
    return plain.to(next(iter(weights.values())).device)


def build_optimizers(model: torch.nn.Module, settings: TrainerSettings) -> list[torch.optim.Optimizer]:
    """AdamW for everything, or Muon (arXiv 2502.16982) for the hidden matrices and AdamW for the rest."""
    import torch

    parameters = [(n, p) for n, p in model.named_parameters() if p.requires_grad]

    def hidden(name: str, parameter: torch.nn.Parameter) -> bool:
        return settings.optimizer == "muon" and parameter.ndim == 2 and "embed" not in name and "lm_head" not in name

    rest = [p for n, p in parameters if not hidden(n, p)]
    decayed = [p for p in rest if p.ndim >= 2]
    plain = [p for p in rest if p.ndim < 2]
    rate = settings.learning_rate
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(
            [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}],
            lr=rate,
            betas=settings.betas,
        )
    ]
    matrices = [p for n, p in parameters if hidden(n, p)]
    if matrices:
        optimizers.append(
            torch.optim.Muon(matrices, lr=settings.muon_learning_rate, weight_decay=settings.weight_decay)
        )
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["base_lr"] = group["lr"]
    return optimizers


class WeightAverage:
    """An exponential moving average of the weights, saved and resumed with the run."""

    def __init__(self, model: torch.nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.weights = {n: p.detach().clone().float() for n, p in model.state_dict().items() if p.is_floating_point()}

    def update(self, model: torch.nn.Module) -> None:
        self.updates += 1
        # Early on the average must not be dominated by the random start.
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, weight in model.state_dict().items():
            if name in self.weights:
                self.weights[name].lerp_(weight.float(), 1 - decay)

    def copy_to(self, model: torch.nn.Module) -> None:
        model.load_state_dict({n: w.to(model.state_dict()[n].dtype) for n, w in self.weights.items()}, strict=False)


def _evaluate(stage: Stage, model: torch.nn.Module, average: WeightAverage | None, sharded: bool) -> dict[str, float]:
    """Held-out figures of the weights that would be exported; the training weights come back afterwards."""
    import torch

    kept = {n: w.detach().clone() for n, w in model.state_dict().items()} if average is not None else None
    if average is not None:
        average.copy_to(model)
    model.eval()
    with torch.no_grad():
        figures = stage.evaluate(_plain(stage, model, sharded).eval())
    if kept is not None:
        model.load_state_dict(kept)
    model.train()
    return figures


def _to_device(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, dict):
        return {name: _to_device(value, device) for name, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return type(batch)(_to_device(value, device) for value in batch)
    return batch.to(device, non_blocking=True) if hasattr(batch, "to") else batch
