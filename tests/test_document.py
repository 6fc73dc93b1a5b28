"""Documents and images: what they take, what they refuse, and that they do not change."""

from __future__ import annotations

import copy
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from racm3 import Blank, Document, Image, Text
from racm3.errors import InvalidDocument, InvalidImage, ModalityError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")


def encoded(picture: PIL.Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


@pytest.fixture
def noise() -> PIL.Image.Image:
    return PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 48, 3), dtype=np.uint8))


# Images


@pytest.mark.parametrize("format", FORMATS)
def test_formats(format, tmp_path: Path):
    data = encoded(PIL.Image.new("RGB", (9, 7), (200, 30, 30)), format)
    file = tmp_path / "picture.bin"
    file.write_bytes(data)
    for source in (data, file, str(file), bytearray(data), memoryview(data)):
        image = Image(source)
        assert image.size == (9, 7) and image.picture.mode == "RGB"
        assert np.abs(np.asarray(image.picture, int)[3, 4] - (200, 30, 30)).max() < 12
        assert image.data == data
    assert Image(file).origin == str(file)


def test_only_the_listed_formats():
    with pytest.raises(InvalidImage, match="not a picture in PNG, JPEG, WEBP, GIF, BMP format"):
        _ = Image(encoded(PIL.Image.new("RGB", (4, 4)), "TIFF")).picture


def test_the_first_frame_of_a_gif():
    frames = [PIL.Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert tuple(np.asarray(Image(data).picture)[0, 0]) == (255, 0, 0)


@pytest.mark.parametrize("format", ["PNG", "WEBP", "GIF"])
def test_alpha_is_put_on_white(format):
    picture = PIL.Image.new("RGBA", (8, 8), (255, 0, 0, 255))
    picture.paste((0, 0, 0, 0), (0, 0, 4, 8))
    pixels = np.asarray(Image(encoded(picture, format, **({"lossless": True} if format == "WEBP" else {}))).picture)
    assert tuple(pixels[4, 0]) == (255, 255, 255) and tuple(pixels[4, 7]) == (255, 0, 0)


@pytest.mark.parametrize("mode", ["LA", "PA", "La", "RGBa"])
def test_alpha_of_every_mode_is_put_on_white(mode):
    assert tuple(np.asarray(Image(PIL.Image.new(mode, (2, 2))).picture)[0, 0]) == (255, 255, 255)


def test_a_transparent_colour_is_put_on_white():
    data = encoded(PIL.Image.new("RGB", (4, 4), (1, 2, 3)), transparency=(1, 2, 3))
    assert tuple(np.asarray(Image(data).picture)[0, 0]) == (255, 255, 255)


def test_half_transparent_is_half_white():
    pixels = np.asarray(Image(PIL.Image.new("RGBA", (2, 2), (0, 0, 0, 128))).picture)
    assert abs(int(pixels[0, 0, 0]) - 127) <= 1


def test_sixteen_bit_greys_are_scaled_not_clipped():
    pixels = np.array([[0, 128 * 256], [65535, 10 * 256]], np.uint16)
    assert np.asarray(Image(encoded(PIL.Image.fromarray(pixels))).picture)[..., 0].tolist() == [[0, 128], [255, 10]]


def test_sixteen_bit_greys_are_scaled_beside_a_transparent_one():
    pixels = np.array([[0, 0x4000], [0x8000, 0xFFFF]], np.uint16)
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "PNG", transparency=0x4000)
    assert np.asarray(Image(file.getvalue()).picture)[..., 0].tolist() == [[0, 255], [128, 255]]


@pytest.mark.parametrize("mode", ["I", "F"])
def test_a_mode_that_does_not_say_what_is_white_is_refused(mode):
    with pytest.raises(InvalidImage, match=f"mode '{mode}'; convert it"):
        Image(PIL.Image.new(mode, (2, 2), 200))


def test_exif_orientation_is_applied():
    picture = PIL.Image.new("RGB", (6, 4), "white")
    picture.paste("black", (0, 0, 3, 4))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    image = Image(encoded(picture, "PNG", exif=exif))
    assert image.size == (4, 6)
    assert np.asarray(image.picture)[:, 0, 0].tolist() == [0, 0, 0, 255, 255, 255]


@pytest.mark.parametrize("shape", [(5, 4, 3), (5, 4, 4), (5, 4)])
def test_arrays(shape):
    assert Image(np.zeros(shape, np.uint8)).size == (4, 5)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((4, 4, 3)),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros(4, np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        5,
        None,
        [],
    ],
)
def test_what_no_picture_can_be_made_of(wrong):
    with pytest.raises(InvalidImage):
        Image(wrong)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("share", [0.9, 0.5, 0.05])
def test_a_truncated_file_is_named(format, share, noise, tmp_path: Path):
    data = encoded(noise, format)
    file = tmp_path / "cut.img"
    file.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(InvalidImage, match=r"cut\.img"):
        _ = Image(file).picture


def test_a_truncated_picture_from_pillow_is_refused_at_once(noise):
    with pytest.raises(InvalidImage, match="truncated"):
        Image(PIL.Image.open(io.BytesIO(encoded(noise)[:-200])))


@pytest.mark.parametrize(
    "data", [b"no picture", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM" + bytes(60), b"\xff\xd8\xff\xe0"]
)
def test_a_bogus_file_is_named(data, tmp_path: Path):
    (tmp_path / "bogus.png").write_bytes(data)
    with pytest.raises(InvalidImage, match=r"bogus\.png"):
        _ = Image(tmp_path / "bogus.png").picture


def test_files_that_cannot_be_read_are_named(tmp_path: Path):
    with pytest.raises(InvalidImage, match=r"nope\.png cannot be read: No such file"):
        Image(tmp_path / "nope.png")
    with pytest.raises(InvalidImage, match="directory"):
        Image(tmp_path)
    with pytest.raises(InvalidImage, match="null"):
        Image("a\0b.png")
    (tmp_path / "empty.png").touch()
    with pytest.raises(InvalidImage, match=r"empty\.png is empty"):
        Image(tmp_path / "empty.png")


def test_limits_are_named_with_the_file(tmp_path: Path, noise):
    file = tmp_path / "big.png"
    file.write_bytes(encoded(noise))
    with pytest.raises(InvalidImage, match=r"big\.png has more than 100 bytes"):
        Image(file, max_bytes=100)
    with pytest.raises(InvalidImage, match=r"big\.png has 48x32 pixels; the limit is 1,000"):
        _ = Image(file, max_pixels=1000).picture
    with pytest.raises(InvalidImage, match="the limit is 1,000"):
        Image(noise, max_pixels=1000)


@pytest.mark.parametrize("side", [10_000, 60_000])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(side, recwarn):
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    with pytest.raises(InvalidImage, match=r"pixels.*Make it smaller"):
        _ = Image(data).picture
    assert not recwarn.list


def test_content_hashes(noise, tmp_path: Path):
    data = encoded(noise)
    (tmp_path / "a.png").write_bytes(data)
    assert Image(data).content_hash == Image(tmp_path / "a.png").content_hash, "of the encoded bytes"
    assert Image(noise).content_hash == Image(np.asarray(noise)).content_hash, "of the pixels"
    assert Image(noise).content_hash != Image(noise.transpose(PIL.Image.Transpose.ROTATE_90)).content_hash
    assert Image(data) == Image(data) and hash(Image(data)) == hash(Image(data))
    restored = Image.restore(Image(noise).data, Image(noise).content_hash)
    assert restored == Image(noise) and np.array_equal(restored.picture, noise)


def test_an_image_does_not_change(noise):
    image = Image(noise)
    for name in ("content_hash", "data", "picture", "origin", "anything"):
        with pytest.raises(AttributeError):
            setattr(image, name, b"")
    pixels = np.zeros((4, 4, 3), np.uint8)
    image = Image(pixels)
    pixels[:] = 255
    assert np.asarray(image.picture).max() == 0


def test_square_pads_on_white():
    square = Image(PIL.Image.new("RGB", (8, 4), "black")).square(8)
    assert square.shape == (8, 8, 3) and square.dtype == np.uint8
    assert square[0].min() == 255 and square[4].max() == 0
    assert Image(PIL.Image.new("RGB", (4, 4))).square(16).shape == (16, 16, 3)
    assert Image(PIL.Image.new("RGB", (8, 4))).square(8, fill=(9, 9, 9))[0].max() == 9


def test_a_line_of_a_million_pixels_can_be_squared():
    """Padded as it is, it would have 10**12."""
    square = Image(PIL.Image.new("RGB", (1, 10**6), "black")).square(7)
    assert square.shape == (7, 7, 3) and square[:, 0].min() == 255
    square = Image(PIL.Image.new("RGB", (9000, 3000), "black")).square(9)
    assert square[4].max() < 5 and square[0].min() == square[8].min() == 255


def test_transparent_pixels_show_white_as_far_as_they_are_transparent():
    value, alpha = np.meshgrid(np.arange(256), np.arange(256))
    shown = np.asarray(Image(np.stack([value, value, value, alpha], -1).astype(np.uint8)).picture)[..., 0]
    assert np.abs(shown - (value * alpha + 255 * (255 - alpha)) / 255).max() <= 0.5


def test_images_show_themselves(noise):
    assert Image(noise)._repr_png_().startswith(b"\x89PNG")
    html = Document(["<b>", Image(noise), Blank("text")])._repr_html_()
    assert "&lt;b&gt;" in html and "data:image/png;base64," in html and "[text]" in html


# Documents


def test_a_document_is_an_ordered_mix(noise):
    document = Document(["a", Image(noise), Text("b"), Blank("image")])
    assert [type(part).__name__ for part in document.parts] == ["Text", "Image", "Text", "Blank"]
    assert (document.texts, document.text) == (("a", "b"), "a b")
    assert document.image == Image(noise) and len(document.images) == 1
    assert document.blanks == (Blank("image"),)
    assert document.modalities == {"text", "image"}
    assert Document(Blank("image")).modalities == frozenset() and Document("x").image is None


def test_markup_in_text_is_only_text():
    for text in ("<mask:0>", '<img alt="', "<eoss>", "", "\0", "凧 🪁"):
        assert Document(text).text == text


def test_ids_and_hashes(noise):
    document = Document(["a", Image(noise)])
    assert document.id == document.content_hash == Document(["a", Image(noise)], metadata={"x": 1}).content_hash
    assert Document(["a"], id="mine").id == "mine"
    assert Document(["a", "b"]).id != Document(["b", "a"]).id != Document(["ab"]).id
    assert Document(["a"]) == Document(["a"]) != Document(["a"], metadata={"x": 1})
    assert len({Document(["a"]), Document(["a"])}) == 1


def test_replace():
    document = Document(["a"], id="mine", metadata={"x": 1})
    assert document.replace(id="other") == Document(["a"], id="other", metadata={"x": 1})
    assert document.replace(metadata={}) == Document(["a"], id="mine")
    assert document.replace(parts=["b"]).id == Document(["b"]).id


def test_documents_and_parts_do_not_change():
    metadata = {"tags": ["a"]}
    document = Document(["a"], metadata=metadata)
    metadata["tags"].append("b")
    metadata["more"] = ["c"]
    assert dict(document.metadata) == {"tags": ["a"]}
    for target, name in ((document, "parts"), (document, "id"), (document, "metadata"), (Text("a"), "text")):
        with pytest.raises(AttributeError):
            setattr(target, name, "b")
    with pytest.raises(AttributeError):
        Blank("text").modality = "image"
    with pytest.raises(TypeError):
        document.metadata["x"] = 1  # type: ignore[index]


def test_documents_can_be_copied(noise):
    document = Document(["a", Image(noise), Blank("text")], id="x", metadata={"n": [1, None]})
    for copied in (copy.deepcopy(document), copy.copy(document)):
        assert copied == document and copied.parts == document.parts


@pytest.mark.parametrize("value", ["x", "", 1, 1.5, True, None, [], ["a", 1, None, True], (1, 2)])
def test_plain_metadata_is_kept(value):
    kept = Document("a", metadata={"k": value}).metadata["k"]
    assert kept == (list(value) if isinstance(value, tuple) else value)


@pytest.mark.parametrize(
    "metadata",
    [
        *({"k": value} for value in ({"a": 1}, [[1]], b"x", float("nan"), [float("inf")], np.int64(3), {1, 2})),
        *({key: 1} for key in (1, "", "$eq")),
        *(["k"], "k"),
    ],
)
def test_other_metadata_is_refused(metadata):
    with pytest.raises(InvalidDocument):
        Document("a", metadata=metadata)


@pytest.mark.parametrize("parts", [[], [None], [b"x"], [np.zeros(3)], 5, None, [["a"]]])
def test_what_is_no_document(parts):
    with pytest.raises(InvalidDocument):
        Document(parts)


def test_a_picture_that_is_not_wrapped_is_told_how(noise):
    with pytest.raises(InvalidDocument, match=r"not PIL\.Image\.Image\. A picture: racm3\.Image"):
        Document(["x", noise])
    with pytest.raises(InvalidImage, match=r"x\.png is an address"):
        Image("https://example.com/x.png")


def test_a_number_that_python_would_not_print_is_refused():
    Document("x", metadata={"n": 2**4095})
    with pytest.raises(InvalidDocument, match="bits"):
        Document("x", metadata={"n": 10**5000})


def test_other_refusals():
    with pytest.raises(InvalidDocument):
        Text(b"x")  # type: ignore[arg-type]
    with pytest.raises(InvalidDocument, match="id"):
        Document("a", id="")
    with pytest.raises(ModalityError, match="No blank of modality 'sound'"):
        Blank("sound")  # type: ignore[arg-type]
