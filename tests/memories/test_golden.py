"""Memories of every format that was ever released open for ever. What is in golden/ is never made anew.

format-2: DOCUMENTS and two more, in float32 and, from the fourth on, in float16; then "gone" was deleted, and "replaced"
replaced, so that there are gaps in the numbers; with the snapshot of its index, one whole. format-2-segments: the same, its
snapshot being in segments; format-2-ids: in segments that hold the ids. export-1: the same, as shards.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from racm3.document import Document, Image
from racm3.interfaces import Encoder
from racm3.memories.faiss import FaissMemory
from racm3.memories.shards import Export, import_memory

GOLDEN = Path(__file__).with_name("golden")
ENCODER = Encoder("golden", 4)
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000020000000108020000007b40e8dd"
    "0000000f49444154789c63fccfc0c0c0c0000006080101cb4776750000000049454e44ae426082"
)
PIXELS = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
METADATA = {
    "text": "☃ \ud800", "int": -7, "large": 2**70, "float": 0.1, "true": True, "none": None,
    "list": ["a", 1, 2.5, False, None], "empty": [], "quo'te.d": 1,
}  # fmt: skip
DOCUMENTS = [
    Document("text alone", id="text", metadata=METADATA),
    Document(["a caption", Image(PNG)], id="picture", metadata={"int": 3}),
    Document([Image(PIXELS), "between", Image(PNG), "a caption"], id="\udcff é"),
    Document("new", id="replaced", metadata={"int": 5}),
]
VECTORS = np.float32([[1, 0, 0, 0], [0.6, 0.8, 0, 0], [0, 0.6, 0, -0.8], [0, 0, 0.60009765625, 0.7998046875]])


@pytest.fixture(params=sorted(path.name for path in GOLDEN.glob("format-*")))
def folder(request, tmp_path):
    return Path(shutil.copytree(GOLDEN / request.param, tmp_path / "memory"))


def assert_golden(memory):
    assert memory.encoder == ENCODER
    items = list(memory.items())
    assert [document for document, _ in items] == DOCUMENTS
    assert np.array_equal([vector for _, vector in items], VECTORS)
    assert items[1][0].images[0].data == PNG
    assert np.array_equal(np.asarray(items[2][0].images[0].picture), PIXELS)
    hits = memory.search(np.float32([[1, 0, 0, 0]]), k=3)[0]
    assert [(hit.id, hit.score) for hit in hits] == [("text", 1), ("picture", np.float32(0.6)), ("replaced", 0)]
    for where, found in [
        ({"int": {"$gt": 0}}, ["picture", "replaced"]),
        ({"list": 2.5, "large": {"$gt": 1e20}, "quo'te.d": 1, "text": "☃ \ud800"}, ["text"]),
        ({"$not": {"int": 3}}, ["text", "replaced", "\udcff é"]),
    ]:
        assert [hit.id for hit in memory.search(np.float32([[1, 0, 0, 0]]), k=9, where=where)[0]] == found
    excluded = memory.search(np.float32([[1, 0, 0, 0]]), k=9, exclude=[{Image(PNG).content_hash}])[0]
    assert [hit.id for hit in excluded] == ["text", "replaced"]


def test_a_golden_memory_opens_holds_what_it_held_and_can_be_changed(folder):
    with FaissMemory(folder, read_only=True) as memory:
        assert_golden(memory)
        assert memory.verify() == []
    with FaissMemory(folder) as memory:
        assert_golden(memory)
        memory.add([DOCUMENTS[0].replace(id="another")], VECTORS[:1])
        assert memory.delete(["another"]) == 1
        memory.compact()
    with FaissMemory(folder) as memory:
        assert_golden(memory)
        assert memory.verify() == []


def test_a_golden_memory_opens_without_its_index(folder):
    for path in folder.glob("index*"):
        path.unlink()
    with FaissMemory(folder) as memory:
        assert_golden(memory)


@pytest.mark.parametrize("name", sorted(path.name for path in GOLDEN.glob("export-*")))
def test_a_golden_export_is_imported(name):
    with FaissMemory() as memory:
        import_memory(Export(GOLDEN / name), memory)
        assert_golden(memory)


def test_there_is_a_golden_memory_of_the_present_formats():
    from racm3.memories import database, shards

    assert (GOLDEN / f"format-{database.FORMAT}" / "memory.db").exists()
    assert (GOLDEN / f"export-{shards.FORMAT}" / "export.json").exists()
