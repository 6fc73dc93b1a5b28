"""Where a CLIP model's configuration and weights come from, and the fingerprint that tells two of them apart.

A folder or a Hugging Face id is asked for its files alone: open_clip, and with it torch, is imported only for an
architecture name.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, ConfigError, WeightsNotFound, nearest

# Raise it whenever the same weights would give other vectors: another way of pooling, padding or cleaning.
POOLING = "unit parts, mean within a modality, mean across modalities, unit; 1"
CONFIG = "open_clip_config.json"
# The order in which open_clip looks for weights in a folder.
WEIGHTS = (
    "open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth", "model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth",
)  # fmt: skip
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt", "vocab.txt",
    "tokenizer.model", "sentencepiece.bpe.model", "spiece.model",
)  # fmt: skip
TOKENIZER_SETTINGS = frozenset({"clean", "language", "strip_sep_token"})  # that a configuration may give


@dataclass(frozen=True)
class ClipSource:
    """A model as open_clip names it, with its configuration and the file that holds its weights.

    name: "local-dir:PATH", "hf-hub:ORG/NAME" or an architecture name, the last with `pretrained`, a tag or a file.
    """

    name: str
    pretrained: str | None
    architecture: dict[str, Any]
    preprocessing: dict[str, Any]
    weights: Path
    tokenizer: tuple[Path, ...] = ()

    @property
    def dim(self) -> int:
        return int(self.architecture["embed_dim"])

    @property
    def tokenizer_of_transformers(self) -> bool:
        """Whether its tokenizer is one of transformers, and not open_clip's own."""
        return bool(self.architecture["text_cfg"].get("hf_tokenizer_name"))

    def fingerprint(self, *, pad: bool) -> str:
        """SHA-256 over contents: weights, architecture, tokenizer, preprocessing and pooling; no path takes part."""
        contents = {
            "weights": file_hash(self.weights), "tokenizer": [file_hash(path) for path in self.tokenizer],
            "architecture": self.architecture, "preprocessing": self.preprocessing, "pad": pad, "pooling": POOLING,
        }  # fmt: skip
        return hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()


def find_source(model: str, pretrained: str | None, cache_dir: Path | None) -> ClipSource:
    """Look a model up; weights that are not on this machine are fetched, but nothing is for a local folder.

    Raises `ConfigError` for a name that means nothing, `WeightsNotFound` when the weights cannot be had, and
    `CheckpointError` for a folder whose configuration cannot be read.
    """
    kind, name = kind_of(model)
    if kind == "folder":
        return _from_folder(Path(name))
    if kind == "hub":
        return _from_hub(name, cache_dir)
    return _from_architecture(name, pretrained, cache_dir)


def kind_of(model: str) -> tuple[str, str]:
    """What a model setting means: ("folder", path), ("hub", "org/name") or ("architecture", name)."""
    if model.startswith("local-dir:"):
        return "folder", model.removeprefix("local-dir:")
    if model.startswith("hf-hub:"):
        return "hub", model.removeprefix("hf-hub:")
    path = Path(model).expanduser()
    if path.is_dir() or path.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1:
        return "folder", str(path)
    if "/" in model and path.exists():  # a file, which is no id of somebody's model
        return "folder", str(path)
    # open_clip takes "ViT-B/32" for "ViT-B-32"; no organisation is called that way.
    if re.fullmatch(r"[\w.-]+/[\w.-]+", model) and not re.fullmatch(
        r"(ViT|RN|convnext|coca|EVA)[\w.-]*/[\w.-]+", model
    ):
        return "hub", model
    return "architecture", model.replace("/", "-")


def _from_folder(folder: Path) -> ClipSource:
    if not folder.is_dir():
        what = f"{folder} is a file, not a folder." if folder.exists() else f"There is no folder {folder}."
        raise WeightsNotFound(what, "Give a folder with open_clip_config.json and weights.")
    if not (folder / CONFIG).is_file():
        raise WeightsNotFound(f"{folder} holds no {CONFIG}.", "Give a folder that open_clip can open as local-dir.")
    config = _read_config(folder / CONFIG)
    elsewhere = {
        "text": config["model_cfg"]["text_cfg"].get("hf_model_name"),
        "vision": ":" in str(config["model_cfg"]["vision_cfg"].get("timm_model_name")),  # timm's own models have none
    }
    for tower in [tower for tower, named in elsewhere.items() if named]:
        raise ConfigError(
            f"The {tower} tower of {folder} is built from a configuration on Hugging Face, and a local folder is never "
            "completed from the network.",
            "Give the model's Hugging Face id instead (hf-hub:org/name); its cache works offline.",
        )
    found = {path.name: path for suffix in ("safetensors", "bin", "pth") for path in sorted(folder.glob(f"*.{suffix}"))}
    if not found:
        raise WeightsNotFound(f"{folder} holds no weights.", f"Expected {WEIGHTS[0]} there.")
    weights = next((found[name] for name in WEIGHTS if name in found), next(iter(found.values())))
    tokenizer = tuple(folder / name for name in TOKENIZER_FILES if (folder / name).is_file())
    return ClipSource(
        f"local-dir:{folder}", None, config["model_cfg"], config.get("preprocess_cfg", {}), weights, tokenizer
    )


def _from_hub(name: str, cache_dir: Path | None) -> ClipSource:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

    def fetch(filename: str) -> Path:
        return Path(hf_hub_download(name, filename, cache_dir=str(cache_dir) if cache_dir else None))

    hint = "Check the id and the network; with HF_HUB_OFFLINE=1 only what is in the cache is found."
    try:
        config = _read_config(fetch(CONFIG))
    except (HfHubHTTPError, EntryNotFoundError, HFValidationError, OSError) as error:
        raise WeightsNotFound(f"{name} cannot be had from Hugging Face: {_first_line(error)}.", hint) from error
    for filename in (
        "open_clip_model.safetensors",
        "open_clip_pytorch_model.safetensors",
        "open_clip_pytorch_model.bin",
    ):
        try:
            weights = fetch(filename)
        except (HfHubHTTPError, EntryNotFoundError, OSError):
            continue
        return ClipSource(f"hf-hub:{name}", None, config["model_cfg"], config.get("preprocess_cfg", {}), weights)
    raise WeightsNotFound(f"{name} holds no open_clip weights.", hint)


def _from_architecture(name: str, pretrained: str | None, cache_dir: Path | None) -> ClipSource:
    import open_clip
    from open_clip import pretrained as tags

    architecture = open_clip.get_model_config(name)
    if architecture is None:
        raise ConfigError(
            f"open_clip has no architecture {name!r}. {nearest(name, open_clip.list_models())}".strip(),
            "Give an architecture name, a folder, or a Hugging Face id (hf-hub:org/name).",
        )
    known = open_clip.list_pretrained_tags_by_model(name)
    if pretrained is None:
        raise ConfigError(
            f"{name!r} is an architecture: which of its weights, pretrained must say. Known: {', '.join(known) or 'none'}.",
            "Give one of these tags, or a checkpoint file.",
        )
    preprocessing: dict[str, Any] = {}
    if pretrained.lower() in {tag.lower() for tag in known}:
        config = tags.get_pretrained_cfg(name, pretrained)
        if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON") and not config.get("hf_hub"):
            raise WeightsNotFound(f"{name} {pretrained} is not on Hugging Face, and HF_HUB_OFFLINE is set.")
        try:
            path = Path(tags.download_pretrained(config, cache_dir=str(cache_dir) if cache_dir else None))
        except Exception as error:  # urllib, huggingface_hub and open_clip each raise their own
            raise WeightsNotFound(
                f"The weights {pretrained!r} of {name} cannot be had: {_first_line(error)}.",
                "Check the network; with HF_HUB_OFFLINE=1 only what is in the cache is found.",
            ) from error
        preprocessing = {key: value for key, value in config.items() if key not in ("url", "hf_hub", "file")}
    else:
        path = Path(pretrained).expanduser()
        if not path.is_file():
            raise ConfigError(
                f"{name} has no weights {pretrained!r}, and there is no such file. Known: {', '.join(known) or 'none'}. "
                f"{nearest(pretrained, known)}".strip()
            )
        pretrained = str(path)
    return ClipSource(name, pretrained, architecture, preprocessing, path)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        model = config["model_cfg"]
        int(model["embed_dim"]), dict(model["vision_cfg"])
        asked = dict(dict(model["text_cfg"]).get("tokenizer_kwargs") or {})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is not an open_clip configuration: {error!r}.") from error
    # open_clip hands these on; by others code that lies beside the weights is run, or a file opened or fetched.
    if odd := sorted(asked.keys() - TOKENIZER_SETTINGS):
        raise CheckpointError(
            f"{path} gives its tokenizer {', '.join(odd)}, and code or files that come with weights are never trusted.",
            f"Take it out, if the tokenizer works without. Known: {', '.join(sorted(TOKENIZER_SETTINGS))}.",
        )
    return config


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")


def file_hash(path: Path) -> str:
    """SHA-256 of a file, remembered in the user's cache by path, size and time of change."""
    import platformdirs

    path = path.resolve()
    status = path.stat()
    key = f"{path}|{status.st_size}|{status.st_mtime_ns}"
    store = platformdirs.user_cache_path("racm3") / "file-hashes.json"
    try:
        known = json.loads(store.read_text())
    except (OSError, ValueError):
        known = {}
    if not isinstance(known, dict) or not isinstance(known.get(key), str):
        with path.open("rb") as file:
            known = {**(known if isinstance(known, dict) else {}), key: hashlib.file_digest(file, "sha256").hexdigest()}
        _remember(store, known)
    return str(known[key])


def _remember(store: Path, known: dict[str, str]) -> None:
    """Write the cache in one step. A cache that cannot be written is only slow."""
    try:
        store.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=store.parent, prefix=".file-hashes-")
        with os.fdopen(handle, "w") as file:
            json.dump(known, file)
        os.replace(temporary, store)
    except OSError:
        pass
