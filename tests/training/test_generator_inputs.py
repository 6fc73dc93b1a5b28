"""What a generator is trained with: prepared once in a run's folder, and only for what it was prepared of."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from racm3.errors import CheckpointError, WeightsNotFound
from racm3.testing import HashingRetriever
from racm3.training import data
from racm3.training import generator_inputs as generator_inputs_module
from racm3.training.generator_inputs import _prepared, _text_tokenizer, check_trained, generator_inputs
from racm3.training.runs import Run


class Codes:
    """An image tokenizer that counts what it encodes: a picture's first pixels are its tokens."""

    tokens, codes = 4, 256

    def __init__(self):
        import torch

        self.codebook, self.encoded, self.model = torch.zeros(256, 2), 0, torch.nn.Identity()

    def encode(self, pixels):
        self.encoded += len(pixels)
        return pixels[:, 0, :4, 0].astype(np.int64)


@pytest.fixture(autouse=True)
def hashing(monkeypatch):
    monkeypatch.setattr(generator_inputs_module, "retriever_of", lambda run, recipe: HashingRetriever())


RECIPE = {"tokenizer": {"vocabulary": 260, "longest": 3}, "neighbours": {"keep": 2}, "objective": {"k": [0, 2]}}


def test_documents_are_prepared_once_a_run(run, corpus):
    tokenizer = Codes()
    text_tokenizer = _text_tokenizer(run, RECIPE, corpus)
    assert _text_tokenizer(run, {}, corpus).to_str() == text_tokenizer.to_str()
    for _ in range(2):
        made = _prepared(run, RECIPE, corpus, text_tokenizer, tokenizer, None)
        assert tokenizer.encoded == 6
        assert made.images.shape == (6, 1, 4) and made.images.dtype == np.uint16 and isinstance(made.images, np.memmap)
        assert (made.images[:, 0] == corpus.data.pixels[:, 0, :4, 0]).all()
        assert max(len(text) for text in made.texts) == 3
        assert made.neighbours.rows.shape == (6, 2, 2, 2) and 5 not in made.neighbours.rows[:5]
        assert [rows.tolist() for rows in made.entities] == [[0], [1], [2], [3], [4]]
    vanilla = {**RECIPE, "objective": {"k": [0]}}
    assert _prepared(run, vanilla, corpus, text_tokenizer, tokenizer, None).neighbours is None


def test_what_was_prepared_with_another_tokenizer_or_of_other_documents_is_refused(run, corpus):
    text_tokenizer = _text_tokenizer(run, RECIPE, corpus)
    _prepared(run, RECIPE, corpus, text_tokenizer, Codes(), None)
    with pytest.raises(CheckpointError, match="documents changed"):
        _prepared(run, RECIPE, replace(corpus, digest="other"), text_tokenizer, Codes(), None)
    (run.model("image-tokenizer") / "config.json").write_text(json.dumps({"other": 1}))
    with pytest.raises(CheckpointError, match="image tokenizer changed"):
        _prepared(run, RECIPE, corpus, text_tokenizer, Codes(), None)


@pytest.mark.parametrize(
    "name", ["images.npy", "images.json", "neighbours-*.npy", "neighbours-*.json", "tokenizer.json"]
)
def test_a_file_that_was_torn_is_named(run, name, corpus):
    def prepare():
        return _prepared(run, RECIPE, corpus, _text_tokenizer(run, RECIPE, corpus), Codes(), None)

    prepare()
    (path,) = run.prepared.glob(name)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=re.escape(str(path))) as raised:
        prepare()
    assert raised.value.hint
    for file in run.prepared.glob(f"{path.stem}*"):  # as the hint says
        file.unlink()
    prepare()


@pytest.mark.parametrize(
    ("wanted", "there", "device"), [("auto", True, "cuda"), ("cpu", True, "cpu"), ("auto", False, "cpu")]
)
def test_pictures_become_tokens_on_a_gpu_where_there_is_one(run, monkeypatch, wanted, there, device, corpus):
    import torch

    from racm3.generators.cm3.image_tokenizer import ImageTokenizer

    loaded = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(ImageTokenizer, "load", lambda path, device="cpu": loaded.append(device) or Codes())
    generator_inputs(run, {**RECIPE, "trainer": {"device": wanted}}, corpus)
    assert loaded == [device]


def test_figures_are_taken_on_few_documents_spread_over_all(corpus, monkeypatch):
    monkeypatch.setattr(data, "MEASURED", 3)
    held_out = [np.arange(6), np.array([4, 5])]
    assert [replace(corpus, held_out=rows).measured.tolist() for rows in held_out] == [[0, 2, 5], [4, 5]]


def test_what_a_generator_needs_is_looked_for_before_documents_are_read(run, tmp_path):
    with pytest.raises(WeightsNotFound, match="retriever is not trained yet"):
        check_trained(run, {})
    for objective in ({"k": [0]}, {"context": "random"}):
        check_trained(run, {"objective": objective})
    check_trained(run, {"retriever": {"model": "ViT-B-32"}})
    with pytest.raises(WeightsNotFound, match="image-tokenizer is not trained yet"):
        check_trained(Run(tmp_path / "elsewhere"), {"objective": {"k": [0]}})
