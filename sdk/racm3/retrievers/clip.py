"""CLIP as a mixed-modal encoder (paper section 3.1): texts and images of a document, pooled into one vector.

ClipRetriever("ViT-B-32", pretrained="laion2b_s34b_b79k")
ClipRetriever("./checkpoint")                               # a folder that open_clip opens as local-dir
"""

from __future__ import annotations

import logging
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..device import device_named
from ..document import Document, Image, Text
from ..errors import CheckpointError, ConfigError, ModalityError, WeightsNotFound
from ..image import MAX_SIDE
from ..interfaces import Encoder, Retriever
from .clip_weights import ClipSource, find_source, kind_of

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("racm3.retrievers.clip")

PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


@dataclass(frozen=True)
class _Clip:
    """A loaded model with what belongs to it."""

    model: Any
    preprocess: Callable[..., torch.Tensor]
    tokenize: Callable[[list[str]], torch.Tensor]
    special: frozenset[int]
    padding: int
    device: str


class ClipRetriever(Retriever):
    """Any open_clip model. Each part is encoded alone and normalised; the mean within a modality, then across
    modalities, then unit length (method section 2), so that text-only, image-only and mixed queries share one space.

    model: an architecture name ("ViT-B-32"), a folder, or a Hugging Face id ("hf-hub:org/name"). pretrained: for an
    architecture, a tag or a checkpoint file. In a pipeline file, paths are relative to it. pad: pictures are padded to
    square on white, instead of being cropped as open_clip would. Weights are loaded on first use. Texts beyond the
    model's context length are cut.

    Raises `ConfigError`, `WeightsNotFound` or `CheckpointError` when the model is unknown, absent or broken: at the
    latest on first use.
    """

    def __init__(
        self,
        model: str | Path = "ViT-B-32",
        *,
        pretrained: str | Path | None = None,
        device: str = "auto",
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        batch_size: int = 64,
        cache_dir: Path | None = None,
        pad: bool = True,
    ) -> None:
        if dtype not in PRECISIONS:
            raise ConfigError(f"No dtype {dtype!r}.", f"Known: {', '.join(PRECISIONS)}.")
        if batch_size < 1:
            raise ConfigError(f"A batch_size of {batch_size} is too small.", "Give at least 1.")
        self.model, self.pretrained = str(model), None if pretrained is None else str(pretrained)
        self.device, self.dtype = device, dtype
        self.batch_size, self.pad = batch_size, pad
        self.cache_dir = Path(cache_dir) if cache_dir is not None else None
        if pretrained is None and kind_of(self.model)[0] == "architecture":
            find_source(self.model, None, self.cache_dir)  # raises, and says which tags there are
        self._lock = threading.Lock()
        self._loaded: _Clip | None = None

    @cached_property
    def source(self) -> ClipSource:
        """Where configuration and weights lie; fetched first, where they are not on this machine."""
        with _root_logger_left_alone():
            return find_source(self.model, self.pretrained, self.cache_dir)

    @cached_property
    def encoder(self) -> Encoder:
        """The fingerprint covers weights, architecture, tokenizer, preprocessing and pooling, but neither path nor
        dtype. Weights are hashed, not loaded; the hash is remembered by path, size and time of change."""
        return Encoder(self.source.fingerprint(pad=self.pad), self.source.dim)

    @property
    def vision_tower(self) -> Any:
        """open_clip's module for pictures, loaded: for what looks at its layers."""
        return self._load().model.visual

    def encode_document(self, documents: Sequence[Document], *, batch_size: int | None = None) -> np.ndarray:
        """Unit vectors, float32 [n, dim]. Raises `ModalityError` for a document with nothing that can be encoded."""
        return self._encode(documents, batch_size, 0.0, None)

    def encode_query(
        self,
        queries: Sequence[Document],
        *,
        batch_size: int | None = None,
        dropout: float = 0.0,
        rng: np.random.Generator | None = None,
    ) -> np.ndarray:
        """Unit vectors, float32 [n, dim]. Blanks and empty texts are passed over; `ModalityError` if nothing is left.

        dropout: share (0 to 1) of text tokens that is dropped, at least one staying, and of image patches that are
        painted over with the picture's mean colour (paper section 3.2). The same `rng` drops the same, in any batch size.
        """
        if not 0 <= dropout < 1:
            raise ConfigError(f"A dropout of {dropout} is not a share.", "Give a number from 0 up to, but not, 1.")
        if dropout and rng is None:
            raise ConfigError("Query dropout is random, and needs rng.", "Give a numpy.random.Generator.")
        return self._encode(queries, batch_size, dropout, rng)

    def _encode(
        self, documents: Sequence[Document], batch_size: int | None, dropout: float, rng: np.random.Generator | None
    ) -> np.ndarray:
        if not len(documents):
            return np.zeros((0, self.encoder.dim), np.float32)
        texts: list[tuple[int, str]] = []
        images: list[tuple[int, Image]] = []
        for i, document in enumerate(documents):
            texts += [(i, part.text) for part in document.parts if isinstance(part, Text) and part.text.strip()]
            images += [(i, part) for part in document.parts if isinstance(part, Image)]
        seen = {i for i, _ in texts} | {i for i, _ in images}
        for i, document in enumerate(documents):
            if i not in seen:
                raise ModalityError(
                    f"{document!r} has nothing that can be encoded.", "It needs an image, or a text that is not empty."
                )
        size = batch_size or self.batch_size
        # Drawn for every part up front, so that the batch size changes nothing.
        seeds = rng.integers(2**63, size=len(texts) + len(images)) if dropout and rng is not None else None
        pooled = np.zeros((len(documents), self.encoder.dim), np.float64)
        for vectors, owners in (
            (self._encode_texts([t for _, t in texts], size, dropout, seeds), [i for i, _ in texts]),
            (
                self._encode_images(
                    [p for _, p in images], size, dropout, None if seeds is None else seeds[len(texts) :]
                ),
                [i for i, _ in images],
            ),
        ):
            sums, counts = np.zeros_like(pooled), np.zeros((len(documents), 1))
            np.add.at(sums, owners, vectors)
            np.add.at(counts, owners, 1.0)
            pooled += sums / np.maximum(counts, 1.0)
        return _unit(pooled).astype(np.float32)

    def _encode_texts(self, texts: list[str], size: int, dropout: float, seeds: np.ndarray | None) -> np.ndarray:
        """Unit vectors, float64 [n, dim], of texts."""
        import torch

        vectors = [np.zeros((0, self.encoder.dim))]
        for start in range(0, len(texts), size):
            clip = self._load()
            # A lone surrogate is a valid str, but no tokenizer takes it.
            plain = [text.encode("utf-8", "replace").decode("utf-8") for text in texts[start : start + size]]
            tokens = clip.tokenize(plain)  # [B, L]
            if seeds is not None:
                for row, seed in zip(tokens, seeds[start:], strict=False):
                    row[:] = drop_tokens(row, clip.special, clip.padding, dropout, np.random.default_rng(int(seed)))
            with torch.inference_mode():
                vectors.append(clip.model.encode_text(tokens.to(clip.device)).double().cpu().numpy())
        return _unit(np.concatenate(vectors))

    def _encode_images(self, images: list[Image], size: int, dropout: float, seeds: np.ndarray | None) -> np.ndarray:
        """Unit vectors, float64 [n, dim], of images."""
        import torch

        vectors = [np.zeros((0, self.encoder.dim))]
        for start in range(0, len(images), size):
            clip = self._load()
            tensors = [
                clip.preprocess(self._picture(image)) for image in images[start : start + size]
            ]  # [3, S, S] each
            if seeds is not None:
                patch = self._patch_size(tensors[0].shape[-1])
                for tensor, seed in zip(tensors, seeds[start:], strict=False):
                    drop_patches(tensor, patch, dropout, np.random.default_rng(int(seed)))
            batch = torch.stack(tensors).to(clip.device, getattr(torch, self.dtype))  # [B, 3, S, S]
            with torch.inference_mode():
                vectors.append(clip.model.encode_image(batch).double().cpu().numpy())
        return _unit(np.concatenate(vectors))

    def _picture(self, image: Image) -> Any:
        import PIL.Image

        width, height = image.size
        if self.pad and width != height:
            return PIL.Image.fromarray(image.square(min(max(width, height), MAX_SIDE)))
        return image.picture

    def _patch_size(self, size: int) -> int:
        """The side of what dropout paints over: the tower's own patches, or an eighth of the picture."""
        patch = self.source.architecture["vision_cfg"].get("patch_size")
        return int(patch) if isinstance(patch, int) else max(1, size // 8)

    def _load(self) -> _Clip:
        with self._lock:
            if self._loaded is None:
                self._loaded = self._open()
            return self._loaded

    def _open(self) -> _Clip:
        import open_clip
        import torch

        device, source = device_named(self.device), self.source
        cache_dir = str(self.cache_dir) if self.cache_dir else None
        logger.info("loading %s on %s", source.name, device)
        try:
            with warnings.catch_warnings(), _root_logger_left_alone():
                warnings.simplefilter("ignore")  # QuickGELU mismatch: the tag's own configuration decides below
                model, preprocess = open_clip.create_model_from_pretrained(
                    source.name, source.pretrained, precision=PRECISIONS[self.dtype], device=device, cache_dir=cache_dir,
                    weights_only=True, force_quick_gelu=bool(source.preprocessing.get("quick_gelu")),
                )  # fmt: skip
                # Else transformers asks whoever is at the terminal whether to run code that comes with the weights.
                never = {"trust_remote_code": False} if source.tokenizer_of_transformers else {}
                tokenizer = open_clip.get_tokenizer(source.name, cache_dir=cache_dir, **never)
        except FileNotFoundError as error:
            raise WeightsNotFound(f"{source.name} is not complete: {error}.") from error
        except Exception as error:  # torch, safetensors, pickle and tokenizers each raise their own
            raise CheckpointError(
                f"{source.weights} cannot be loaded into {source.name}: {str(error).strip()[:500]}",
                "Weights, configuration and tokenizer must belong together.",
            ) from error
        for name, weight in model.state_dict().items():
            # The causal mask of some towers is made of infinities on purpose.
            if weight.is_floating_point() and "attn_mask" not in name and not bool(torch.isfinite(weight).all()):
                raise CheckpointError(f"{source.weights}: {name} holds numbers that are not finite.")
        model.eval().requires_grad_(False)
        return _Clip(model, preprocess, *_literal(tokenizer), device=device)


@contextmanager
def _root_logger_left_alone() -> Iterator[None]:
    """open_clip logs by `logging.info`, which configures the root logger of a program that has not done so."""
    root, placeholder = logging.getLogger(), logging.NullHandler()
    root.addHandler(placeholder)
    try:
        yield
    finally:
        root.removeHandler(placeholder)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _literal(tokenizer: Any) -> tuple[Callable[[list[str]], torch.Tensor], frozenset[int], int]:
    """A function from texts to ids, in which no text becomes a control token; the control ids; the padding id."""
    inner = getattr(tokenizer, "tokenizer", None)
    if inner is not None:
        inner.split_special_tokens = True
        return tokenizer, frozenset(inner.all_special_ids), int(inner.pad_token_id or 0)

    def tokenize(texts: list[str]) -> torch.Tensor:
        return tokenizer([_spelled_out(text, tokenizer.clean_fn) for text in texts])  # type: ignore[no-any-return]

    return tokenize, frozenset((tokenizer.sot_token_id, tokenizer.eot_token_id)), 0


def _spelled_out(text: str, clean: Callable[[str], str]) -> str:
    """open_clip's own tokenizer reads `<end_of_text>` in a text as its control token, also when it is written
    `&lt;end_of_text&gt;` or in capitals: cleaned until nothing changes, the name is taken apart."""
    for _ in range(8):
        cleaned = clean(text)
        if cleaned == text:
            break
        text = cleaned
    return re.sub(r"<(start_of_text|end_of_text)>", r"< \1 >", text, flags=re.IGNORECASE)


def drop_tokens(
    ids: torch.Tensor, special: frozenset[int], padding: int, share: float, rng: np.random.Generator
) -> torch.Tensor:
    """Token ids [L] with each text token left out with probability `share`, but never all of them.

    What follows moves up, and as much padding is put where the padding begins; control tokens stay.
    """
    import torch

    row = ids.tolist()
    # Behind the end of text there is padding; open_clip's own tokenizer pads with the id of an ordinary token.
    ends = [i for i, token in enumerate(row) if (token != padding if padding in special else token in special)]
    last = max(ends, default=len(row) - 1)
    content = [i for i in range(last + 1) if row[i] not in special]
    dropped = {i for i in content if rng.random() < share}
    if content and len(dropped) == len(content):
        dropped.discard(int(rng.choice(content)))
    kept = [token for i, token in enumerate(row) if i not in dropped]
    end = last + 1 - len(dropped)
    return torch.tensor(kept[:end] + [padding] * len(dropped) + kept[end:], dtype=ids.dtype)


def drop_patches(picture: torch.Tensor, patch: int, share: float, rng: np.random.Generator) -> None:
    """Paint each patch of a picture [3, S, S] over with its mean colour, with probability `share`, in place."""
    colour = picture.mean(dim=(1, 2), keepdim=True)
    for top in range(0, picture.shape[1], patch):
        for left in range(0, picture.shape[2], patch):
            if rng.random() < share:
                picture[:, top : top + patch, left : left + patch] = colour
