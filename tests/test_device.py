"""Devices by name: what is not there is told before anything is loaded."""

from __future__ import annotations

import pytest
import torch

from racm3.device import device_named
from racm3.errors import ConfigError
from racm3.generators.cm3.generator import Cm3Generator
from racm3.retrievers.clip import ClipRetriever


@pytest.fixture
def here(monkeypatch):
    """Says which kinds of devices there are besides the CPU."""

    def make(cuda=0, mps=False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return make


def test_a_gpu_is_taken_where_there_is_one(here):
    here()
    assert device_named("auto") == device_named("cpu") == "cpu"
    here(mps=True)
    assert device_named("auto") == "mps"
    here(cuda=2)
    assert (device_named("auto"), device_named("cuda:1"), device_named("cpu")) == ("cuda", "cuda:1", "cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda", "mps", "", "cuda:x"])
def test_what_is_not_there_is_told(here, name):
    here()
    with pytest.raises(ConfigError, match=f"no device '{name}' here. There are: auto, cpu"):
        device_named(name)
    here(cuda=1)
    with pytest.raises(ConfigError, match="no device 'cuda:1' here"):
        device_named("cuda:1")


def test_models_say_so_before_they_look_for_weights(tmp_path):
    with pytest.raises(ConfigError, match="no device 'gpu'"):
        _ = Cm3Generator(checkpoint=tmp_path, device="gpu").checkpoint
    with pytest.raises(ConfigError, match="no device 'gpu'"):
        ClipRetriever(str(tmp_path), device="gpu")._load()


@pytest.mark.parametrize("setting", [{"batch_rows": 0}, {"prefix_cache_bytes": -1}])
def test_numbers_that_a_generator_cannot_have_are_refused(setting, tmp_path):
    with pytest.raises(ConfigError, match="batch_rows is at least 1"):
        Cm3Generator(checkpoint=tmp_path, **setting)
