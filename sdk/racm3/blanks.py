"""Blanks: what a generator fills in a prompt: a whole part, a gap in a text, or a region of a picture (method section 5)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from .errors import InvalidDocument, InvalidImage, ModalityError
from .image import Image, sha256

if TYPE_CHECKING:
    import numpy as np

Modality: TypeAlias = Literal["text", "image"]
Box: TypeAlias = tuple[int, int, int, int]
Region: TypeAlias = "Box | np.ndarray"


class Blank:
    """A gap in a prompt that the generator fills with text or with a picture."""

    __slots__ = ("modality",)
    modality: Modality

    def __init__(self, modality: Modality) -> None:
        if modality not in ("text", "image"):
            raise ModalityError(f"No blank of modality {modality!r}.", "Use Blank('text') or Blank('image').")
        object.__setattr__(self, "modality", modality)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable.")

    def __reduce__(self) -> tuple[Any, ...]:
        return Blank, (self.modality,)

    @property
    def content_hash(self) -> str:
        return sha256(b"blank", self.modality.encode())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Blank) and other.content_hash == self.content_hash

    def __hash__(self) -> int:
        return hash(self.content_hash)

    def __repr__(self) -> str:
        return f"Blank({self.modality!r})"


class MaskedText(Blank):
    """A text with one gap: `before`, what is to be written, `after`. With nothing after it, the text is continued.

    Spaces are the caller's: a word is missing in `MaskedText("a red", " over the beach")`, its space included.
    """

    __slots__ = ("after", "before")
    before: str
    after: str

    def __init__(self, before: str, after: str = "") -> None:
        super().__init__("text")
        if not isinstance(before, str) or not isinstance(after, str):
            raise InvalidDocument("A MaskedText holds the text before its gap and the text after it, both str.")
        object.__setattr__(self, "before", before)
        object.__setattr__(self, "after", after)

    def __reduce__(self) -> tuple[Any, ...]:
        return MaskedText, (self.before, self.after)

    @property
    def content_hash(self) -> str:
        pieces = (text.encode("utf-8", "surrogatepass") for text in (self.before, self.after))
        return sha256(b"masked text", *pieces)

    def __repr__(self) -> str:
        return f"MaskedText({self.before!r}, {self.after!r})"


class MaskedImage(Blank):
    """A picture with a region that is to be drawn anew, and the rest of which stays as it is.

    region: a box (left, top, right, bottom) in pixels, right and bottom not included; or a boolean mask [h, w] of the
    picture's size, True where it is to be drawn. `InvalidImage`: it is empty, or does not fit the picture.

    >>> import numpy as np
    >>> hole = MaskedImage(Image(np.zeros((4, 6, 3), np.uint8)), (0, 0, 2, 4))
    >>> int(hole.mask.sum()), hole.modality
    (8, 'image')
    """

    __slots__ = ("image", "mask")
    image: Image
    mask: np.ndarray

    def __init__(self, image: Image, region: Region) -> None:
        super().__init__("image")
        if not isinstance(image, Image):
            raise InvalidDocument(f"A MaskedImage holds an Image, not {type(image).__name__}.")
        mask = _mask(image.size, region)
        mask.flags.writeable = False
        object.__setattr__(self, "image", image)
        object.__setattr__(self, "mask", mask)

    def __reduce__(self) -> tuple[Any, ...]:
        return MaskedImage, (self.image, self.mask)

    @property
    def content_hash(self) -> str:
        return sha256(b"masked image", self.image.content_hash.encode(), self.mask.tobytes())

    @property
    def shown(self) -> Image:
        """The picture with its region white: what may be seen of it."""
        import numpy as np

        return self._like(np.where(self.mask[..., None], np.uint8(255), np.asarray(self.image.picture)))

    def cells(self, grid: int) -> np.ndarray:
        """Which cells of a grid over the squared picture (see `Image.square`) the region touches: bool [grid, grid]."""
        import numpy as np

        height, width = self.mask.shape
        side = max(height, width)

        def edges(size: int) -> list[slice]:
            """What of the picture's own rows or columns lies in each of the grid's; around it there may be none."""
            before = (side - size) // 2
            ends = [(i * side // grid - before, -(-(i + 1) * side // grid) - before) for i in range(grid)]
            return [slice(max(0, start), max(0, stop)) for start, stop in ends]

        return np.array([[self.mask[rows, columns].any() for columns in edges(width)] for rows in edges(height)])

    def paste(self, drawn: Image) -> Image:
        """The picture with its region taken from `drawn`, a square picture of any size or one of the same size.

        Every other pixel is the original's: decoding through an image tokenizer changes pixels everywhere.
        """
        import numpy as np
        import PIL.Image

        picture, (width, height) = drawn.picture, self.image.size
        if picture.size != (width, height):
            side = max(width, height)
            left, top = (side - width) // 2, (side - height) // 2
            across, down = picture.width / side, picture.height / side
            box = (left * across, top * down, (left + width) * across, (top + height) * down)
            picture = picture.resize((width, height), PIL.Image.Resampling.BICUBIC, box)
        return self._like(np.where(self.mask[..., None], np.asarray(picture), np.asarray(self.image.picture)))

    def _like(self, pixels: np.ndarray) -> Image:
        """A picture of this one's size, which may be above the usual limit."""
        return Image(pixels, max_pixels=self.mask.size)

    def __repr__(self) -> str:
        return f"MaskedImage({self.image!r}, {int(self.mask.sum())} pixels)"


def _whole(edge: object) -> int:
    """A number of pixels; no letter, and nothing that would have to be cut."""
    if isinstance(edge, str) or int(edge) != edge:  # type: ignore[call-overload]
        raise ValueError(f"{edge!r} is no whole number")
    return int(edge)  # type: ignore[call-overload,no-any-return]


def _mask(size: tuple[int, int], region: Region) -> np.ndarray:
    """The region as a mask of its own, bool [h, w]."""
    import numpy as np

    width, height = size
    if isinstance(region, np.ndarray):
        if region.dtype != np.bool_ or region.shape != (height, width):
            raise InvalidImage(
                f"A mask of dtype {region.dtype} and shape {region.shape} does not fit a picture of {width}x{height}.",
                f"Expected bool and [{height}, {width}], True where it is to be drawn.",
            )
        # A mask that Pillow gave has bytes of 255, and another hash than one of ones.
        mask = np.ascontiguousarray(region).view(np.uint8) != 0
    else:
        try:
            left, top, right, bottom = (_whole(edge) for edge in region)
        except (TypeError, ValueError, OverflowError) as error:
            raise InvalidImage(
                f"{region!r} is no region.", "Give a box (left, top, right, bottom), or a boolean mask."
            ) from error
        if not (0 <= left < right <= width and 0 <= top < bottom <= height):
            raise InvalidImage(
                f"The box {(left, top, right, bottom)} does not lie in the picture, or holds no pixel.",
                f"0 <= left < right <= {width} and 0 <= top < bottom <= {height}.",
            )
        mask = np.zeros((height, width), bool)
        mask[top:bottom, left:right] = True
    if not mask.any():
        raise InvalidImage("The region holds no pixel: there is nothing to draw.", "Set some of the mask to True.")
    return mask
