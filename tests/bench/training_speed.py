"""A training step of the generator: beside a bare loop, against the matrix peak, and by two processes.

python tests/bench/training_speed.py [--sizes tiny,small,125m] [--pack 512] [--attention sdpa] [--compile] [--precision bf16]
    [--steps 9] [--samples 32] [--threads 1] [--device cuda] [--processes] > tests/bench/training_speed.json

For each size the trainer and a bare loop (forward, loss, backward, clip, AdamW; batches ready in a list) take the same steps
in turn, on made-up documents of a caption and a picture of 64 tokens. "of_bare" is the bare loop's time over the
trainer's, the median over the pairs, by processor time and by the clock: 1 or more is as fast. "share" is operations
(those of the log's matrix_share) a second over the fastest square product of this run; "of_own_products" over the
model's own products alone, which no step can beat. "retrieval" is what batches take longer with documents than without,
as a share of a step; "cycles" is where the time of a step goes. All of these by processor time, but on a GPU by the clock,
whatever is under way awaited; there larger rows tell more, such as --pack 2048 --samples 512 --steps 30. With --processes: the
losses of one process and of two (gloo; plain and sharded) at the same global batch.

glibc gives tensors above 32 MB back to the system, and pays for fresh pages at the next step (5 to 15 % of tiny's time in a
virtual machine): MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=17179869184 in the environment keeps them.

On one quiet core, an estimate: tiny half a minute, small a minute, 125m four; --compile doubles it; --processes half a minute.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models

from racm3.generators.cm3.masking import MaskingSettings
from racm3.training.documents import PreparedDocuments
from racm3.training.generator import GeneratorModelSettings, GeneratorStage, ObjectiveSettings
from racm3.training.hardware import matrix_peak
from racm3.training.neighbours import Neighbours
from racm3.training.packing import attention_mask
from racm3.training.trainer import TrainerSettings, train

WORDS, CODES, TOKENS, DOCUMENTS = 2048, 1024, 64, 300
BATCHES = 3  # different ones, in turn: unpacked, one for each K. The first time of each is not counted
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def made_up_documents() -> PreparedDocuments:
    rng = np.random.default_rng(0)
    return PreparedDocuments(
        images=rng.integers(0, CODES, (DOCUMENTS, 1, TOKENS)).astype(np.uint16),
        texts=[rng.integers(0, WORDS, rng.integers(6, 18)) for _ in range(DOCUMENTS)],
        entities=[np.array([row]) for row in range(DOCUMENTS)],
        held_out=np.array([], np.int64),
        neighbours=Neighbours(rng.integers(0, DOCUMENTS, (DOCUMENTS, 2, 3, 2)).astype(np.int32)),
    )


class Plain(GeneratorStage):
    """The stage as it is; nothing is kept."""

    def __init__(self, given: argparse.Namespace, trainer: TrainerSettings, k: tuple[int, ...] = (0, 1, 2)) -> None:
        super().__init__(
            GeneratorModelSettings(
                size=given.size, document_stride=104, image_offset=28, attention=given.attention,
                codebook_embeddings=False,
            ),
            ObjectiveSettings(k=k, batch_size=given.samples, pack_to=given.pack),
            MaskingSettings(),
            trainer,
            made_up_documents(),
            Tokenizer(models.WordLevel({str(word): word for word in range(WORDS)}, unk_token="0")),
            SimpleNamespace(codes=CODES),  # type: ignore[arg-type]
        )  # fmt: skip

    def export(self, model: torch.nn.Module, folder: Path) -> None:
        folder.mkdir()


Moment = tuple[float, float]  # of processor time, of the clock


def now() -> Moment:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.process_time(), time.perf_counter()


def since(moment: Moment) -> Moment:
    return tuple(after - before for before, after in zip(moment, now(), strict=True))  # type: ignore[return-value]


class Paired(Plain):
    """After each step of the trainer, the same step by a bare loop."""

    def __init__(self, given: argparse.Namespace, trainer: TrainerSettings) -> None:
        super().__init__(given, trainer)
        self.device = device = torch.device(given.device)
        self.ready = [
            {name: value.to(device) for name, value in self.batch(step, 0).items()} for step in range(BATCHES)
        ]
        self.ours: list[Moment] = []
        self.bare: list[Moment] = []
        self.bare_losses: list[float] = []
        self.bare_loss: Callable[..., torch.Tensor] = (
            torch.compile(bare_loss, dynamic=False) if given.compile else bare_loss
        )  # type: ignore[assignment]

    def build(self) -> torch.nn.Module:
        model = super().build()
        self.bare_model: Any = copy.deepcopy(model).train().to(self.device)
        self.optimizer = torch.optim.AdamW(
            self.bare_model.parameters(), lr=self.trainer.learning_rate, betas=self.trainer.betas, weight_decay=0.0
        )
        self.moment = now()
        return model

    def batch(self, step: int, micro: int) -> dict[str, torch.Tensor]:
        return super().batch(step % BATCHES, micro)

    def after_step(self, model: torch.nn.Module, step: int) -> None:
        self.ours.append(since(self.moment))
        began = now()
        with torch.enable_grad():
            self.bare_losses.append(self.bare_step(self.ready[(step - 1) % BATCHES]))
        self.bare.append(since(began))
        self.moment = now()

    def bare_step(self, batch: dict[str, torch.Tensor]) -> float:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.trainer.precision == "bf16"):
            loss = self.bare_loss(self.bare_model, batch, self.settings.attention)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.bare_model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()


def bare_loss(model: Any, batch: dict[str, torch.Tensor], attention: Any) -> torch.Tensor:
    mask = attention_mask(batch["samples"], attention) if "samples" in batch else torch.ones_like(batch["ids"])
    logits = model(
        input_ids=batch["ids"], position_ids=batch["positions"], attention_mask=mask, use_cache=False
    ).logits[:, :-1]
    targets, weights, main = (batch[name][:, 1:] for name in ("ids", "weights", "main"))
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
    return (losses.view_as(targets) * weights).sum() / (main & (weights > 0)).sum()


def settings(given: argparse.Namespace, **changes: Any) -> TrainerSettings:
    chosen = {
        "steps": given.steps, "learning_rate": 3e-4, "schedule": "constant", "precision": given.precision,
        "device": given.device, "log_every": 1, "save_every": 10**6, "compile": given.compile, **changes,
    }  # fmt: skip
    return TrainerSettings(**chosen)


def logged(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


# --- a step, measured ---------------------------------------------------------------------------------------------


def by(given: argparse.Namespace) -> int:
    """Which of the two times counts: where nothing else runs, processor time tells more of a CPU, and nothing of a GPU."""
    return 0 if given.device == "cpu" else 1


def rate(operations: float, product: Callable[[], object], given: argparse.Namespace, seconds: float = 0.2) -> float:
    """The fastest of several times, in operations a second."""
    product()
    best, began, times = 0.0, time.perf_counter(), 1 if given.device == "cpu" else 20
    while best == 0.0 or time.perf_counter() - began < seconds:
        started = now()
        for _ in range(times):  # a GPU is given the next before it has done the last
            product()
        best = max(best, times * operations * given.threads / since(started)[by(given)])
    return best


def squares(given: argparse.Namespace) -> dict[str, float]:
    """Operations a second of square products, by width."""
    found = {"log": matrix_peak(given.device, given.precision)}  # what matrix_share rests on: by the clock
    for width in (1024, 2048, 4096) if given.device == "cpu" else (4096, 8192):
        one = torch.full((width, width), 0.5, dtype=DTYPES[given.precision], device=given.device)
        found[str(width)] = rate(2.0 * width**3, lambda one=one: one @ one, given)  # type: ignore[misc]
    return found


def own_products(stage: GeneratorStage, tokens: int, given: argparse.Namespace) -> dict[str, float]:
    """Operations a second of the model's products: forward, and the gradients of inputs and weights; and of all together."""
    size, dtype = stage.settings.shape, DTYPES[given.precision]
    shapes = [
        (4 * size.layers, size.width, size.width), (2 * size.layers, size.width, size.feed_forward),
        (size.layers, size.feed_forward, size.width), (1, size.width, stage.format.vocabulary.size),
    ]  # fmt: skip
    done, taken = (
        dict.fromkeys(("forward", "inputs", "weights"), 0.0),
        dict.fromkeys(("forward", "inputs", "weights"), 0.0),
    )
    for count, into, out in shapes:
        x, weight, gradient = (
            torch.randn(*s, dtype=dtype, device=given.device) for s in ((tokens, into), (out, into), (tokens, out))
        )
        products = {
            "forward": lambda x=x, weight=weight: x @ weight.T,
            "inputs": lambda gradient=gradient, weight=weight: gradient @ weight,
            "weights": lambda x=x, gradient=gradient: gradient.T @ x,
        }
        for name, product in products.items():
            operations = 2.0 * tokens * into * out
            done[name] += count * operations
            taken[name] += count * operations / rate(operations, product, given)
    return {
        **{name: done[name] / taken[name] for name in done}, "all": sum(done.values()) / sum(taken.values()),
    }  # fmt: skip


KINDS = {
    "matrix products": ("aten::mm", "aten::addmm"),
    "attention": ("scaled_dot_product", "aten::bmm", "aten::_softmax"),
    "loss": ("log_softmax", "nll_loss", "LogSoftmax"),
    "casts and copies": ("aten::copy_", "_to_copy", "aten::clone"),
    "optimiser and clipping": ("adamw", "AdamW", "vector_norm"),
    "fused by the compiler": ("CompiledFxGraph", "CompiledFunction"),
}


def cycles(step: Callable[[], object], device: str) -> dict[str, float]:
    """Shares of a step's time, by the kind of operation."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if device == "cuda":
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=kinds) as profile:
        step()
    spent = dict.fromkeys([*KINDS, "elementwise and others"], 0.0)
    for event in profile.key_averages():
        kind = next(
            (k for k, names in KINDS.items() if any(name in event.key for name in names)), "elementwise and others"
        )
        spent[kind] += event.self_cpu_time_total if device == "cpu" else event.self_device_time_total
    total = sum(spent.values())
    return {kind: round(time / total, 3) for kind, time in spent.items() if time}


def batch_seconds(given: argparse.Namespace, k: tuple[int, ...], batches: int = 20) -> float:
    stage = Plain(given, settings(given), k)
    stage.batch(0, 0)
    began = time.process_time()
    for step in range(batches):
        stage.batch(step, 0)
    return (time.process_time() - began) / batches


def measure(given: argparse.Namespace) -> dict[str, Any]:
    peaks = squares(given)
    stage = Paired(given, settings(given))
    with tempfile.TemporaryDirectory() as folder:
        train(stage, stage.trainer, Path(folder))
        ours = logged(Path(folder))
    pairs = list(zip(stage.ours[BATCHES:], stage.bare[BATCHES:], strict=True))
    times = [median(one[i] for one, _ in pairs) for i in range(2)]
    cpu, clock, step = *times, times[by(given)]
    tokens, operations = (float(np.mean(each)) for each in zip(*map(stage.work, stage.ready), strict=True))
    held = [batch["ids"].numel() for batch in stage.ready]
    products = own_products(stage, round(float(np.mean(held))), given)
    peak, reached = max(peaks.values()), operations * given.threads / step
    documents, none = batch_seconds(given, (0, 1, 2)), batch_seconds(given, (0,))
    return {
        "size": given.size, "parameters": sum(p.numel() for p in stage.bare_model.parameters()),
        "compile": given.compile, "attention": given.attention, "pack_to": given.pack,
        "rows": [list(batch["ids"].shape) for batch in stage.ready], "tokens": round(tokens),
        "waste": round(1 - tokens / float(np.mean(held)), 4), "pairs": len(pairs),
        "seconds": {"cpu": round(cpu, 4), "clock": round(clock, 4)},
        "tokens_per_second": round(tokens / step),
        "of_bare": {
            name: round(median(bare[i] / one[i] for one, bare in pairs), 4) for i, name in enumerate(("cpu", "clock"))
        },
        "largest_difference_of_losses": max(
            abs(a - b) / b for a, b in zip(ours, stage.bare_losses, strict=True)
        ),
        "teraflops": {
            "reached": round(reached / 1e12, 3),
            "squares": {name: round(value / 1e12, 3) for name, value in peaks.items()},
            "own_products": {name: round(value / 1e12, 3) for name, value in products.items()},
        },
        "share": round(reached / peak, 4), "share_of_the_log": round(reached / peaks["log"], 4),
        "of_own_products": round(reached / products["all"], 4),
        "retrieval": round((documents - none) / step, 5), "batches": round(documents / step, 5),
        "cycles": cycles(lambda: stage.bare_step(stage.ready[0]), given.device),
    }  # fmt: skip


# --- two processes ------------------------------------------------------------------------------------------------


def worker(root: Path) -> None:
    torch.set_num_threads(1)
    given = argparse.Namespace(
        size="tiny", attention="sdpa", pack=512, samples=4, steps=12, precision="fp32", compile=False, device="cpu"
    )
    for name, sharding in (("plain", "none"), ("sharded", "full"))[: int(os.environ.get("WORLD_SIZE", "1"))]:
        chosen = settings(given, accumulation=2, sharding=sharding)
        train(Plain(given, chosen), chosen, root / name)


def processes() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder, socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
        found.close()
        for count in (1, 2):
            place = {
                "WORLD_SIZE": str(count),
                "LOCAL_WORLD_SIZE": str(count),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
            running = [
                subprocess.Popen(
                    [sys.executable, __file__, "--worker", f"{folder}/{count}"],
                    env={**os.environ, "OMP_NUM_THREADS": "1"}
                    | ({} if count == 1 else {**place, "RANK": str(rank), "LOCAL_RANK": str(rank)}),
                )
                for rank in range(count)
            ]
            if any(process.wait() for process in running):
                raise SystemExit("a process failed")
        losses = {
            "one": logged(Path(folder, "1", "plain")), "two": logged(Path(folder, "2", "plain")),
            "two, sharded": logged(Path(folder, "2", "sharded")),
        }  # fmt: skip
    largest = {
        name: max(abs(a - b) / a for a, b in zip(losses["one"], losses[name], strict=True))
        for name in ("two", "two, sharded")
    }
    return {"losses": losses, "largest_relative_difference": largest}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="tiny,small,125m")
    parser.add_argument("--precision", choices=list(DTYPES), default="bf16")
    parser.add_argument("--attention", choices=["sdpa", "eager"], default="sdpa")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--pack", type=int, default=512)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--steps", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--processes", action="store_true")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker is not None:
        worker(given.worker)
        return
    torch.set_num_threads(given.threads)
    report: dict[str, Any] = {"torch": torch.__version__, "threads": given.threads, "precision": given.precision}
    if given.device == "cuda":
        given.threads, report["gpu"] = 1, torch.cuda.get_device_name()
    report["load"] = os.getloadavg()[0]
    report["sizes"] = [
        measure(argparse.Namespace(**{**vars(given), "size": size})) for size in given.sizes.split(",") if size
    ]
    if given.processes:
        report["processes"] = processes()
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
