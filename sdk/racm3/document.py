"""Documents: an ordered mix of text and images, and the prompts made of them (paper section 3).

    Document(["a red kite over a beach", Image("kite.png")])     # one picture with its caption
    Document(["a red kite", Blank("image")])                      # a prompt: draw this
    Document([MaskedImage(Image("kite.png"), (0, 0, 64, 64))])    # a prompt: draw this region anew

Documents and their parts are immutable. Each knows a `content_hash`, so that the same content is recognised anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeAlias

from .blanks import Blank, MaskedImage, MaskedText, Modality
from .errors import InvalidDocument
from .image import Image, sha256

LONGEST_NUMBER = 4096  # bits of an int in metadata

Scalar: TypeAlias = str | int | float | bool | None
Metadata: TypeAlias = Mapping[str, Scalar | Sequence[Scalar]]


class Text:
    """A piece of text. It is data: nothing in it is ever read as markup or as a control token."""

    modality: Modality = "text"
    __slots__ = ("_hash", "text")
    text: str
    _hash: str

    def __init__(self, text: str) -> None:
        if not isinstance(text, str):
            raise InvalidDocument(f"A Text holds a str, not {type(text).__name__}.")
        object.__setattr__(self, "text", text)
        object.__setattr__(self, "_hash", sha256(b"text", text.encode("utf-8", "surrogatepass")))

    @property
    def content_hash(self) -> str:
        """SHA-256 of the text, as hex."""
        return self._hash

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("Text is immutable.")

    def __reduce__(self) -> tuple[Any, ...]:
        return Text, (self.text,)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Text) and other.text == self.text

    def __hash__(self) -> int:
        return hash(self._hash)

    def __repr__(self) -> str:
        return f"Text({self.text!r})"


Part: TypeAlias = Text | Image | Blank


class Document:
    """An ordered mix of `Text` and `Image` parts; with a `Blank` among them it is a prompt.

    parts: one part or several; a str stands for a Text. id: defaults to the content hash. metadata: str, int, finite
    float, bool, None and flat lists of them under str keys; anything else is an `InvalidDocument`.
    """

    def __init__(
        self, parts: Part | str | Iterable[Part | str], *, id: str | None = None, metadata: Metadata | None = None
    ) -> None:
        if isinstance(parts, (str, Text, Image, Blank)):
            parts = [parts]
        if not isinstance(parts, Iterable):
            raise InvalidDocument(f"A document is made of parts, not {type(parts).__name__}.", "Document([...])")
        made = tuple(Text(part) if isinstance(part, str) else part for part in parts)
        if not made:
            raise InvalidDocument("A document needs at least one part.", "Give a Text, an Image or a Blank.")
        for part in made:
            if not isinstance(part, (Text, Image, Blank)):
                kind = f"{type(part).__module__}.{type(part).__qualname__}".removeprefix("builtins.")
                raise InvalidDocument(
                    f"A part of a document is a str, Text, Image or Blank, not {kind}.",
                    "A picture: racm3.Image(path, bytes, PIL image or array).",
                )
        if id is not None and (not isinstance(id, str) or not id):
            raise InvalidDocument(f"A document's id is a non-empty str, not {id!r}.")
        self._parts = made
        self._hash = sha256(b"document", *(part.content_hash.encode() for part in made))
        self._id = id if id is not None else self._hash
        self._metadata = MappingProxyType(_checked_metadata(metadata) if metadata else {})

    @property
    def parts(self) -> tuple[Part, ...]:
        return self._parts

    @property
    def id(self) -> str:
        return self._id

    @property
    def metadata(self) -> Metadata:
        return self._metadata

    @property
    def content_hash(self) -> str:
        """SHA-256 over the parts, in order; neither id nor metadata takes part."""
        return self._hash

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(part.text for part in self._parts if isinstance(part, Text))

    @property
    def text(self) -> str:
        """All text parts, joined by a space."""
        return " ".join(self.texts)

    @property
    def images(self) -> tuple[Image, ...]:
        return tuple(part for part in self._parts if isinstance(part, Image))

    @property
    def image(self) -> Image | None:
        """The first image, if there is one."""
        return next(iter(self.images), None)

    @property
    def blanks(self) -> tuple[Blank, ...]:
        return tuple(part for part in self._parts if isinstance(part, Blank))

    @property
    def modalities(self) -> frozenset[Modality]:
        """The modalities of what the document shows; blanks count if there is something around their gap."""
        return frozenset(part.modality for part in self._parts if type(part) is not Blank)

    def replace(
        self, *, parts: Iterable[Part | str] | None = None, id: str | None = None, metadata: Metadata | None = None
    ) -> Document:
        """A copy with other parts, id or metadata. Other parts without an id give the id of the new content."""
        if parts is None:
            return Document(self._parts, id=id or self._id, metadata=self._metadata if metadata is None else metadata)
        return Document(parts, id=id, metadata=self._metadata if metadata is None else metadata)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Document)
            and (other._id, other._hash) == (self._id, self._hash)
            and dict(other._metadata) == dict(self._metadata)
        )

    def __hash__(self) -> int:
        return hash((self._id, self._hash))

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (self._parts, self._id, dict(self._metadata))

    def __repr__(self) -> str:
        shown = ", ".join(repr(part) for part in self._parts)
        return f"Document([{shown}], id={self._id[:24]!r})"

    def _repr_html_(self) -> str:
        import base64
        import html

        cells = []
        for part in self._parts:
            if isinstance(part, (Image, MaskedImage)):
                shown = part if isinstance(part, Image) else part.shown
                encoded = base64.b64encode(shown._repr_png_()).decode()
                cells.append(f'<img src="data:image/png;base64,{encoded}" style="max-height:128px">')
            elif isinstance(part, Text):
                cells.append(f"<p>{html.escape(part.text)}</p>")
            elif isinstance(part, MaskedText):
                cells.append(f"<p>{html.escape(part.before)}<i>[text]</i>{html.escape(part.after)}</p>")
            else:
                cells.append(f"<p><i>[{part.modality}]</i></p>")
        return "<div>" + "".join(cells) + "</div>"


def _rebuilt(parts: tuple[Part, ...], id: str, metadata: dict[str, Any]) -> Document:
    """Unpickle: a mapping proxy cannot be pickled, and worker processes are handed documents."""
    return Document(parts, id=id, metadata=metadata)


def _checked_metadata(metadata: Metadata) -> dict[str, Any]:
    if not isinstance(metadata, Mapping):
        raise InvalidDocument(f"Metadata is a mapping, not {type(metadata).__name__}.")

    checked: dict[str, Any] = {}
    for key, value in metadata.items():
        if not isinstance(key, str) or not key or key.startswith("$"):
            raise InvalidDocument(f"A metadata key is a non-empty str that does not start with '$', not {key!r}.")
        if _is_plain(value):
            checked[key] = value
        elif isinstance(value, (list, tuple)) and all(map(_is_plain, value)):
            checked[key] = list(value)
        else:
            raise InvalidDocument(
                f"Metadata {key!r} is {value!r}, which is not plain.",
                "Allowed: str, int, finite float, bool, None, and flat lists of them; nested values as JSON text.",
            )
    return checked


def _is_plain(value: object) -> bool:
    if value is None or isinstance(value, (str, bool)):
        return True
    if isinstance(value, int):
        if value.bit_length() > LONGEST_NUMBER:  # which Python would not print
            raise InvalidDocument(f"Metadata has a number of {value.bit_length():,} bits.", "Give it as text.")
        return True
    return isinstance(value, float) and math.isfinite(value)


__all__ = ["Blank", "Document", "Image", "MaskedImage", "MaskedText", "Metadata", "Modality", "Part", "Scalar", "Text"]
