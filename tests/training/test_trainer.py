"""The training loop: schedule, accumulation, weight average, log, and runs that resume exactly."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from racm3.errors import CheckpointError, ConfigError
from racm3.training.account import read_lines
from racm3.training.trainer import Stage, TrainerSettings, WeightAverage, build_optimizers, learning_rate_share, train


def settings(**changes):
    return TrainerSettings(**{"steps": 6, "learning_rate": 0.05, "device": "cpu", "log_every": 1, **changes})


class Line(Stage):
    """Learns y = W x, with dropout, so that torch's random state counts."""

    def __init__(self, stop_at=None, width=6):
        self.stop_at, self.width, self.seen = stop_at, width, []

    def build(self):
        return torch.nn.Sequential(
            torch.nn.Linear(4, self.width), torch.nn.Dropout(0.3), torch.nn.LayerNorm(self.width),
            torch.nn.Linear(self.width, 2),
        )  # fmt: skip

    def batch(self, step, micro):
        if self.stop_at == (step, micro):
            raise KeyboardInterrupt
        self.seen.append((step, micro))
        x = torch.from_numpy(np.random.default_rng([step, micro]).standard_normal((8, 4)).astype(np.float32))
        return {"x": x, "y": x[:, :2] * 2}

    def loss(self, model, batch):
        error = (model(batch["x"]) - batch["y"]).square().mean()
        return error, {"noise": torch.rand(())}

    def evaluate(self, model):
        assert not model.training
        x = torch.eye(4)
        return {"held_out": (model(x) - x[:, :2] * 2).square().mean().item()}

    def export(self, model, folder):
        assert not model.training
        folder.mkdir(parents=True)
        save_file(model.state_dict(), folder / "weights.safetensors")


def log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def losses(folder):
    """By step; of a step that was done twice, the last."""
    return {line["step"]: (line["loss"], line["noise"]) for line in log(folder) if "loss" in line}


# --- schedule and settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"schedule": "constant"}, {0: 1.0, 50: 1.0, 99: 1.0}),
        ({"schedule": "linear"}, {0: 1.0, 25: 0.75, 50: 0.5, 100: 0.0}),
        ({"schedule": "cosine"}, {0: 1.0, 25: 0.5 + 0.5 * np.cos(np.pi / 4), 50: 0.5, 100: 0.0}),
        ({"schedule": "cosine", "final_rate": 0.2}, {0: 1.0, 50: 0.6, 100: 0.2}),
        ({"schedule": "linear", "warmup": 20}, {0: 0.05, 9: 0.5, 19: 1.0, 20: 1.0, 60: 0.5, 100: 0.0}),
        ({"schedule": "constant", "warmup": 4}, {0: 0.25, 1: 0.5, 2: 0.75, 3: 1.0, 4: 1.0}),
        ({"schedule": "linear", "warmup": 100}, {0: 0.01, 99: 1.0}),
    ],
)
def test_the_learning_rate_warms_up_and_falls(changes, expected):
    found = {step: learning_rate_share(step, settings(steps=100, **changes)) for step in expected}
    assert found == pytest.approx(expected)


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"learning_rate": 0}, {"schedule": "steps"}, {"ema": 1.0}, {"epochs": 3}]
)
def test_settings_are_checked(wrong):
    with pytest.raises(ValidationError):
        settings(**wrong)


def test_the_rate_of_each_step_is_the_schedules(tmp_path, monkeypatch):
    rates = []
    step = torch.optim.AdamW.step
    monkeypatch.setattr(
        torch.optim.AdamW, "step", lambda self, *a: rates.append(self.param_groups[0]["lr"]) or step(self, *a)
    )
    train(Line(), settings(warmup=2, schedule="linear"), tmp_path)
    assert rates == pytest.approx([0.025, 0.05, 0.05, 0.0375, 0.025, 0.0125])


# --- optimisers -------------------------------------------------------------------------------------------------


class Named(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed_tokens = torch.nn.Embedding(5, 4)
        self.hidden = torch.nn.Linear(4, 4)
        self.norm = torch.nn.LayerNorm(4)
        self.lm_head = torch.nn.Linear(4, 5, bias=False)
        self.frozen = torch.nn.Parameter(torch.ones(2, 2), requires_grad=False)


def names(model, group):
    return {name for name, p in model.named_parameters() if any(p is q for q in group["params"])}


def test_adamw_takes_everything_and_decays_matrices_only():
    model = Named()
    (adamw,) = build_optimizers(model, settings(weight_decay=0.1, betas=(0.8, 0.9)))
    decayed, plain = adamw.param_groups
    assert names(model, decayed) == {"embed_tokens.weight", "hidden.weight", "lm_head.weight"}
    assert names(model, plain) == {"hidden.bias", "norm.weight", "norm.bias"}
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert decayed["betas"] == (0.8, 0.9)


def test_muon_takes_the_hidden_matrices():
    model = Named()
    adamw, muon = build_optimizers(model, settings(optimizer="muon", muon_learning_rate=0.3))
    assert type(muon) is torch.optim.Muon
    assert names(model, muon.param_groups[0]) == {"hidden.weight"}
    assert muon.param_groups[0]["lr"] == muon.param_groups[0]["base_lr"] == 0.3
    assert adamw.param_groups[0]["base_lr"] == 0.05


# --- the loop ---------------------------------------------------------------------------------------------------


def test_training_learns_logs_and_exports(tmp_path):
    seen = []
    figures = train(
        Line(), settings(steps=30, log_every=10, evaluate_every=15), tmp_path, progress=lambda *a: seen.append(a)
    )
    lines = log(tmp_path)
    assert [line["step"] for line in lines if "loss" in line] == [10, 20, 30]
    assert [line["step"] for line in lines if "held_out" in line] == [15, 30]
    assert lines[-1]["held_out"] == figures["held_out"]
    assert lines[0]["loss"] > [line for line in lines if "loss" in line][-1]["loss"]
    assert all(line["seconds_per_step"] > 0 for line in lines if "loss" in line)
    assert [(step, total) for step, total, _ in seen] == [(10, 30), (20, 30), (30, 30)]
    assert "loss" in seen[0][2]
    assert (tmp_path / "model" / "weights.safetensors").is_file()


def test_each_micro_batch_of_each_step_is_asked_for_once(tmp_path):
    stage = Line()
    train(stage, settings(steps=3, accumulation=2), tmp_path)
    assert stage.seen == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]


def test_a_step_averages_the_gradients_of_its_micro_batches(tmp_path):
    """Two halves of a batch do what the whole batch does."""

    class Halves(Line):
        def build(self):
            torch.manual_seed(0)
            return torch.nn.Linear(4, 2)

        def batch(self, step, micro):
            whole = super().batch(step, 0)
            return {n: v[4 * micro : 4 * micro + 4] for n, v in whole.items()} if self.stop_at == "halves" else whole

    train(Halves("halves"), settings(accumulation=2), tmp_path / "halves")
    train(Halves(), settings(), tmp_path / "whole")
    one, other = (load_file(tmp_path / name / "model" / "weights.safetensors") for name in ("halves", "whole"))
    assert torch.allclose(one["weight"], other["weight"], atol=1e-5)


def test_the_losses_are_those_of_a_plain_loop(tmp_path):
    """Written out, with the plainest optimiser that there is, and figures that are read at once."""
    chosen = settings(steps=20, accumulation=2, clip=0.2, schedule="constant", weight_decay=0.1, betas=(0.9, 0.95))
    train(Line(), chosen, tmp_path)
    stage = Line()
    torch.manual_seed(0)
    model = stage.build().train()
    groups = [
        {"params": [p for p in model.parameters() if (p.ndim >= 2) is decayed], "weight_decay": 0.1 * decayed}
        for decayed in (True, False)
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.05, betas=(0.9, 0.95), foreach=False, fused=False)
    expected = {}
    for step in range(20):
        read = []
        for micro in range(2):
            loss, figures = stage.loss(model, stage.batch(step, micro))
            (loss / 2).backward()
            read.append((loss.item(), figures["noise"].item()))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.2)
        optimizer.step()
        optimizer.zero_grad()
        expected[step + 1] = np.mean(read, axis=0)
    found = losses(tmp_path)
    assert found.keys() == expected.keys()
    for step, figures in expected.items():
        assert found[step] == pytest.approx(figures, abs=2e-5)
    assert found[20][0] < 0.5 * found[1][0]


def test_a_figure_is_the_mean_over_the_micro_batches_that_have_it(tmp_path):
    class Sparse(Line):
        def loss(self, model, batch):
            self.asked = getattr(self, "asked", 0) + 1
            error, _ = super().loss(model, batch)
            return error, {"rare": float(self.asked) if self.asked % 2 else float("nan"), "never": float("nan")}

    train(Sparse(), settings(steps=4, accumulation=2, log_every=2), tmp_path)
    lines = [line for line in log(tmp_path) if "loss" in line]
    assert [line["rare"] for line in lines] == [2.0, 6.0] and "never" not in lines[0]


def test_gradients_are_clipped(tmp_path, monkeypatch):
    norms = []
    step = torch.optim.AdamW.step

    def spy(self, *a):
        gradients = [p.grad.flatten() for g in self.param_groups for p in g["params"]]
        norms.append(float(torch.cat(gradients).norm()))
        return step(self, *a)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    train(Line(), settings(steps=2, clip=0.01), tmp_path / "clipped")
    train(Line(), settings(steps=2, clip=None), tmp_path / "free")
    assert max(norms[:2]) <= 0.0101 < 0.1 < min(norms[2:])


def test_a_seed_repeats_the_run(tmp_path):
    for name, seed in (("one", 3), ("two", 3), ("three", 4)):
        train(Line(), settings(seed=seed), tmp_path / name)
    assert losses(tmp_path / "one") == losses(tmp_path / "two") != losses(tmp_path / "three")


def test_after_step_is_called_after_each_step(tmp_path):
    class Watched(Line):
        def after_step(self, model, step):
            assert not torch.is_grad_enabled()
            self.seen.append(step)

    stage = Watched()
    train(stage, settings(steps=2), tmp_path)
    assert stage.seen == [(0, 0), 1, (1, 0), 2]


# --- the weight average -----------------------------------------------------------------------------------------


def test_the_weight_average_follows_its_formula():
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    average, expected = WeightAverage(model, 0.5), 0.0
    for update in range(1, 12):
        torch.nn.init.constant_(model.weight, update)
        average.update(model)
        # The share that is kept grows up to the decay, so that the random start is forgotten soon.
        decay = min(0.5, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * update
        assert float(average.weights["weight"]) == pytest.approx(expected, rel=1e-5)


def test_the_average_is_what_is_evaluated_and_exported(tmp_path):
    class Watched(Line):
        def after_step(self, model, step):
            self.seen.append(model[3].weight.detach().clone())

    stage = Watched()
    figures = train(stage, settings(ema=0.9, schedule="constant", evaluate_every=1), tmp_path)
    exported = load_file(tmp_path / "model" / "weights.safetensors")
    visited = [w for w in stage.seen if isinstance(w, torch.Tensor)]
    assert not torch.equal(exported["3.weight"], visited[-1])
    expected = load_file(tmp_path / "state" / "state.safetensors")
    for name, weight in exported.items():
        assert torch.equal(weight, expected[f"average.{name}"])
    # The training weights are there again after each evaluation, and are what a resumed run goes on from.
    assert torch.equal(expected["model.3.weight"], visited[-1])
    model = stage.build().eval()
    model.load_state_dict(exported)
    assert figures == {"held_out": pytest.approx(stage.evaluate(model)["held_out"], rel=1e-6)}


@pytest.mark.parametrize(("ema", "better"), [(None, "lowest"), (0.5, "lowest"), (0.5, "highest")])
def test_the_best_weights_are_exported_also_by_a_run_that_was_stopped(tmp_path, ema, better):
    class Turning(Line):
        """Good in the middle of the run, by its own account."""

        best = better

        def evaluate(self, model):
            self.at.append({n: w.clone() for n, w in model.state_dict().items()})
            return {"held_out": self.figures[len(self.at) - 1] * (1 if better == "lowest" else -1)}

    given = settings(steps=5, evaluate_every=1, save_every=1, keep_best="held_out", ema=ema)
    stage = Turning(stop_at=(3, 0))
    stage.at, stage.figures = [], [0.5, 3.0, 1.0, 2.0]  # the first before anything is trained, and not to be kept
    with pytest.raises(KeyboardInterrupt):
        train(stage, given, tmp_path)
    rest = Turning()
    rest.at, rest.figures = [], [2.0, 1.5]
    assert abs(train(rest, given, tmp_path)["held_out"]) == 1.5
    exported = load_file(tmp_path / "model" / "weights.safetensors")
    assert all(torch.equal(exported[name], weight) for name, weight in stage.at[2].items())


def test_a_figure_that_there_is_not_is_told_before_anything_is_trained(tmp_path):
    stage = Line()
    with pytest.raises(ConfigError, match=r"No held-out figure named 'loss' .* There are: held_out"):
        train(stage, settings(keep_best="loss"), tmp_path)
    assert stage.seen == []


def test_evaluating_does_not_change_the_run(tmp_path):
    for name, every in (("never", 0), ("always", 1)):
        train(Line(), settings(ema=0.9, evaluate_every=every), tmp_path / name)
    assert losses(tmp_path / "never") == losses(tmp_path / "always")


# --- stopping and going on --------------------------------------------------------------------------------------


def test_no_line_of_the_log_is_of_steps_before_and_after_a_place_to_go_on_from(tmp_path):
    chosen = settings(steps=7, log_every=3, save_every=2)
    train(Line(), chosen, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(Line(stop_at=(5, 0)), chosen, tmp_path / "stopped")
    train(Line(), chosen, tmp_path / "stopped")
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")
    assert sorted(losses(tmp_path / "whole")) == [2, 3, 4, 6, 7]
    train(Line(), chosen, tmp_path / "stopped")  # once more, when it is finished
    assert [line["step"] for line in log(tmp_path / "stopped")] == [2, 3, 4, 6, 7, 7]


def test_a_run_that_diverges_stops_with_an_error_and_leaves_what_was_sound(tmp_path):
    class Steep(Line):
        def loss(self, model, batch):
            error, figures = super().loss(model, batch)
            return error * float("nan" if len(self.seen) > 3 else 1), figures

    with pytest.raises(ConfigError, match=r"diverged: at step 4 the loss is nan") as raised:
        train(Steep(), settings(save_every=1), tmp_path)
    assert "learning_rate" in raised.value.hint and not (tmp_path / "model").exists()
    assert all(np.isfinite(loss) for loss, _ in losses(tmp_path).values()) and max(losses(tmp_path)) == 3


def test_a_run_that_begins_anew_has_a_log_of_its_own(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(Line(stop_at=(3, 0)), settings(save_every=100), tmp_path)
    train(Line(), settings(save_every=100), tmp_path)
    assert [line["step"] for line in log(tmp_path)] == [1, 2, 3, 4, 5, 6, 6]


def test_a_line_that_was_cut_off_is_passed_over(tmp_path):
    train(Line(), settings(), tmp_path)
    whole = read_lines(tmp_path)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')
    assert read_lines(tmp_path) == whole
    assert read_lines(tmp_path / "nowhere") == []


def test_a_model_that_was_being_written_is_not_there(tmp_path, monkeypatch):
    train(Line(), settings(), tmp_path)
    before = load_file(tmp_path / "model" / "weights.safetensors")

    def killed(self, model, folder):
        folder.mkdir(parents=True)
        raise KeyboardInterrupt

    monkeypatch.setattr(Line, "export", killed)
    with pytest.raises(KeyboardInterrupt):
        train(Line(), settings(), tmp_path)
    after = load_file(tmp_path / "model" / "weights.safetensors")
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


@pytest.mark.parametrize("ema", [None, 0.9])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_resumed_run_is_bitwise_the_run_that_was_never_stopped(tmp_path, optimizer, ema):
    chosen = settings(optimizer=optimizer, ema=ema, accumulation=2, save_every=2, warmup=3, weight_decay=0.01)
    figures = train(Line(), chosen, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(Line(stop_at=(5, 1)), chosen, tmp_path / "stopped")
    stage = Line()
    assert train(stage, chosen, tmp_path / "stopped") == figures
    assert stage.seen[0] == (4, 0)
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")
    for file in ("model/weights.safetensors", "state/state.safetensors"):
        whole, resumed = (load_file(tmp_path / name / file) for name in ("whole", "stopped"))
        assert whole.keys() == resumed.keys()
        assert all(torch.equal(weight, resumed[name]) for name, weight in whole.items())


def test_a_finished_run_is_not_trained_again(tmp_path):
    train(Line(), settings(), tmp_path)
    before = load_file(tmp_path / "model" / "weights.safetensors")
    (tmp_path / "model" / "weights.safetensors").unlink()
    (tmp_path / "model").rmdir()
    stage = Line()
    train(stage, settings(), tmp_path)
    assert stage.seen == []
    after = load_file(tmp_path / "model" / "weights.safetensors")
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())


def test_a_run_can_start_anew(tmp_path):
    train(Line(), settings(), tmp_path)
    first = losses(tmp_path)
    (tmp_path / "model" / "weights.safetensors").unlink()
    (tmp_path / "model").rmdir()
    stage = Line()
    train(stage, settings(), tmp_path, resume=False)
    assert stage.seen[0] == (0, 0)
    assert losses(tmp_path) == first


def test_the_state_of_another_model_is_refused(tmp_path):
    train(Line(), settings(steps=2), tmp_path)
    with pytest.raises(CheckpointError, match="belongs to another model") as raised:
        train(Line(width=7), settings(steps=4), tmp_path)
    assert "new folder" in raised.value.hint


def test_nothing_is_pickled(tmp_path):
    train(Line(), settings(optimizer="muon", ema=0.9), tmp_path)
    assert {path.suffix for path in tmp_path.rglob("[!.]*") if path.is_file()} == {".json", ".jsonl", ".safetensors"}


def test_stages_of_different_precision_train_in_one_process(tmp_path):
    """As when all models of a bundle are trained one after the other."""
    for number, precision in enumerate(("bf16", "fp32", "bf16")):
        train(Line(), settings(precision=precision), tmp_path / str(number))
    first, other, again = (losses(tmp_path / str(number)) for number in range(3))
    assert first == again != other
