"""Documents and hits as plain values for JSON, and documents back from these."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from .document import Blank, Document, Image, MaskedImage, MaskedText, Part, Text
from .interfaces import Hit, Skip

if TYPE_CHECKING:
    import numpy as np


def document_to_json(document: Document, *, images: bool = False) -> dict[str, Any]:
    """A document as plain values. images: pictures as base64, not only their hashes."""
    return {
        "id": document.id,
        "parts": parts_to_json(document.parts, images=images),
        "metadata": dict(document.metadata),
    }


def parts_to_json(parts: Iterable[Part], *, images: bool = False) -> list[dict[str, Any]]:
    """Parts of a document as plain values: {"text": ...}, {"image": {...}} or {"blank": ...}."""
    made: list[dict[str, Any]] = []
    for part in parts:
        if isinstance(part, Text):
            made.append({"text": part.text})
        elif isinstance(part, MaskedText):
            made.append({"blank": "text", "before": part.before, "after": part.after})
        elif isinstance(part, MaskedImage):
            inside = parts_to_json([part.image], images=images)[0]
            if images:
                inside["mask"] = base64.b64encode(_png(part.mask)).decode("ascii")
            made.append({"blank": "image", **inside, "masked_pixels": int(part.mask.sum())})
        elif isinstance(part, Blank):
            made.append({"blank": part.modality})
        else:
            image = {"content_hash": part.content_hash}
            if images:
                image |= {"media_type": _media_type(part), "base64": base64.b64encode(part.data).decode("ascii")}
            made.append({"image": image})
    return made


def document_from_json(value: Mapping[str, Any]) -> Document:
    """The document that `document_to_json(document, images=True)` described, equal to it."""
    parts: list[Part] = []
    for part in value["parts"]:
        if "text" in part:
            parts.append(Text(part["text"]))
        elif "before" in part:
            parts.append(MaskedText(part["before"], part["after"]))
        elif "mask" in part:
            parts.append(MaskedImage(_image_from_json(part["image"]), _mask(base64.b64decode(part["mask"]))))
        elif "blank" in part:
            parts.append(Blank(part["blank"]))
        else:
            parts.append(_image_from_json(part["image"]))
    return Document(parts, id=value["id"], metadata=value["metadata"])


def _image_from_json(image: Mapping[str, str]) -> Image:
    return Image.restore(base64.b64decode(image["base64"]), image["content_hash"])


def _png(mask: np.ndarray) -> bytes:
    """A mask as a picture of one bit a pixel."""
    import PIL.Image

    buffer = io.BytesIO()
    PIL.Image.fromarray(mask).save(buffer, "PNG")
    return buffer.getvalue()


def _mask(png: bytes) -> np.ndarray:
    import numpy as np
    import PIL.Image

    with PIL.Image.open(io.BytesIO(png), formats=["PNG"]) as opened:
        return np.asarray(opened.convert("1"), bool)


def hit_to_json(hit: Hit, *, images: bool = False) -> dict[str, Any]:
    """A hit as plain values: the document, with its score."""
    return {"score": finite(hit.score), **document_to_json(hit.document, images=images)}


def skip_to_json(skip: Skip) -> dict[str, Any]:
    """A candidate that was passed over as plain values."""
    return {
        "id": skip.hit.id,
        "score": finite(skip.hit.score),
        "reason": skip.reason,
        "because_of": skip.because_of,
    }


def _media_type(image: Image) -> str:
    import PIL.Image

    with PIL.Image.open(io.BytesIO(image.data)) as opened:
        return PIL.Image.MIME.get(opened.format or "", "application/octet-stream")


def finite(value: float | None) -> float | None:
    """JSON has no infinities."""
    return float(value) if value is not None and math.isfinite(value) else None
