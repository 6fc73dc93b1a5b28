"""The model and its checkpoint folder: sizes, what the ecosystem can read, and what is refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from racm3.errors import CheckpointError, WeightsNotFound
from racm3.generators.cm3 import model as model_module
from racm3.generators.cm3.document_format import DocumentFormat
from racm3.generators.cm3.model import SIZES, Checkpoint, Size, build_model, fingerprint, resolve_folder, size_named
from racm3.generators.cm3.vocabulary import CONTROL, Vocabulary


@pytest.fixture
def folder(checkpoint_folder, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(checkpoint_folder, tmp_path / "checkpoint")


def parameters(size, vocabulary):
    """Of a Llama: embeddings in and out, and per layer four square matrices, three of the FFN and two norms."""
    layer = 4 * size.width**2 + 3 * size.width * size.feed_forward + 2 * size.width
    return 2 * vocabulary * size.width + size.layers * layer + size.width


@pytest.mark.parametrize(
    ("name", "expected"), [("125m", 125e6), ("350m", 350e6), ("760m", 760e6), ("2.7b", 2.7e9), ("7b", 7e9)]
)
def test_a_size_by_name_has_its_parameters(name, expected):
    assert parameters(SIZES[name], 32_000) == pytest.approx(expected, rel=0.1)


def test_the_model_is_a_stock_llama_of_that_size():
    vocabulary = Vocabulary(256, 64)
    model = build_model(Size(2, 48, 2), vocabulary, max_positions=512)
    assert type(model) is LlamaForCausalLM
    assert sum(p.numel() for p in model.parameters()) == parameters(Size(2, 48, 2), vocabulary.size)
    assert model.config.max_position_embeddings == 512
    assert vocabulary.names([model.config.pad_token_id, model.config.bos_token_id, model.config.eos_token_id]) == [
        "<pad>", "<s>", "</s>",
    ]  # fmt: skip


def test_an_unknown_size_is_named_with_the_nearest():
    with pytest.raises(CheckpointError, match=r"No size named '350'.*350m.*Did you mean '350m'"):
        size_named("350")


# --- what others can read ---------------------------------------------------------------------------------------


def test_transformers_alone_opens_the_model(checkpoint_folder, checkpoint):
    model = AutoModelForCausalLM.from_pretrained(checkpoint_folder)
    assert type(model) is LlamaForCausalLM
    ids = torch.arange(6)[None]
    assert torch.allclose(model(ids).logits, checkpoint.model(ids).logits, atol=1e-5)


def test_tokenizers_alone_opens_the_text_tokenizer(checkpoint_folder):
    tokenizer = Tokenizer.from_file(str(checkpoint_folder / "tokenizer.json"))
    assert tokenizer.decode(tokenizer.encode("a red kite").ids) == "a red kite"
    assert not set(CONTROL) & set(tokenizer.get_vocab())


def test_racm3_json_says_what_is_ours(checkpoint_folder, checkpoint):
    found = json.loads((checkpoint_folder / "racm3.json").read_text())
    assert {len(digest) for digest in found.pop("parts").values()} == {64}
    assert found == {
        "format_version": 1, "control_tokens": list(CONTROL), "document_stride": 64, "image_offset": 16,
        "vocabulary": {"text_tokens": checkpoint.text_tokenizer.get_vocab_size(), "image_tokens": 24},
    }  # fmt: skip


def test_a_part_of_another_checkpoint_is_refused_though_it_has_the_size(folder):
    weights = next((folder / "image_tokenizer").glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(CheckpointError, match="image_tokenizer is not the one that the model was trained with"):
        Checkpoint.load(folder)
    description = json.loads((folder / "racm3.json").read_text())
    del description["parts"]  # as checkpoints had it that were written before
    (folder / "racm3.json").write_text(json.dumps(description))
    Checkpoint.load(folder)


def test_there_is_no_pickle_in_a_checkpoint(checkpoint_folder):
    suffixes = {path.suffix for path in checkpoint_folder.rglob("*") if path.is_file()}
    assert suffixes == {".json", ".safetensors"}


def test_everybody_may_read_a_checkpoint(checkpoint_folder):
    """Packages are often installed by one user and used by another."""
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in checkpoint_folder.rglob("*") if path.is_file())


# --- saving and loading -----------------------------------------------------------------------------------------


def test_a_checkpoint_comes_back_as_it_was(checkpoint, checkpoint_folder, tmp_path):
    checkpoint.save(tmp_path / "again")
    again = Checkpoint.load(tmp_path / "again")
    assert again.format == checkpoint.format
    for name, weight in checkpoint.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], weight)
    assert not again.model.training
    assert again.fingerprint == checkpoint.fingerprint == fingerprint(checkpoint_folder)


def test_saving_replaces_the_folder_as_a_whole(checkpoint, tmp_path):
    for _ in range(2):
        checkpoint.save(tmp_path / "model")
        assert not (tmp_path / "model" / "left.json").exists()
        assert [path.name for path in tmp_path.iterdir()] == ["model"]
        (tmp_path / "model" / "left.json").write_text("{}")


def test_saving_never_replaces_what_is_no_checkpoint(checkpoint, tmp_path):
    (tmp_path / "notes").mkdir()
    checkpoint.save(tmp_path / "empty")
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    for place in ("notes", "notes/mine.txt"):
        with pytest.raises(CheckpointError, match="no checkpoint"):
            checkpoint.save(tmp_path / place)
    assert (tmp_path / "notes" / "mine.txt").read_text() == "mine"


def test_a_kill_while_a_checkpoint_is_saved_leaves_the_old_one(checkpoint, checkpoint_folder, tmp_path, monkeypatch):
    shutil.copytree(checkpoint_folder, tmp_path / "model")
    monkeypatch.setattr(model_module, "write_description", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        checkpoint.save(tmp_path / "model")
    assert Checkpoint.load(tmp_path / "model").fingerprint == checkpoint.fingerprint


def test_a_file_that_a_file_manager_leaves_is_no_part_of_a_checkpoint(folder):
    (folder / "image_tokenizer" / ".DS_Store").write_bytes(b"x")
    (folder / "image_tokenizer" / "more").mkdir()
    Checkpoint.load(folder)


def test_bfloat16_weights_come_back_as_float32(checkpoint, folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    assert load_file(folder / "model.safetensors")["lm_head.weight"].dtype == torch.bfloat16
    opened = Checkpoint.load(folder)
    assert {p.dtype for p in opened.model.parameters()} == {torch.float32}
    assert torch.allclose(opened.model.lm_head.weight, checkpoint.model.lm_head.weight, rtol=0.01)
    assert Checkpoint.load(folder, dtype="bfloat16").model.dtype == torch.bfloat16


def test_tied_embeddings_survive(checkpoint, tmp_path):
    vocabulary = checkpoint.vocabulary
    model = build_model(Size(1, 32, 2), vocabulary, tie_embeddings=True)
    Checkpoint(model, checkpoint.text_tokenizer, checkpoint.image_tokenizer, DocumentFormat(vocabulary)).save(
        tmp_path / "tied"
    )
    opened = Checkpoint.load(tmp_path / "tied").model
    assert opened.lm_head.weight is opened.model.embed_tokens.weight
    assert torch.equal(opened.lm_head.weight, model.lm_head.weight)


def test_the_fingerprint_follows_the_content_and_not_the_place(folder, checkpoint):
    assert fingerprint(folder) == checkpoint.fingerprint
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"][0, 0] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert fingerprint(folder) != checkpoint.fingerprint


# --- what is refused --------------------------------------------------------------------------------------------


def refused(folder, error=CheckpointError):
    with pytest.raises(error) as raised:
        Checkpoint.load(folder)
    assert raised.value.hint
    return raised.value.message


@pytest.mark.parametrize(
    "file", ["racm3.json", "tokenizer.json", "config.json", "model.safetensors", "image_tokenizer/config.json"]
)
def test_a_missing_file_is_named(folder, file):
    (folder / file).unlink()
    message = refused(folder, WeightsNotFound)
    assert str((folder / file).parent) in message
    assert file.split("/")[-1].removeprefix("model") in message


@pytest.mark.parametrize("file", ["racm3.json", "tokenizer.json", "config.json", "model.safetensors"])
def test_a_torn_file_is_refused(folder, file):
    content = (folder / file).read_bytes()
    (folder / file).write_bytes(content[: len(content) // 2])
    assert str(folder) in refused(folder)


@pytest.mark.parametrize("content", ["3", "[]", "null", "{}", '{"format_version": 1}', "\x00"])
def test_a_nonsense_description_is_refused(folder, content):
    (folder / "racm3.json").write_text(content)
    assert "racm3.json is damaged" in refused(folder)


@pytest.mark.parametrize(
    "change", [{"document_stride": 0}, {"image_offset": "16"}, {"colour": "red"}, {"vocabulary": {"text_tokens": 280}}]
)
def test_a_wrong_description_is_refused(folder, change):
    found = json.loads((folder / "racm3.json").read_text())
    (folder / "racm3.json").write_text(json.dumps({**found, **change}))
    assert "racm3.json is damaged" in refused(folder)


@pytest.mark.parametrize("change", [{"format_version": 2}, {"control_tokens": ["<pad>"]}])
def test_another_format_version_is_refused(folder, change):
    found = json.loads((folder / "racm3.json").read_text())
    (folder / "racm3.json").write_text(json.dumps({**found, **change}))
    assert "this racm3 reads 1" in refused(folder)


@pytest.mark.parametrize(("part", "named"), [("text_tokens", "tokenizer.json"), ("image_tokens", "image_tokenizer")])
def test_parts_that_were_not_trained_for_each_other_are_refused(folder, part, named):
    found = json.loads((folder / "racm3.json").read_text())
    found["vocabulary"][part] += 1
    (folder / "racm3.json").write_text(json.dumps(found))
    assert f"{named} has" in refused(folder)


def test_a_model_of_another_vocabulary_is_refused(folder):
    model = build_model(Size(1, 32, 2), Vocabulary(280, 25))
    model.save_pretrained(folder)
    assert "model has" in refused(folder)


@pytest.mark.parametrize(
    "asked", [{"_attn_implementation": "some/kernel"}, {"quantization_config": {}}, {"auto_map": {}}]
)
def test_a_configuration_that_asks_for_more_than_a_llama_is_refused(folder, asked):
    """transformers would fetch a kernel, or run code that lies beside the weights."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **asked}))
    assert f"asks for more than a llama: {next(iter(asked))}" in refused(folder)


def test_a_model_of_another_kind_is_refused(folder):
    """Its weights may have the same names; it would be read as what it is not."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "mistral"}))
    assert "is a mistral, not a llama" in refused(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_numbers_are_refused(folder, value):
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 3] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert "NaN or infinite weights in 'model.layers.1.mlp.up_proj.weight'" in refused(folder)


def test_weights_that_are_not_there_are_refused(folder):
    """transformers would go on with random ones."""
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert "lacks weights: model.layers.1.mlp.up_proj.weight" in refused(folder)


def test_a_folder_that_is_none_is_named(tmp_path, monkeypatch):
    with pytest.raises(WeightsNotFound, match="No checkpoint folder at") as raised:
        resolve_folder(str(tmp_path / "nowhere"))
    assert raised.value.hint
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsNotFound, match="'runs/model' is no folder") as raised:
        resolve_folder("runs/model")
    assert "HF_HUB_OFFLINE" in raised.value.hint
    assert refused(tmp_path, WeightsNotFound) == f"No checkpoint in {tmp_path}: racm3.json is missing."


def test_a_hugging_face_id_is_found_in_the_cache(checkpoint_folder, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: str(checkpoint_folder))
    assert resolve_folder("someone/cm3") == checkpoint_folder


def test_dropout_is_for_training_only():
    torch.manual_seed(0)
    model = build_model(Size(1, 32, 2), Vocabulary(256, 8), dropout=0.5).eval()
    ids = torch.from_numpy(np.arange(12))[None]
    assert torch.equal(model(ids).logits, model(ids).logits)


def test_saving_and_loading_draw_no_bars_of_their_own(checkpoint, tmp_path, capfd):
    checkpoint.save(tmp_path / "model")
    Checkpoint.load(tmp_path / "model")
    assert capfd.readouterr() == ("", "")
