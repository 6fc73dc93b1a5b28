"""The saved state of a run: whole or not at all, readable without pickle."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch

from racm3.errors import CheckpointError
from racm3.training.state import RunState
from racm3.training.trainer import TrainerSettings, WeightAverage, build_optimizers

SETTINGS = TrainerSettings(steps=10, learning_rate=0.1, optimizer="muon")


def run(width=3, seed=0, average=True):
    """A model with its optimisers and average, and the state that saves them."""
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(2, width), torch.nn.BatchNorm1d(width), torch.nn.Linear(width, 2))
    optimizers = build_optimizers(model, SETTINGS)
    kept = WeightAverage(model, 0.9) if average else None
    return model, optimizers, kept, RunState(model, optimizers, kept)


def step(model, optimizers, average):
    model(torch.randn(4, 2)).square().sum().backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    if average is not None:
        average.update(model)


def tensors(model, optimizers, average):
    found = dict(model.state_dict())
    for i, optimizer in enumerate(optimizers):
        for index, values in optimizer.state_dict()["state"].items():
            found.update({f"{i}.{index}.{name}": torch.as_tensor(value) for name, value in values.items()})
    if average is not None:
        found.update({f"average.{name}": value for name, value in average.weights.items()})
    return {name: value.clone() for name, value in found.items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("average", [True, False])
def test_everything_that_changes_comes_back(tmp_path, average):
    *parts, state = run(average=average)
    step(*parts)
    step(*parts)
    state.save(tmp_path / "state", 2)
    saved = tensors(*parts)
    drawn = torch.rand(3)
    *others, other = run(seed=1, average=average)
    assert other.load(tmp_path / "state") == 2
    assert same(tensors(*others), saved)
    assert torch.equal(torch.rand(3), drawn)
    if average:
        assert others[2].updates == 2


def test_nothing_saved_means_step_nought(tmp_path):
    *parts, state = run()
    before = tensors(*parts)
    assert state.load(tmp_path / "state") == 0
    assert same(tensors(*parts), before)


def test_a_later_state_replaces_an_earlier_one(tmp_path):
    *parts, state = run()
    for number in (1, 2, 3):
        step(*parts)
        state.save(tmp_path / "state", number)
    assert run()[-1].load(tmp_path / "state") == 3
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_a_kill_while_writing_leaves_the_old_state(tmp_path, monkeypatch):
    *parts, state = run()
    state.save(tmp_path / "state", 1)
    step(*parts)

    def kill(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", kill)
    with pytest.raises(KeyboardInterrupt):
        state.save(tmp_path / "state", 2)
    assert run()[-1].load(tmp_path / "state") == 1
    monkeypatch.undo()
    state.save(tmp_path / "state", 2)
    assert run()[-1].load(tmp_path / "state") == 2


def test_a_kill_between_the_two_renames_leaves_the_old_state(tmp_path, monkeypatch):
    state = run()[-1]
    state.save(tmp_path / "state", 1)
    (tmp_path / "state").rename(tmp_path / "state.old")
    shutil.copytree(tmp_path / "state.old", tmp_path / "state.new")
    assert run()[-1].load(tmp_path / "state") == 1

    # And so does another one, while the run that went on from it saves for the first time.
    def kill(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("os.replace", kill)
        state.save(tmp_path / "state", 2)
    assert run()[-1].load(tmp_path / "state") == 1
    state.save(tmp_path / "state", 2)
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_the_state_is_safetensors_and_json(tmp_path):
    *parts, state = run()
    step(*parts)
    state.save(tmp_path / "state", 7)
    assert {path.name for path in (tmp_path / "state").iterdir()} == {"state.safetensors", "state.json"}
    assert json.loads((tmp_path / "state" / "state.json").read_text())["step"] == 7


def test_the_state_of_another_recipe_is_refused(tmp_path, monkeypatch):
    run(average=False)[-1].save(tmp_path / "plain", 1)
    with pytest.raises(CheckpointError, match="without a weight average") as raised:
        run()[-1].load(tmp_path / "plain")
    assert raised.value.hint
    with monkeypatch.context() as patch:
        patch.setitem(globals(), "SETTINGS", TrainerSettings(steps=10, learning_rate=0.1))
        run()[-1].save(tmp_path / "adamw", 1)
    with pytest.raises(CheckpointError, match="another optimizer"):
        run()[-1].load(tmp_path / "adamw")


def test_the_state_of_another_model_is_refused(tmp_path):
    run()[-1].save(tmp_path / "state", 1)
    with pytest.raises(CheckpointError, match="belongs to another model") as raised:
        run(width=4)[-1].load(tmp_path / "state")
    assert raised.value.hint


def test_the_state_of_a_model_with_more_trained_parameters_is_refused(tmp_path):
    """The weights fit, as when two of them are tied, but the optimiser's state does not."""
    *parts, state = run(average=False)
    step(*parts)
    state.save(tmp_path / "state", 1)
    model = run(average=False)[0]
    model[0].requires_grad_(False)
    with pytest.raises(CheckpointError, match="more parameters") as raised:
        RunState(model, build_optimizers(model, SETTINGS), None).load(tmp_path / "state")
    assert raised.value.hint


@pytest.mark.parametrize("name", ["state.json", "state.safetensors"])
def test_a_torn_state_is_named(tmp_path, name):
    run()[-1].save(tmp_path / "state", 1)
    path = tmp_path / "state" / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=re.escape(str(path))) as raised:
        run()[-1].load(tmp_path / "state")
    assert raised.value.hint
