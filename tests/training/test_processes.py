"""Two processes (gloo) do what one does: the same losses, plain (DDP) or sharded (FSDP2), and runs that go on exactly.

This file is its own worker: each of the two processes runs it as a script.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from racm3.errors import ConfigError
from racm3.training.trainer import Stage, TrainerSettings, train


class Tower(torch.nn.Module):
    """Layers where a Llama has them."""

    def __init__(self):
        super().__init__()
        self.model = torch.nn.Module()
        self.model.layers = torch.nn.ModuleList(torch.nn.Linear(5, 5) for _ in range(2))
        self.model.norm = torch.nn.LayerNorm(5)
        self.head = torch.nn.Linear(5, 3, bias=False)

    def forward(self, x):
        for layer in self.model.layers:
            x = x + torch.tanh(layer(x))
        return self.head(self.model.norm(x))


class Towers(Stage):
    def __init__(self, stop_at=None, noise=False):
        self.stop_at, self.noise = stop_at, noise

    def build(self):
        return Tower()

    def batch(self, step, micro):
        if self.stop_at == step:
            raise KeyboardInterrupt
        x = torch.from_numpy(np.random.default_rng([step, micro]).standard_normal((6, 5)).astype(np.float32))
        return {"x": x, "y": x[:, :3] * 2, "micro": torch.tensor(float(micro))}

    def loss(self, model, batch):
        x = batch["x"] + torch.randn(6, 5) if self.noise else batch["x"]
        loss = (model(x) - batch["y"]).square().mean()
        return loss, {"micro": batch["micro"], "odd": float("nan") if batch["micro"] % 2 == 0 else 1.0}

    def work(self, batch):
        return 6, 6000.0

    def evaluate(self, model):
        x = torch.eye(5)
        return {"held_out": float((model(x) - x[:, :3]).square().mean())}

    def export(self, model, folder):
        folder.mkdir(parents=True)
        save_file({n: w.clone() for n, w in model.state_dict().items()}, folder / "weights.safetensors")


def settings(**changes):
    return TrainerSettings(
        **{
            "steps": 6, "learning_rate": 0.05, "device": "cpu", "log_every": 1, "accumulation": 4, "clip": 0.5, "ema": 0.8,
            "save_every": 2, "weight_decay": 0.01, "evaluate_every": 3, **changes,
        }
    )  # fmt: skip


def worker(root: Path) -> None:
    train(Towers(), settings(), root / "plain")
    train(Towers(), settings(sharding="full"), root / "sharded")
    for name, sharding in (("plain", "none"), ("sharded", "full")):
        train(Towers(noise=True), settings(sharding=sharding), root / f"noisy-{name}")
        try:
            train(Towers(stop_at=3, noise=True), settings(sharding=sharding), root / f"resumed-{name}")
        except KeyboardInterrupt:
            train(Towers(noise=True), settings(sharding=sharding), root / f"resumed-{name}")
    try:
        train(Towers(), settings(accumulation=3), root / "uneven")
    except ConfigError as error:
        (root / "uneven.txt").write_text(error.message)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("two")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    running = [
        subprocess.Popen(
            [sys.executable, __file__, str(root)], stderr=subprocess.PIPE, text=True,
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]  # fmt: skip
    said = [process.communicate()[1] for process in running]
    assert [process.returncode for process in running] == [0, 0], said
    train(Towers(), settings(), root / "one")
    return root


def log(folder):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line for line in lines if "loss" in line}


@pytest.mark.parametrize("name", ["plain", "sharded"])
def test_two_processes_have_the_losses_of_one(root, name):
    one, two = log(root / "one"), log(root / name)
    assert two.keys() == one.keys() == set(range(1, 7))
    for step in one:
        assert two[step]["loss"] == pytest.approx(one[step]["loss"], rel=1e-4)
        assert two[step]["micro"] == 1.5 and two[step]["odd"] == 1.0
    assert one[6]["loss"] < 0.95 * one[1]["loss"]


@pytest.mark.parametrize("name", ["plain", "sharded"])
def test_two_processes_leave_the_weights_and_the_state_of_one(root, name):
    for file in ("model/weights.safetensors", "state/state.safetensors"):
        one, two = (load_file(root / folder / file) for folder in ("one", name))
        assert one.keys() == {key for key in two if not key.endswith(".1") or not key.startswith("random")}
        for key, value in one.items():
            if not key.startswith("random"):
                assert torch.allclose(value, two[key], rtol=1e-3, atol=1e-4), key


@pytest.mark.parametrize("name", ["plain", "sharded"])
def test_a_resumed_run_of_two_processes_has_the_losses_of_one_that_was_not_stopped(root, name):
    """Noise included: each process has its own, and gets it back."""
    whole, resumed = log(root / f"noisy-{name}"), log(root / f"resumed-{name}")
    assert {s: line["loss"] for s, line in whole.items()} == {s: line["loss"] for s, line in resumed.items()}


def test_a_sharded_run_goes_on_in_one_process(root):
    state = root / "sharded" / "state"
    target = root / "moved"
    (target).mkdir()
    os.symlink(state, target / "state")
    figures = train(Towers(), settings(), target)
    last = json.loads((root / "sharded" / "log.jsonl").read_text().splitlines()[-1])
    assert figures["held_out"] == pytest.approx(last["held_out"], rel=1e-4)


def test_micro_batches_that_cannot_be_shared_out_are_refused(root):
    assert "2 processes cannot share out 3" in (root / "uneven.txt").read_text()


def test_the_log_counts_the_tokens_of_all_processes_and_the_share_of_the_peak(root):
    for name in ("one", "plain"):
        line = log(root / name)[4]
        assert line["tokens_per_second"] * line["seconds_per_step"] == pytest.approx(24, rel=0.2)
        assert 0 <= line["matrix_share"] < 1


if __name__ == "__main__":
    worker(Path(sys.argv[1]))
