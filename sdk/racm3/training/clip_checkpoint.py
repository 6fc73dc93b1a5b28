"""A CLIP checkpoint folder that open_clip itself opens, as `local-dir:PATH`.

`open_clip_config.json`, `open_clip_model.safetensors`, `tokenizer.json` and `tokenizer_config.json`. The text tower is
causal and pools at the end-of-text token, so that padding to its right changes nothing.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Tokenizer, processors

if TYPE_CHECKING:
    import torch

PADDING, END = "<|padding|>", "<|end_of_text|>"
# What pictures are normalised with: from 0..1 to -1..1. Bilinear, as in training.
MEAN = STD = (0.5, 0.5, 0.5)
INTERPOLATION = "bilinear"


def clip_tokenizer(path: str | Path, context_length: int) -> Tokenizer:
    """A text tokenizer with padding and end of text added: ids of exactly `context_length` tokens.

    A text that spells one of the two out gives ordinary tokens (`encode_special_tokens`). Longer texts are cut, and
    still end in the end-of-text token.
    """
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.add_special_tokens([AddedToken(PADDING, special=True), AddedToken(END, special=True)])
    padding, end = tokenizer.token_to_id(PADDING), tokenizer.token_to_id(END)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, end)])  # type: ignore[assignment]
    tokenizer.enable_padding(pad_id=padding, pad_token=PADDING, length=context_length)
    tokenizer.enable_truncation(context_length)
    tokenizer.encode_special_tokens = True
    return tokenizer


def with_vocabulary(architecture: Mapping[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
    """An open_clip model configuration whose text tower fits a tokenizer of `clip_tokenizer`."""
    filled: dict[str, Any] = copy.deepcopy(dict(architecture))
    filled["text_cfg"].update(
        context_length=len(tokenizer.encode("").ids), vocab_size=tokenizer.get_vocab_size(),
        pad_id=tokenizer.token_to_id(PADDING), eos_id=tokenizer.token_to_id(END), pool_type="eos",
        hf_tokenizer_name="tokenizer.json",
    )  # fmt: skip
    return filled


def save_clip_checkpoint(
    folder: str | Path, architecture: Mapping[str, Any], tokenizer: Tokenizer, weights: Mapping[str, torch.Tensor]
) -> None:
    """Write a folder for `open_clip.create_model_from_pretrained("local-dir:FOLDER")` and `open_clip.get_tokenizer`.

    architecture: open_clip's `model_cfg`, as `with_vocabulary` gives it; weights: the model's state.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    preprocessing = {
        "size": architecture["vision_cfg"]["image_size"], "mean": MEAN, "std": STD, "interpolation": INTERPOLATION,
    }  # fmt: skip
    _write_json(folder / "open_clip_config.json", {"model_cfg": dict(architecture), "preprocess_cfg": preprocessing})
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "pad_token": PADDING, "eos_token": END, "padding_side": "right",
        "model_max_length": architecture["text_cfg"]["context_length"], "split_special_tokens": True,
        "clean_up_tokenization_spaces": False,
    }  # fmt: skip
    _write_json(folder / "tokenizer_config.json", settings)
    # Contiguous: safetensors refuses the channels-last layout that training uses.
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in weights.items()}
    weights_file = folder / "open_clip_model.safetensors"
    save_file(plain, weights_file, metadata={"format": "pt"})
    weights_file.chmod(0o644)  # safetensors lets nobody else read it, which a bundle must allow


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
