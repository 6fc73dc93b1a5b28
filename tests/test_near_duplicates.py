"""Near-duplicates: what is the same picture in another form, what is not, and what becomes of it as documents are added."""

from __future__ import annotations

import io
import sys

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageEnhance
import pytest

from racm3 import Document, Image, Pipeline
from racm3.errors import ConfigError
from racm3.memories.faiss import FaissMemory
from racm3.testing import HashingRetriever

pytest.importorskip("imagehash")

from racm3 import near_duplicates
from racm3.near_duplicates import NearDuplicates


def drawing(seed: int, colour: str | None = None) -> PIL.Image.Image:
    """Shapes on white, of one colour or of several."""
    rng = np.random.default_rng(seed)
    picture = PIL.Image.new("RGB", (96, 96), "white")
    draw = PIL.ImageDraw.Draw(picture)
    for _ in range(6):
        left, top = rng.integers(0, 70, 2).tolist()
        right, bottom = (left + rng.integers(10, 60)).item(), (top + rng.integers(10, 60)).item()
        drawn = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        drawn((left, top, right, bottom), fill=colour or tuple(rng.integers(0, 200, 3).tolist()))
    return picture


def encoded(picture: PIL.Image.Image, kind: str, **options: int) -> Image:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return Image(buffer.getvalue())


def recoloured(picture: PIL.Image.Image) -> Image:
    hue, saturation, value = picture.convert("HSV").split()
    return Image(PIL.Image.merge("HSV", (hue.point(lambda x: (x + 5) % 256), saturation, value)).convert("RGB"))


SAME = {
    "as it is": lambda picture: Image(picture),
    "as a JPEG": lambda picture: encoded(picture, "JPEG", quality=60),
    "as a WebP": lambda picture: encoded(picture, "WEBP", quality=60),
    "half as large": lambda picture: Image(picture.resize((48, 48), PIL.Image.Resampling.LANCZOS)),
    "three times as large": lambda picture: Image(picture.resize((288, 288), PIL.Image.Resampling.BICUBIC)),
    "brighter": lambda picture: Image(PIL.ImageEnhance.Brightness(picture).enhance(1.08)),
    "paler": lambda picture: Image(PIL.ImageEnhance.Color(picture).enhance(0.85)),
    "of a slightly other hue": recoloured,
}
OTHER = {
    "of another colour": lambda seed: Image(drawing(seed, "green")),
    "mirrored": lambda seed: Image(drawing(seed, "red").transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)),
    "another": lambda seed: Image(drawing(seed + 100, "red")),
}


@pytest.fixture
def pipeline():
    with Pipeline(HashingRetriever(), FaissMemory()) as pipeline:
        yield pipeline


@pytest.fixture
def skipped():
    return []


@pytest.fixture
def repeats(skipped):
    return NearDuplicates(on_skip=lambda id, of: skipped.append((id, of)))


@pytest.mark.parametrize("form", SAME)
def test_a_picture_in_another_form_is_passed_over_and_told(pipeline, repeats, skipped, form):
    pictures = [drawing(seed) for seed in range(8)]
    pipeline.add([Document(["a drawing", Image(picture)], id=f"old{n}") for n, picture in enumerate(pictures)])
    again = [Document(["found again", SAME[form](picture)], id=f"new{n}") for n, picture in enumerate(pictures)]
    assert pipeline.add(again, near_duplicates=repeats) == []
    assert skipped == [(f"new{n}", f"old{n}") for n in range(8)] and len(pipeline.memory) == 8


@pytest.mark.parametrize("kind", OTHER)
def test_another_picture_is_stored(pipeline, repeats, skipped, kind):
    pipeline.add([Document(Image(drawing(seed, "red")), id=f"old{seed}") for seed in range(8)])
    others = [Document(OTHER[kind](seed), id=f"new{seed}") for seed in range(8)]
    assert pipeline.add(others, near_duplicates=repeats) == [document.id for document in others]
    assert skipped == []


def test_of_one_addition_the_first_stays_in_one_batch_and_across_batches(repeats, skipped):
    documents = [Document(Image(drawing(n % 5).resize((96 - n, 96 - n))), id=f"d{n}") for n in range(20)]
    told: list[tuple[int, int, str]] = []
    for size in (1, 3, 64):
        with Pipeline(HashingRetriever(), FaissMemory()) as pipeline:
            added = pipeline.add(
                documents, batch_size=size, near_duplicates=repeats, progress=lambda *said: told.append(said)
            )
            assert added == ["d0", "d1", "d2", "d3", "d4"] and len(pipeline.memory) == 5
            assert told[-1] == (20, 20, "d19")
        assert skipped == [(f"d{n}", f"d{n % 5}") for n in range(5, 20)]
        skipped.clear()


def test_adding_again_stores_nothing_twice_and_tells_the_same(pipeline, repeats, skipped):
    documents = [Document(Image(drawing(n % 3)), id=f"d{n}") for n in range(6)]
    for _ in range(2):
        pipeline.add(documents, on_duplicate="skip", near_duplicates=repeats)
        assert skipped == [("d3", "d0"), ("d4", "d1"), ("d5", "d2")] and len(pipeline.memory) == 3
        skipped.clear()


def test_a_document_does_not_repeat_what_it_replaces(pipeline, repeats, skipped):
    pipeline.add([Document(["old", Image(drawing(1))], id="a"), Document(Image(drawing(2)), id="b")])
    newer = [Document(["new", SAME["as a JPEG"](drawing(1))], id="a"), Document(SAME["brighter"](drawing(2)), id="c")]
    assert pipeline.add(newer, on_duplicate="replace", near_duplicates=repeats) == ["a"]
    assert pipeline.memory.get(["a"])[0] == newer[0] and skipped == [("c", "b")]


def test_documents_without_pictures_are_left_alone_and_those_of_several_are_compared_one_by_one(
    pipeline, repeats, skipped
):
    first, second = Image(drawing(1)), Image(drawing(2))
    documents = [
        Document("a text", id="t1"),
        Document(["a text"], id="t2"),
        Document([first, "and", second], id="both"),
        Document([first], id="first"),
        Document([second, first], id="turned"),
        Document([SAME["as a JPEG"](drawing(1)), SAME["half as large"](drawing(2)), "other words"], id="again"),
    ]
    assert pipeline.add(documents, near_duplicates=repeats) == ["t1", "t2", "both", "first", "turned"]
    assert skipped == [("again", "both")]


def test_how_far_hashes_may_differ_is_a_setting(pipeline, skipped):
    pipeline.add([Document(Image(drawing(seed)), id=f"old{seed}") for seed in range(8)])
    again = [Document(encoded(drawing(seed), "JPEG", quality=10), id=f"new{seed}") for seed in range(8)]
    left_out = {}
    for distance in (0, 20):
        pipeline.memory.delete([document.id for document in again])
        strict = NearDuplicates(distance, on_skip=lambda *_: None)
        left_out[distance] = 8 - len(pipeline.add(again, near_duplicates=strict))
    assert left_out[0] < left_out[20] == 8


def test_pictures_are_decoded_once(pipeline, repeats, monkeypatch):
    looked = []
    look = NearDuplicates._look
    monkeypatch.setattr(NearDuplicates, "_look", lambda self, image: looked.append(image) or look(self, image))
    pipeline.add([Document(Image(drawing(n)), id=f"d{n}") for n in range(12)], batch_size=4, near_duplicates=repeats)
    assert len(looked) == 12
    monkeypatch.setattr(near_duplicates, "REMEMBERED", 2)
    pipeline.add([Document(Image(drawing(50)), id="another")], near_duplicates=repeats)
    assert len(repeats._known) <= 2


def test_a_stored_picture_that_cannot_be_decoded_stops_nothing(repeats, skipped):
    retriever = HashingRetriever()
    with Pipeline(retriever, FaissMemory()) as pipeline:
        vectors = retriever.encode_document([Document(["a kite"])])
        pipeline.memory.add([Document(["a kite", Image(b"no picture")], id="broken")], vectors)
        assert pipeline.add([Document(["a kite", Image(drawing(1))], id="kite")], near_duplicates=repeats) == ["kite"]


def test_a_stored_picture_whose_file_is_gone_stops_nothing(tmp_path, repeats, skipped, caplog):
    drawing(1).save(tmp_path / "1.png")
    with Pipeline(HashingRetriever(), FaissMemory(images="in-files")) as pipeline:
        pipeline.add([Document(["a", Image(tmp_path / "1.png")], id="a")])
        (tmp_path / "1.png").unlink()
        pipeline.add([Document(["a", Image(drawing(1))], id="b")], near_duplicates=repeats)
        assert len(pipeline.memory) == 2
    assert skipped == []
    assert "1.png is not there any more. It is taken to look like nothing else." in caplog.text


def test_what_is_left_out_is_logged_where_nobody_asks(pipeline, caplog):
    pipeline.add([Document(Image(drawing(n % 1)), id=f"d{n}") for n in range(2)], near_duplicates=NearDuplicates())
    assert caplog.messages == ["d1 is passed over: it looks like d0"]


def test_bad_settings_and_a_missing_library_are_told_at_once(monkeypatch):
    with pytest.raises(ConfigError, match="0 to 63, not 64"):
        NearDuplicates(64)
    with pytest.raises(ConfigError, match="at least 1, not 0"):
        NearDuplicates(candidates=0)
    monkeypatch.setitem(sys.modules, "imagehash", None)
    with pytest.raises(ConfigError, match=r'not installed. pip install "racm3\[near-duplicates\]"'):
        NearDuplicates()
