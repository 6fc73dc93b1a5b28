"""The model: a stock Llama over the vocabulary, and the checkpoint folder that the ecosystem reads without us.

checkpoint/
  config.json, model.safetensors     a LlamaForCausalLM: `AutoModelForCausalLM.from_pretrained(checkpoint)`
  tokenizer.json                     text alone: `Tokenizer.from_file`
  image_tokenizer/                   a diffusers `VQModel`
  racm3.json                         what is ours: control and image token ids, positions, format version
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...durable import replaced_folder
from ...errors import CheckpointError, RACM3Error, WeightsNotFound, nearest
from .document_format import DocumentFormat
from .image_tokenizer import ImageTokenizer
from .vocabulary import CONTROL, Vocabulary, load_text_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import LlamaForCausalLM

FORMAT_VERSION = 1
DESCRIPTION = "racm3.json"
_COPY_AGAIN = "Copy the whole checkpoint folder again."


@dataclass(frozen=True)
class Size:
    """Depth and width of a model. FFN width is two thirds of 4x, as SwiGLU has three matrices in place of two."""

    layers: int
    width: int
    heads: int
    learning_rate: float = 1e-3  # AdamW's peak

    @property
    def feed_forward(self) -> int:
        return -(-8 * self.width // 3 // 16) * 16

    @property
    def matrices(self) -> int:
        """Weights in the matrices of one layer."""
        return 4 * self.width**2 + 3 * self.width * self.feed_forward

    def parameters(self, vocabulary: int, *, tie_embeddings: bool = True) -> int:
        """Parameters of a model over so many tokens."""
        embeddings = vocabulary * self.width * (1 if tie_embeddings else 2)
        return self.layers * (self.matrices + 2 * self.width) + self.width + embeddings


# The names count parameters, tied embeddings of some 58,000 tokens included. Depth, width and learning rate: 2.7b as in
# RA-CM3; 350m, 760m and 7b as in CM3Leon (arXiv 2309.02591); 125m as in GPT-3; the two smaller ones are ours.
SIZES = {
    "tiny": Size(6, 256, 4, 1e-3),
    "small": Size(12, 512, 8, 1e-3),
    "125m": Size(12, 768, 12, 6e-4),
    "350m": Size(24, 1024, 16, 6e-4),
    "760m": Size(24, 1536, 16, 5e-4),
    "2.7b": Size(32, 2560, 32, 1e-4),
    "7b": Size(32, 4096, 32, 1.2e-4),
}


def size_named(name: str) -> Size:
    """A size by its name (the paper's 2.7b, CM3Leon's 350m, 760m and 7b, and smaller ones)."""
    if name not in SIZES:
        raise CheckpointError(f"No size named '{name}'. There are: {', '.join(SIZES)}.", nearest(name, SIZES))
    return SIZES[name]


def build_model(
    size: Size, vocabulary: Vocabulary, *, max_positions: int = 4096, dropout: float = 0.0, tie_embeddings: bool = False
) -> LlamaForCausalLM:
    """A new Llama, its weights drawn from torch's global random state."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary.size, hidden_size=size.width, intermediate_size=size.feed_forward,
        num_hidden_layers=size.layers, num_attention_heads=size.heads, num_key_value_heads=size.heads,
        max_position_embeddings=max_positions, tie_word_embeddings=tie_embeddings, attention_dropout=dropout,
        pad_token_id=vocabulary.control("<pad>"), bos_token_id=vocabulary.control("<s>"),
        eos_token_id=vocabulary.control("</s>"),
    )  # fmt: skip
    config._attn_implementation = "sdpa"
    return LlamaForCausalLM(config)


@dataclass
class Checkpoint:
    """A model with everything that is needed to use it."""

    model: Any  # a LlamaForCausalLM
    text_tokenizer: Tokenizer
    image_tokenizer: ImageTokenizer
    format: DocumentFormat
    fingerprint: str = ""

    @property
    def vocabulary(self) -> Vocabulary:
        return self.format.vocabulary

    def save(self, folder: str | Path) -> None:
        """Write the checkpoint folder; an existing one is replaced as a whole. `CheckpointError` for a folder or a file that
        is something else."""
        folder = Path(folder)
        if folder.exists() and not (folder / DESCRIPTION).is_file() and not _is_empty(folder):
            raise CheckpointError(f"{folder} is there, and no checkpoint that could be replaced.", "Give a new folder.")
        with replaced_folder(folder) as new:
            with _no_progress_bars():
                self.model.save_pretrained(new, safe_serialization=True)
            self.text_tokenizer.save(str(new / "tokenizer.json"))
            self.image_tokenizer.save(new / "image_tokenizer")
            write_description(new, self.format)
            for weights in new.rglob("*.safetensors"):
                weights.chmod(0o644)  # safetensors lets nobody else read it, which a bundle must allow

    @classmethod
    def load(cls, folder: str | Path, *, device: str = "cpu", dtype: str = "float32") -> Checkpoint:
        """Open a checkpoint folder. `WeightsNotFound`: something is missing; `CheckpointError`: it does not fit together."""
        import torch
        from transformers import LlamaForCausalLM

        folder = Path(folder)
        format = read_description(folder)
        text_tokenizer = load_text_tokenizer(folder / "tokenizer.json")
        image_tokenizer = ImageTokenizer.load(folder / "image_tokenizer", device=device)
        if not (folder / "config.json").is_file():
            raise WeightsNotFound(f"No model in {folder}: config.json is missing.", "Give a checkpoint folder.")
        if not list(folder.glob("*.safetensors")):
            raise WeightsNotFound(
                f"No weights in {folder}: there is no .safetensors file.", "Give a checkpoint folder."
            )
        _check_config(folder)
        try:
            with _no_progress_bars():
                opened: Any = LlamaForCausalLM.from_pretrained(
                    folder, local_files_only=True, use_safetensors=True, dtype=getattr(torch, dtype),
                    attn_implementation="sdpa", output_loading_info=True,
                )  # fmt: skip
        except Exception as error:
            raise CheckpointError(f"The model in {folder} cannot be read: {error}", _COPY_AGAIN) from error
        model, loaded = opened
        if loaded["missing_keys"]:  # transformers warns, and goes on with random weights
            missing = ", ".join(sorted(loaded["missing_keys"])[:3])
            raise CheckpointError(f"The model in {folder} lacks weights: {missing}.", _COPY_AGAIN)
        _check_parts(folder, format.vocabulary, model, text_tokenizer, image_tokenizer)
        return cls(model.to(device).eval(), text_tokenizer, image_tokenizer, format, fingerprint(folder))


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """transformers draws bars of its own on stderr, in the middle of ours."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def write_description(folder: Path, format: DocumentFormat) -> None:
    """Write `racm3.json`, once the other parts are there: it knows them by their hashes."""
    description = {
        "format_version": FORMAT_VERSION, "control_tokens": list(CONTROL), "parts": _hashes(folder), **asdict(format)
    }  # fmt: skip
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n")


def read_description(folder: Path) -> DocumentFormat:
    """Read `racm3.json`."""
    path = folder / DESCRIPTION
    if not path.is_file():
        raise WeightsNotFound(f"No checkpoint in {folder}: racm3.json is missing.", "Give a folder that racm3 trained.")
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        version, control, _ = found.pop("format_version"), found.pop("control_tokens"), found.pop("parts", None)
        if version != FORMAT_VERSION or tuple(control) != CONTROL:
            raise CheckpointError(
                f"{path} has format version {version}; this racm3 reads {FORMAT_VERSION}.", "Install a matching racm3."
            )
        format = DocumentFormat(Vocabulary(**found.pop("vocabulary")), **found)
        numbers = {**asdict(format), **asdict(format.vocabulary)}
        del numbers["vocabulary"]
        if wrong := [name for name, number in numbers.items() if type(number) is not int or number < 1]:
            raise ValueError(f"{wrong[0]} is {numbers[wrong[0]]!r}")
        return format
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}", _COPY_AGAIN) from error


def _hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of the parts that any other of the same size would replace unnoticed."""
    inside = folder / "image_tokenizer"
    files = {
        "tokenizer.json": [folder / "tokenizer.json"],
        "image_tokenizer": [inside / "config.json", *sorted(inside.glob("*.safetensors"))],
    }
    return {part: _sha256(paths).hexdigest() for part, paths in files.items()}


def _sha256(paths: Sequence[Path]) -> hashlib._Hash:
    """Of files one after another, as if they were one."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    return digest


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


def fingerprint(folder: Path) -> str:
    """SHA-256 over the files of a checkpoint, the same wherever the folder lies."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.suffix in (".json", ".safetensors")):
        digest.update(path.relative_to(folder).as_posix().encode())
        digest.update(_sha256([path]).digest())
    return digest.hexdigest()


def _check_config(folder: Path) -> None:
    """What a configuration may make transformers do besides: other models, kernels and quantisers, some of them fetched."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind = config.get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"The model in {folder} cannot be read: config.json: {error}", _COPY_AGAIN) from error
    if kind != "llama":
        raise CheckpointError(f"The model in {folder} is a {kind}, not a llama.", _COPY_AGAIN)
    if odd := sorted(
        {"_attn_implementation", "attn_implementation", "auto_map", "quantization_config"} & config.keys()
    ):
        raise CheckpointError(f"The model in {folder} asks for more than a llama: {', '.join(odd)}.", _COPY_AGAIN)


def _check_parts(folder: Path, vocabulary: Vocabulary, model: Any, text: Tokenizer, image: ImageTokenizer) -> None:
    """The parts of a checkpoint must have been trained for each other."""
    import torch

    mismatches = {
        "tokenizer.json": (text.get_vocab_size(), vocabulary.text_tokens),
        "image_tokenizer": (image.codes, vocabulary.image_tokens),
        "model": (model.config.vocab_size, vocabulary.size),
    }
    known = json.loads((folder / "racm3.json").read_text()).get("parts") or {}
    for part, digest in _hashes(folder).items():
        if known.get(part, digest) != digest:
            raise CheckpointError(
                f"The parts of {folder} do not belong together: {part} is not the one that the model was trained with.",
                "Copy the whole checkpoint folder from one training run.",
            )
    for part, (found, expected) in mismatches.items():
        if found != expected:
            raise CheckpointError(
                f"The parts of {folder} do not belong together: {part} has {found} tokens, racm3.json says {expected}.",
                "Copy the whole checkpoint folder from one training run.",
            )
    for name, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            raise CheckpointError(f"The model in {folder} has NaN or infinite weights in '{name}'.", "Train it again.")


def resolve_folder(checkpoint: str) -> Path:
    """A checkpoint folder as it is, or a Hugging Face id, fetched (or found in the cache under `HF_HUB_OFFLINE`)."""
    if Path(checkpoint).is_dir():
        return Path(checkpoint)
    if checkpoint.count("/") != 1 or checkpoint.startswith((".", "/", "~")):
        raise WeightsNotFound(
            f"No checkpoint folder at {checkpoint}.", "Give a folder, or a Hugging Face id 'org/name'."
        )
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(checkpoint, allow_patterns=["*.json", "*.safetensors"]))
    except RACM3Error:
        raise
    except Exception as error:
        raise WeightsNotFound(
            f"'{checkpoint}' is no folder, and it could not be had from the Hugging Face hub: {error}",
            "Give a folder, check the id, or unset HF_HUB_OFFLINE.",
        ) from error
