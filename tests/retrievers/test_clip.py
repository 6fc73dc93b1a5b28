"""ClipRetriever: pooling, fingerprints, lazy loading, dropout, and what it says when weights are missing or broken."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from racm3.config import load_config
from racm3.document import Document, Image
from racm3.errors import CheckpointError, ConfigError, WeightsNotFound
from racm3.retrievers.clip import ClipRetriever, _literal, drop_patches, drop_tokens
from racm3.retrievers.clip_weights import file_hash, find_source, kind_of
from racm3.testing import RetrieverContract
from racm3.training.clip_checkpoint import END, PADDING, clip_tokenizer, save_clip_checkpoint, with_vocabulary
from racm3.training.text_tokenizer import train_text_tokenizer

TEXTS = ["a red kite over a beach", "a banjo, in Noto style", "grinning face", "flag: Bhutan", "a boat on the sea"]
ARCHITECTURE = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16},
    "text_cfg": {"context_length": 16, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module", autouse=True)
def user_cache(tmp_path_factory):
    """File hashes are remembered in a cache of this test's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A small random CLIP in a folder that open_clip opens."""
    from open_clip.model import CLIP

    folder = tmp_path_factory.mktemp("clip")
    train_text_tokenizer(TEXTS, 300, folder / "text.json")
    tokenizer = clip_tokenizer(folder / "text.json", 16)
    architecture = with_vocabulary(ARCHITECTURE, tokenizer)
    torch.manual_seed(0)
    save_clip_checkpoint(folder / "model", architecture, tokenizer, CLIP(**architecture).state_dict())
    return folder / "model"


@pytest.fixture(scope="module")
def retriever(checkpoint) -> ClipRetriever:
    return ClipRetriever(str(checkpoint), device="cpu")


class TestContract(RetrieverContract):
    """It keeps every promise of the interface."""

    @pytest.fixture(autouse=True)
    def tiny(self, retriever) -> None:
        self.retriever = retriever

    def create(self) -> ClipRetriever:
        return self.retriever


def picture(seed: int, width: int = 32, height: int = 32) -> Image:
    return Image(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_a_folder_in_a_pipeline_file_is_relative_to_the_file(checkpoint, tmp_path):
    file = checkpoint.parent / "p.toml"
    for model, expected in (("model", checkpoint), ("./model", checkpoint), ("ViT-B-32", "ViT-B-32")):
        file.write_text(f'[retriever]\nname = "clip"\nmodel = "{model}"\n[memory]\nname = "faiss"')
        assert load_config(file).retriever.settings["model"] == expected
    weights = checkpoint.parent / "tiny.safetensors"
    weights.touch()
    for pretrained, expected in (("tiny.safetensors", weights), ("laion2b_s34b_b79k", "laion2b_s34b_b79k")):
        file.write_text(f'[retriever]\nname = "clip"\npretrained = "{pretrained}"\n[memory]\nname = "faiss"')
        assert load_config(file).retriever.settings["pretrained"] == expected
    assert ClipRetriever(checkpoint).encoder == ClipRetriever(str(checkpoint)).encoder


def test_loading_leaves_the_root_logger_alone(checkpoint, monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    ClipRetriever(checkpoint, device="cpu").encode_query([Document("a boat")])
    assert logging.getLogger().handlers == []


@pytest.fixture
def copy_of(checkpoint, tmp_path):
    """Copies of the checkpoint, to be damaged."""

    def copy(name: str = "copy") -> Path:
        return Path(shutil.copytree(checkpoint, tmp_path / name))

    return copy


# --- vectors ---------------------------------------------------------------------------------------------------


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def by_open_clip(folder: Path, texts: list[str], images: list[Image]) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors by open_clip alone, without anything of ours."""
    import open_clip

    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    model.eval()
    with torch.no_grad():
        text = model.encode_text(tokenizer(texts), normalize=True).numpy()
        image = model.encode_image(torch.stack([preprocess(i.picture) for i in images]), normalize=True).numpy()
    return text, image


def test_a_part_is_encoded_as_open_clip_does_and_parts_are_pooled_by_modality(checkpoint, retriever):
    one, two = picture(1), picture(2)
    (t1, t2), (i1, i2) = by_open_clip(checkpoint, ["a red kite", "a boat"], [one, two])
    got = retriever.encode_document(
        [
            Document("a red kite"),
            Document(one),
            Document(["a red kite", one]),
            Document([one, "a red kite", two, "a boat"]),
        ]
    )
    expected = [t1, i1, unit((t1 + i1) / 2), unit((t1 + t2) / 2 + (i1 + i2) / 2)]
    np.testing.assert_allclose(got, np.stack(expected), atol=1e-5)
    assert got.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-6)


def test_three_pictures_weigh_as_much_as_one_text(checkpoint, retriever):
    images = [picture(s) for s in (1, 2, 3)]
    (text,), shown = by_open_clip(checkpoint, ["a boat"], images)
    got = retriever.encode_document([Document(["a boat", *images])])[0]
    np.testing.assert_allclose(got, unit(text + shown.mean(0)), atol=1e-5)


def test_pictures_that_are_not_square_are_padded_on_white(checkpoint, retriever):
    wide = picture(1, 64, 32)
    padded = np.full((64, 64, 3), 255, np.uint8)
    padded[16:48] = np.asarray(wide.picture)
    vector = retriever.encode_document([Document(wide)])
    np.testing.assert_allclose(vector, retriever.encode_document([Document(Image(padded))]), atol=1e-5)
    cropped = ClipRetriever(str(checkpoint), pad=False, device="cpu")
    assert np.abs(cropped.encode_document([Document(wide)]) - vector).max() > 1e-3
    assert cropped.encoder.fingerprint != retriever.encoder.fingerprint


def test_long_texts_are_cut_and_short_dtypes_come_close(checkpoint, retriever):
    long, longer = "a boat " * 30, "a boat " * 60
    got = retriever.encode_document([Document(long), Document(longer)])
    np.testing.assert_allclose(got[0], got[1], atol=1e-6)
    half = ClipRetriever(str(checkpoint), dtype="bfloat16", device="cpu")
    documents = [Document(["a red kite", picture(1)])]
    vectors = half.encode_document(documents)
    assert vectors.dtype == np.float32
    assert float(vectors[0] @ retriever.encode_document(documents)[0]) > 0.995


def test_a_text_that_spells_a_control_token_stays_text(checkpoint, retriever):
    tokenize, special, _ = _literal(retriever._load().tokenize)
    ids = tokenize([f"{END} kite {PADDING} kite"])[0].tolist()
    content = ids[: ids.index(max(special))]
    assert len(content) > 8 and not special & set(content)
    spelled, cut = retriever.encode_document([Document(f"a red kite{END} a boat"), Document("a red kite")])
    assert float(spelled @ cut) < 0.9999
    import open_clip

    by_itself = open_clip.get_tokenizer(f"local-dir:{checkpoint}")
    assert by_itself([f"{END} kite {PADDING} kite"])[0].tolist() == ids


@pytest.mark.parametrize(
    "text", ["a <end_of_text> b", "&lt;end_of_text&gt; b", "&amp;amp;amp;lt;END_OF_TEXT&gt;", "<start_of_text>"]
)
def test_nor_does_it_with_the_tokenizer_of_the_openai_models(text):
    from open_clip import SimpleTokenizer

    tokenize, special, _ = _literal(SimpleTokenizer())
    ids = tokenize([text])[0].tolist()
    start, end = min(special), max(special)
    assert ids[0] == start and ids.count(start) == 1 and ids.count(end) == 1


# --- query dropout ---------------------------------------------------------------------------------------------


def test_tokens_are_dropped_and_control_tokens_stay():
    rng, special = np.random.default_rng(0), frozenset((90, 91))
    row = torch.tensor([*range(1, 11), 91, 90, 90, 90])
    lengths = []
    for _ in range(400):
        dropped = drop_tokens(row, special, 90, 0.2, rng).tolist()
        content = [t for t in dropped if t < 90]
        assert len(dropped) == 14 and content == sorted(content) and dropped.count(91) == 1
        assert dropped == content + [91] + [90] * (13 - len(content))
        lengths.append(len(content))
    assert 7.7 < np.mean(lengths) < 8.3
    assert drop_tokens(torch.tensor([5, 91, 90]), special, 90, 0.99, rng).tolist() == [5, 91, 90]
    # The OpenAI tokenizer pads with 0, an ordinary token.
    simple = drop_tokens(torch.tensor([90, 0, 7, 0, 91, 0, 0]), special, 0, 0.5, np.random.default_rng(3)).tolist()
    assert simple[0] == 90 and simple.count(91) == 1 and set(simple[simple.index(91) + 1 :]) == {0}


def test_patches_are_painted_over_with_the_mean_colour():
    image = torch.rand(3, 32, 32)
    dropped = image.clone()
    drop_patches(dropped, 8, 0.2, np.random.default_rng(0))
    patches = lambda x: x.unfold(1, 8, 8).unfold(2, 8, 8).permute(1, 2, 0, 3, 4).reshape(16, -1)  # noqa: E731
    changed = (patches(dropped) != patches(image)).any(1)
    assert 0 < int(changed.sum()) < 10
    colour = image.mean((1, 2)).repeat_interleave(64)
    torch.testing.assert_close(patches(dropped)[changed], colour.expand(int(changed.sum()), -1))


# --- fingerprints ----------------------------------------------------------------------------------------------


def test_the_fingerprint_is_known_without_weights_in_memory_and_does_not_depend_on_the_path(checkpoint, copy_of):
    before = ClipRetriever(str(checkpoint))
    moved = ClipRetriever(str(copy_of("elsewhere")), batch_size=3, dtype="bfloat16")
    assert before.encoder == moved.encoder and before.encoder.dim == 16
    assert before._loaded is None


def test_the_fingerprint_changes_with_weights_configuration_and_tokenizer(checkpoint, copy_of):
    known = {ClipRetriever(str(checkpoint)).encoder.fingerprint}
    weights = copy_of("weights")
    tensors = load_file(weights / "open_clip_model.safetensors")
    tensors["logit_scale"] += 1
    save_file(tensors, weights / "open_clip_model.safetensors")
    architecture, preprocessing, tokenizer = copy_of("architecture"), copy_of("preprocessing"), copy_of("tokenizer")
    for folder, table, key, value in (
        (architecture, "model_cfg", "quick_gelu", True),
        (preprocessing, "preprocess_cfg", "mean", [0, 0, 0]),
    ):
        config = json.loads((folder / "open_clip_config.json").read_text())
        config[table][key] = value
        (folder / "open_clip_config.json").write_text(json.dumps(config))
    (tokenizer / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    for folder in (weights, architecture, preprocessing, tokenizer):
        known.add(ClipRetriever(str(folder)).encoder.fingerprint)
    assert len(known) == 5


def test_a_file_that_changed_is_hashed_again(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    first = file_hash(path)
    assert file_hash(path) == first
    path.write_bytes(b"other")
    assert file_hash(path) != first


def test_importing_and_asking_for_the_encoder_of_a_folder_imports_nothing_heavy(checkpoint):
    code = (
        "import sys; from racm3.retrievers.clip import ClipRetriever;"
        f"ClipRetriever({str(checkpoint)!r}).encoder;"
        "print([m for m in ('torch', 'open_clip', 'transformers', 'huggingface_hub') if m in sys.modules])"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"


# --- what is missing, and what is broken -----------------------------------------------------------------------


def test_an_architecture_needs_weights():
    with pytest.raises(ConfigError, match=r"laion2b_s34b_b79k"):
        ClipRetriever("ViT-B-32")
    with pytest.raises(ConfigError, match=r"Did you mean 'laion2b_s34b_b79k'"):
        _ = ClipRetriever("ViT-B-32", pretrained="laion2b_s34b_b79").encoder
    with pytest.raises(ConfigError, match=r"Did you mean 'ViT-B-32'"):
        ClipRetriever("ViT-B32")


def test_a_checkpoint_file_of_an_architecture_is_hashed(tmp_path):
    (tmp_path / "mine.safetensors").write_bytes(b"not read yet")
    source = find_source("RN50", str(tmp_path / "mine.safetensors"), None)
    assert source.dim == 1024 and source.weights == tmp_path / "mine.safetensors"
    with pytest.raises(CheckpointError):
        ClipRetriever("RN50", pretrained=str(tmp_path / "mine.safetensors"), device="cpu").encode_query([Document("x")])


def test_what_a_model_setting_means(tmp_path, checkpoint):
    assert kind_of("ViT-B/32") == ("architecture", "ViT-B-32")
    assert kind_of("laion/CLIP-ViT-L-14") == ("hub", "laion/CLIP-ViT-L-14")
    assert kind_of("hf-hub:org/name") == ("hub", "org/name")
    assert kind_of(str(checkpoint)) == kind_of(f"local-dir:{checkpoint}") == ("folder", str(checkpoint))
    assert kind_of("./nowhere")[0] == "folder"


def test_a_file_is_no_model_and_is_not_asked_for_on_a_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "red.png").write_bytes(b"")
    with pytest.raises(WeightsNotFound, match="is a file, not a folder"):
        find_source("pictures/red.png", None, None)


def test_missing_weights_are_never_replaced_by_random_ones(copy_of, tmp_path):
    folder = copy_of()
    (folder / "open_clip_model.safetensors").unlink()
    for missing in (folder, tmp_path / "nowhere", tmp_path):
        with pytest.raises(WeightsNotFound) as error:
            ClipRetriever(str(missing)).encode_query([Document("a boat")])
        assert str(missing) in error.value.message and error.value.hint


def test_broken_checkpoints_are_named(copy_of):
    empty, short, sick, config = copy_of("empty"), copy_of("short"), copy_of("sick"), copy_of("config")
    (empty / "open_clip_model.safetensors").write_bytes(b"")
    tensors = load_file(short / "open_clip_model.safetensors")
    save_file({n: w for n, w in tensors.items() if n != "text_projection"}, short / "open_clip_model.safetensors")
    tensors["visual.proj"][0, 0] = float("nan")
    save_file(tensors, sick / "open_clip_model.safetensors")
    (config / "open_clip_config.json").write_text("{}")
    for folder, word in ((empty, "safetensors"), (short, "text_projection"), (sick, "not finite"), (config, "config")):
        with pytest.raises(CheckpointError, match=word):
            ClipRetriever(str(folder), device="cpu").encode_query([Document("a boat")])


def configure(folder: Path, tower: str, **settings: object) -> None:
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"][tower].update(settings)
    (folder / "open_clip_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("tower", "settings"),
    [("text_cfg", {"hf_model_name": "xlm-roberta-base"}), ("vision_cfg", {"timm_model_name": "hf-hub:timm/resnet18"})],
)
def test_nothing_is_fetched_for_a_folder(copy_of, tower, settings):
    folder = copy_of()
    configure(folder, tower, **settings)
    with pytest.raises(ConfigError, match=f"{tower[:4]}.* tower of .*Hugging Face"):
        _ = ClipRetriever(str(folder)).encoder


@pytest.mark.parametrize("way", ["asked for", "tokenizer", "configuration"])
def test_code_that_comes_with_weights_is_never_run(copy_of, monkeypatch, way):
    folder = copy_of()
    monkeypatch.setattr("builtins.input", lambda *prompt: "y")  # of somebody at a terminal who is asked
    own = f"open({str(folder / 'run')!r}, 'w')\nfrom transformers import PreTrainedTokenizerFast as Own, PretrainedConfig as Config\n"
    (folder / "own.py").write_text(own)
    if way == "configuration":
        (folder / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}))
    else:
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        settings |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": [None, "own.Own"]}}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    if way == "asked for":
        configure(folder, "text_cfg", tokenizer_kwargs={"trust_remote_code": True})
    with contextlib.suppress(CheckpointError):  # transformers may do without
        ClipRetriever(str(folder), device="cpu").encode_query([Document("a boat")])
        assert way != "asked for"
    assert not (folder / "run").exists()


@pytest.mark.parametrize("asked", [{"trust_remote_code": True}, {"bpe_path": "/x"}, {"reduction_mask": "syntax"}])
def test_what_a_configuration_may_not_give_a_tokenizer(copy_of, asked):
    folder = copy_of()
    configure(folder, "text_cfg", tokenizer_kwargs=asked)
    with pytest.raises(CheckpointError, match=f"{next(iter(asked))}, and code .* never trusted"):
        _ = ClipRetriever(str(folder)).encoder


def test_offline_a_model_that_is_not_in_the_cache_is_not_found(tmp_path):
    code = (
        "from racm3.retrievers.clip import ClipRetriever; from racm3.errors import WeightsNotFound; from pathlib import Path\n"
        "for settings in ({'model': 'hf-hub:no/such'}, {'model': 'ViT-B-32', 'pretrained': 'laion2b_s34b_b79k'}):\n"
        "    try: ClipRetriever(**settings, cache_dir=Path('cache')).encoder\n"
        "    except WeightsNotFound as error: print('HF_HUB_OFFLINE' in error.hint)\n"
    )
    import os

    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    ).stdout  # fmt: skip
    assert printed.split() == ["True", "True"]


def test_threads_share_one_loaded_model(checkpoint):
    from concurrent.futures import ThreadPoolExecutor

    fresh = ClipRetriever(str(checkpoint), device="cpu")
    with ThreadPoolExecutor(4) as pool:
        loaded = list(pool.map(lambda _: fresh._load(), range(4)))
    assert all(clip is loaded[0] for clip in loaded)
