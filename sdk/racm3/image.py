"""Images: pictures from anywhere, checked, and decoded to the one form that every encoder and tokenizer sees."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import sys
import warnings
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from .errors import InvalidImage

if TYPE_CHECKING:
    import numpy as np
    import PIL.Image

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MAX_BYTES = 64 * 2**20
MAX_PIXELS = 64_000_000
MAX_SIDE = 8000  # pixels, of the square that a picture is padded to: the side of one of MAX_PIXELS


def sha256(*pieces: bytes) -> str:
    """SHA-256, as hex, over pieces each led by its length, so that no two lists of pieces read the same."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(len(piece).to_bytes(8, "little"))
        digest.update(piece)
    return digest.hexdigest()


class Image:
    """A picture from a file, encoded bytes, a PIL image or an array (uint8 [h, w, 3], [h, w, 4] or [h, w]).

    PNG, JPEG, WebP, GIF (first frame) and BMP. Files are read at construction and decoded on first use; decoding puts
    alpha on white, applies the EXIF orientation and gives RGB. `InvalidImage` names the file and what is wrong with it.

    max_bytes, max_pixels: refuse more than this; encoded size and width times height. path: the file that it was read
    from, absolute; None for what came otherwise, as through a pipe.
    """

    modality: Literal["image"] = "image"
    origin: str
    path: Path | None
    _max_pixels: int
    content_hash: str

    def __init__(
        self,
        source: str | Path | bytes | PIL.Image.Image | np.ndarray,
        *,
        max_bytes: int = MAX_BYTES,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        # Through the dict: an image is immutable, and both of `data` and `picture` are cached properties.
        self.__dict__.update(origin="image", path=None, _max_pixels=max_pixels)
        if isinstance(source, (str, Path)):
            self.__dict__["origin"] = str(source)
            if isinstance(source, str) and "://" in source:
                raise InvalidImage(
                    f"{source} is an address; pictures are not fetched.", "Download it, and give its path."
                )
            data, stays = _read_file(Path(source), max_bytes)
            self._set_data(data, max_bytes)
            if stays:
                self.__dict__["path"] = Path(source).absolute()
        elif isinstance(source, (bytes, bytearray, memoryview)):
            self._set_data(bytes(source), max_bytes)
        else:
            self._set_picture(source)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("Image is immutable.")

    def _set_data(self, data: bytes, max_bytes: int) -> None:
        if not data:
            raise InvalidImage(f"{self.origin} is empty.")
        if len(data) > max_bytes:
            raise InvalidImage(
                f"{self.origin} has more than {max_bytes:,} bytes, the limit.", "Make it smaller, or raise max_bytes."
            )
        self.__dict__.update(data=data, content_hash=sha256(b"image", data))

    def _set_picture(self, source: PIL.Image.Image | np.ndarray) -> None:
        import PIL.Image

        if not isinstance(source, PIL.Image.Image):
            source = _from_array(source)
        self._check_pixels(source.size)
        picture = self._decoded(source)
        content_hash = sha256(b"rgb", repr(picture.size).encode(), picture.tobytes())
        self.__dict__.update(picture=picture, content_hash=content_hash)

    @classmethod
    def restore(cls, data: bytes, content_hash: str) -> Image:
        """An image from bytes that were stored with their hash: a picture given as an array keeps the hash of its pixels."""
        # What was stored was within its limits, whatever they were.
        image = cls(data, max_bytes=len(data), max_pixels=sys.maxsize)
        image.__dict__["content_hash"] = content_hash
        return image

    @classmethod
    def reread(cls, path: Path, size: int, content_hash: str) -> Image:
        """The image of a file that had so many bytes, and this hash, when it was read before. Raises `InvalidImage` when the
        file is gone, or holds another one. What is no plain file of that size is not read, whoever wrote its name."""
        try:
            with open(path, "rb", opener=_open_at_once) as file:
                found = os.fstat(file.fileno())
                same = stat.S_ISREG(found.st_mode) and 0 < found.st_size == size <= MAX_BYTES
                data = file.read(size) if same else b""
        except FileNotFoundError as error:
            raise InvalidImage(f"{path} is not there any more.") from error
        except (OSError, ValueError) as error:
            raise _unreadable(path, error) from error
        if not same or sha256(b"image", data) != content_hash:
            raise InvalidImage(f"{path} holds another picture than it did.")
        image = cls(data, max_bytes=size, max_pixels=sys.maxsize)
        image.__dict__.update(origin=str(path), path=path)
        return image

    @cached_property
    def data(self) -> bytes:
        """The encoded bytes: those of the file as they are, or a PNG of a picture given as pixels."""
        buffer = io.BytesIO()
        self.picture.save(buffer, "PNG")
        return buffer.getvalue()

    @cached_property
    def picture(self) -> PIL.Image.Image:
        """The decoded picture, RGB."""
        return self._decoded(self._opened())

    def _opened(self) -> PIL.Image.Image:
        """The picture as far as its header says."""
        import PIL.Image

        try:
            with warnings.catch_warnings():
                # The limit on pixels is ours, and named in the error below.
                warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)
                opened = PIL.Image.open(io.BytesIO(self.data), formats=FORMATS)
        except PIL.UnidentifiedImageError as error:
            raise InvalidImage(
                f"{self.origin} is not a picture in {', '.join(FORMATS)} format.", "Convert it to one of these."
            ) from error
        except Exception as error:
            if isinstance(error, PIL.Image.DecompressionBombError):
                raise InvalidImage(
                    f"{self.origin} has far more than {self._max_pixels:,} pixels, the limit.", "Make it smaller."
                ) from error
            raise self._undecodable(error) from error
        self._check_pixels(opened.size)
        return opened

    def _decoded(self, opened: PIL.Image.Image) -> PIL.Image.Image:
        try:
            return _to_rgb(opened)
        except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error ... on bad files
            raise self._undecodable(error) from error

    def _undecodable(self, error: Exception) -> InvalidImage:
        return InvalidImage(f"{self.origin} cannot be decoded: {error}.", "Is the file whole?")

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.picture.size

    @property
    def pixels(self) -> int:
        """Width times height, by the header alone where the picture is not decoded yet."""
        width, height = self.picture.size if "picture" in self.__dict__ else self._opened().size
        return width * height

    def square(self, size: int, *, fill: tuple[int, int, int] = (255, 255, 255)) -> np.ndarray:
        """The picture centred on a square of `fill` and resized: uint8 [size, size, 3].

        A picture that is not square and longer than MAX_SIDE is first reduced to that: padded as it is, a line of a few
        thousand pixels would take gigabytes.
        """
        import numpy as np
        import PIL.Image

        picture = self.picture
        side = max(picture.size)
        if picture.width != picture.height:
            if side > MAX_SIDE:
                reduced = [max(1, edge * MAX_SIDE // side) for edge in picture.size]
                picture, side = picture.resize(reduced, PIL.Image.Resampling.BICUBIC), MAX_SIDE
            canvas = PIL.Image.new("RGB", (side, side), fill)
            canvas.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
            picture = canvas
        if side != size:
            picture = picture.resize((size, size), PIL.Image.Resampling.BICUBIC)
        return np.asarray(picture, dtype=np.uint8)

    def _check_pixels(self, size: tuple[int, int]) -> None:
        width, height = size
        if width < 1 or height < 1:
            raise InvalidImage(f"{self.origin} has no pixels ({width}x{height}).")
        if width * height > self._max_pixels:
            raise InvalidImage(
                f"{self.origin} has {width}x{height} pixels; the limit is {self._max_pixels:,} in all.",
                "Make it smaller, or raise max_pixels.",
            )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Image) and other.content_hash == self.content_hash

    def __hash__(self) -> int:
        return hash(self.content_hash)

    def __repr__(self) -> str:
        return f"Image({self.origin!r}, content_hash='{self.content_hash[:12]}…')"

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.picture.save(buffer, "PNG")
        return buffer.getvalue()


def _read_file(path: Path, limit: int) -> tuple[bytes, bool]:
    """What is in a file, and whether it will be there again: what comes through a pipe is not."""
    try:
        with path.open("rb") as file:
            return file.read(limit + 1), stat.S_ISREG(os.fstat(file.fileno()).st_mode)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> InvalidImage:
    why = getattr(error, "strerror", None) or error
    return InvalidImage(f"{path} cannot be read: {why}.", "Give the path of a picture.")


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # a pipe that nobody writes to would be waited for


def _from_array(array: np.ndarray) -> PIL.Image.Image:
    import numpy as np
    import PIL.Image

    if not isinstance(array, np.ndarray):
        raise InvalidImage(
            f"No image can be made of {type(array).__name__}.", "Give a path, encoded bytes, a PIL image or an array."
        )
    if (
        array.dtype != np.uint8
        or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4)))
        or not array.size
    ):
        raise InvalidImage(
            f"An array of dtype {array.dtype} and shape {array.shape} is not a picture.",
            "Expected uint8 and [h, w, 3], [h, w, 4] or [h, w].",
        )
    return PIL.Image.fromarray(array)


def _to_rgb(picture: PIL.Image.Image) -> PIL.Image.Image:
    """RGB, upright, on white: what every encoder and tokenizer sees."""
    import PIL.ExifTags
    import PIL.Image
    import PIL.ImageOps

    picture.load()  # or not all is known of it yet
    if picture.getexif().get(PIL.ExifTags.Base.Orientation, 1) != 1:  # or it would be copied for nothing
        picture = PIL.ImageOps.exif_transpose(picture)
    if picture.mode == "F" or (picture.mode.startswith("I") and not picture.mode.startswith("I;16")):
        raise ValueError(f"nobody knows what is white in mode {picture.mode!r}; convert it to 'L', 'RGB' or 'I;16'")
    if picture.mode.startswith("I;16"):
        picture = _eight_bits(picture)
    if picture.mode in ("La", "RGBa"):  # premultiplied: converting to RGB would forget the alpha
        picture = picture.convert(picture.mode.upper())
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture if picture.mode == "RGBA" else picture.convert("RGBA")
        canvas = PIL.Image.new("RGB", picture.size, (255, 255, 255))
        canvas.paste(picture, mask=picture)
        return canvas
    return picture.convert("RGB")


def _eight_bits(picture: PIL.Image.Image) -> PIL.Image.Image:
    """16-bit greys, one of which may stand for nothing at all. Pillow's own conversion clips instead of scaling."""
    import numpy as np
    import PIL.Image

    values = np.asarray(picture)
    grey = (values >> 8).astype(np.uint8)
    clear = picture.info.get("transparency")
    if clear is None:
        return PIL.Image.fromarray(grey)
    return PIL.Image.fromarray(np.stack([grey, np.where(values == clear, 0, 255).astype(np.uint8)], axis=-1), "LA")
