"""Documents on their way into the memory: batches that fit, whatever the size of the pictures."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import PIL.Image
import pytest

from racm3 import Document, Image, Pipeline, adding
from racm3.errors import InvalidImage, MemoryCorrupt
from racm3.memories.faiss import FaissMemory
from racm3.testing import HashingRetriever


@pytest.fixture
def batches(monkeypatch):
    """How many documents are encoded at a time."""
    sizes: list[int] = []
    encode = HashingRetriever.encode_document
    monkeypatch.setattr(
        HashingRetriever,
        "encode_document",
        lambda self, documents, **options: sizes.append(len(documents)) or encode(self, documents, **options),
    )
    return sizes


def picture(side: int, seed: int) -> Image:
    return Image(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def test_a_batch_ends_where_its_pictures_are_large(batches, monkeypatch):
    monkeypatch.setattr(adding, "BATCH_PIXELS", 1000)
    sides = [5, 5, 40, 5, 20, 20, 20, 5]
    documents = [Document(Image(picture(side, n).data), id=f"d{n}") for n, side in enumerate(sides)]
    told: list[int] = []
    with Pipeline(HashingRetriever(), FaissMemory()) as pipeline:
        added = pipeline.add(documents, batch_size=3, progress=lambda done, *_: told.append(done))
        assert added == [document.id for document, _ in pipeline.memory.items()] == [f"d{n}" for n in range(8)]
    assert batches == [3, 3, 2] and told == [3, 6, 8]
    batches.clear()
    with Pipeline(HashingRetriever(), FaissMemory()) as pipeline:
        pipeline.add(documents)
    assert batches == [3, 4, 1]


def test_no_batch_is_held_while_the_next_one_is_read():
    alive: list[weakref.ref[Document]] = []

    def source():
        for n in range(12):
            gc.collect()
            assert sum(reference() is not None for reference in alive) <= n % 4
            document = Document(["a kite", picture(8, n)], id=f"d{n}")
            alive.append(weakref.ref(document))
            yield document
            del document

    for policy in ("error", "skip", "replace"):
        alive.clear()
        with Pipeline(HashingRetriever(), FaissMemory()) as pipeline:
            assert len(pipeline.add(source(), batch_size=4, on_duplicate=policy)) == 12


def test_the_size_of_a_picture_is_known_without_decoding_it():
    encoded = picture(30, 1).data
    image = Image(encoded)
    assert image.pixels == 900 and "picture" not in image.__dict__
    assert image.size == (30, 30) and image.pixels == 900
    with pytest.raises(InvalidImage, match="not a picture"):
        _ = Image(b"no picture").pixels
    with pytest.raises(InvalidImage, match="limit"):
        _ = Image(encoded, max_pixels=899).pixels


def test_a_picture_that_cannot_be_decoded_is_an_error_only_where_it_is_encoded():
    broken = Document(["a kite", Image(b"no picture")], id="broken")
    with Pipeline(HashingRetriever(), FaissMemory()) as pipeline:
        pipeline.memory.add([broken], HashingRetriever().encode_document([Document(["a kite"])]))
        assert pipeline.add([broken], on_duplicate="skip") == ["broken"]
        with pytest.raises(InvalidImage, match="not a picture"):
            pipeline.add([Document(["a kite", Image(b"none either")], id="other")])


def test_what_the_memory_cannot_read_any_more_is_stored_anew(tmp_path):
    for name in "abcde":
        PIL.Image.new("RGB", (8, 8), "red" if name == "d" else "blue").save(tmp_path / f"{name}.png")
    documents = [Document([name, Image(tmp_path / f"{name}.png")], id=name) for name in "abcde"]
    with Pipeline(HashingRetriever(), FaissMemory(images="in-files")) as pipeline:
        pipeline.add(documents)
        (tmp_path / "d.png").rename(tmp_path / "moved.png")
        with pytest.raises(MemoryCorrupt, match=r"d\.png is not there any more"):
            pipeline.memory.get(["d"])
        moved = [*documents[:3], Document(["d", Image(tmp_path / "moved.png")], id="d"), documents[4]]
        assert pipeline.add(moved, on_duplicate="skip") == list("abcde")
        assert pipeline.memory.get(list("abcde")) == moved
        assert len(pipeline.memory) == 5
