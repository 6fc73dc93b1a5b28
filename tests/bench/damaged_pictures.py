"""Pictures whose bytes are not as they were written, or are made to do harm: they are shown, or refused.

The cases of memory_fuzz.py about `Image`: "sound", when there is a picture within its limits, or the error.
"""

from __future__ import annotations

import io
import random
import struct
import zlib
from functools import cache
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from mutations import Wrong, mutated

from racm3.document import Image
from racm3.errors import RACM3Error
from racm3.image import MAX_PIXELS

LARGEST: dict[str, tuple[str, dict[str, Any]]] = {
    "PNG": ("RGBA", {}), "WEBP": ("RGBA", {"lossless": True, "method": 0}), "JPEG": ("L", {}), "GIF": ("P", {"transparency": 0}),
}  # fmt: skip


def pictures(scratch: Path) -> dict[str, list[bytes]]:
    """Pictures of every format and of many kinds, by format."""
    rng = np.random.default_rng(0)
    noise = PIL.Image.fromarray(rng.integers(0, 256, (20, 28, 4), dtype=np.uint8), "RGBA")
    smooth = noise.resize((64, 48), PIL.Image.Resampling.BICUBIC)
    exif = PIL.Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a picture on its side"
    found: dict[str, list[bytes]] = {}

    def save(picture: PIL.Image.Image, form: str, **options: Any) -> None:
        buffer = io.BytesIO()
        picture.save(buffer, form, **options)
        found.setdefault(form, []).append(buffer.getvalue())

    for mode in ("RGB", "RGBA", "L", "LA", "1", "P"):
        save(smooth.convert("RGB").convert(mode) if mode in "1P" else smooth.convert(mode), "PNG", exif=exif)
    save(smooth.convert("L").convert("I;16"), "PNG", pnginfo=None)
    save(smooth.convert("RGB").quantize(7), "PNG", transparency=3, bits=4)
    save(smooth, "PNG", save_all=True, append_images=[smooth.rotate(90), smooth.rotate(180)])
    for mode, options in (
        ("RGB", {}),
        ("L", {}),
        ("CMYK", {}),
        ("RGB", {"progressive": True}),
        ("RGB", {"exif": exif}),
    ):
        save(smooth.convert("RGB").convert(mode), "JPEG", **options)
    save(smooth.convert("RGB"), "JPEG", restart_marker_blocks=2, comment=b"a" * 40)
    for options in ({}, {"lossless": True}, {"exif": exif}, {"save_all": True, "append_images": [smooth.rotate(9)]}):
        save(smooth, "WEBP", **options)
    save(smooth.convert("RGB"), "WEBP")
    flat = smooth.convert("RGB").quantize(40)
    for options in ({}, {"transparency": 3}, {"save_all": True, "append_images": [flat.rotate(9)], "loop": 0}):
        save(flat, "GIF", **options)
    for mode in ("RGB", "L", "1", "P", "RGBA"):
        save(smooth.convert("RGB").convert(mode), "BMP")
    return found


@cache
def largest(form: str) -> bytes:
    """A picture of as many pixels as are allowed."""
    picture, buffer = PIL.Image.new("RGBA", (isqrt(MAX_PIXELS),) * 2), io.BytesIO()
    mode, options = LARGEST[form]
    picture.convert(mode).save(buffer, form, **options)
    return buffer.getvalue()


def images(made: dict[str, list[bytes]], folder: Path, draw: random.Random) -> str:
    chance, kinds = draw.random(), sorted(made)
    if chance < 0.02:
        data = largest(draw.choice(sorted(LARGEST))) if chance < 0.001 else bomb(made, draw)
    else:
        kind = draw.choice(kinds)
        same, other = draw.choice(made[kind]), draw.choice(made[draw.choice((kind, kind, draw.choice(kinds)))])
        data = mutated(same, other, draw)
        if data[:4] == b"\x89PNG" and draw.random() < 0.7:
            data = with_sums(data)
    try:
        image = Image(data)
        picture = image.picture
        small = image.square(16)
    except RACM3Error as error:
        return type(error).__name__
    if picture.mode != "RGB" or not 0 < picture.width * picture.height <= MAX_PIXELS or small.shape != (16, 16, 3):
        raise Wrong(f"a picture of mode {picture.mode} and size {picture.size}")
    return "sound"


def with_sums(data: bytes) -> bytes:
    """A PNG whose checksums are right, so that what has changed is read."""
    made, at = bytearray(data), 8
    while at + 12 <= len(made):
        end = at + 8 + int.from_bytes(made[at : at + 4], "big")
        if end + 4 > len(made):
            break
        made[end : end + 4] = zlib.crc32(made[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(made)


def bomb(made: dict[str, list[bytes]], draw: random.Random) -> bytes:
    """A small file that says it is large, or becomes large when it is unpacked."""
    width, height = (draw.choice((1, 255, 4000, 8000, 16383, 65535, 2**31 - 1, 2**32 - 1)) for _ in range(2))
    kind = draw.choice(("PNG", "PNG", "text", "JPEG", "WEBP", "GIF", "BMP"))
    if kind in ("PNG", "text"):
        depth, colour = draw.choice(((8, 2), (8, 6), (16, 6), (1, 0), (8, 3), (16, 0)))
        zeros = zlib.compress(bytes(draw.choice((10, 10**6, 5 * 10**7))), 9)
        chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, draw.choice((0, 1))))]
        if kind == "text":
            chunks[:] = [(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0))]
            name = draw.choice((b"zTXt", b"iTXt", b"iCCP"))
            lead = b"key\0" + (b"\1\0\0\0" if name == b"iTXt" else b"\0")
            chunks += [(name, lead + zeros)] * draw.choice((1, 30))
        chunks += [(b"PLTE", bytes(768)), (b"IDAT", zeros), (b"IEND", b"")]
        return b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
            for name, data in chunks
        )
    data = bytearray(draw.choice(made[kind]))
    if kind == "JPEG":
        at = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2")) + 5
        data[at : at + 4] = struct.pack(">HH", height % 2**16, width % 2**16)
    elif kind == "GIF":
        for at in (6, data.find(b",") + 5)[: draw.choice((1, 2))]:
            data[at : at + 4] = struct.pack("<HH", width % 2**16, height % 2**16)
    elif kind == "BMP":
        data[18:26] = struct.pack("<II", width % 2**32, height % 2**32)
    elif data[12:16] == b"VP8X":
        data[24:30] = (width - 1 & 0xFFFFFF).to_bytes(3, "little") + (height - 1 & 0xFFFFFF).to_bytes(3, "little")
    elif data[12:16] == b"VP8L":
        data[21:25] = (width - 1 & 0x3FFF | (height - 1 & 0x3FFF) << 14).to_bytes(4, "little")
    else:
        data[26:30] = struct.pack("<HH", width & 0x3FFF, height & 0x3FFF)
    return bytes(data)
