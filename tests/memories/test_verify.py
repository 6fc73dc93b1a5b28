"""What `verify` finds: all that differs from what was written, wherever it stands."""

from __future__ import annotations

import random
import sqlite3
from itertools import islice

import numpy as np
import pytest

from racm3.document import Document, Image
from racm3.errors import MemoryCorrupt, MemoryStoreError
from racm3.interfaces import Encoder
from racm3.memories import snapshot
from racm3.memories.faiss import FaissMemory

DIM = 16


def unit(seed, n):
    vectors = np.random.default_rng(seed).standard_normal((n, DIM)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def contents(memory):
    return [(document, document.images, vector.tobytes()) for document, vector in memory.items()]


@pytest.fixture
def folder(tmp_path):
    """A closed memory of 30 documents, with a snapshot."""
    pixels = np.random.default_rng(0).integers(0, 256, (30, 6, 6, 3), dtype=np.uint8)
    documents = [
        Document([f"text {n}", Image(pixels[n])], id=f"d{n}", metadata={"n": n, "even": n % 2 == 0, "l": ["a", n]})
        for n in range(30)
    ]
    with FaissMemory(tmp_path / "memory") as memory:
        memory.bind(Encoder("encoder", DIM))
        memory.add(documents, unit(0, 30))
    return tmp_path / "memory"


def test_a_memory_that_was_used_is_sound(folder):
    with FaissMemory(folder) as memory:
        memory.delete(["d3", "d4"])
        memory.add([Document("new", id="d5", metadata={"n": 5})], unit(1, 1), on_duplicate="replace")
        assert memory.verify() == []
        memory.export_read_only(folder.parent / "copy", snapshot=True)
    for place in (folder, folder.parent / "copy"):
        with FaissMemory(place, read_only=True) as memory:
            assert memory.verify() == []
    with FaissMemory() as memory:
        assert memory.verify() == []
    with pytest.raises(MemoryStoreError, match="is closed"):
        memory.verify()


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        ("UPDATE documents SET vector = zeroblob(64) WHERE seq = 6", "'d5' does not match its checksum"),
        ("UPDATE contents SET data = x'00' WHERE key = 11", "'d5' does not match"),
        ("UPDATE contents SET hash = zeroblob(32) WHERE key = 12", "'d5' does not match"),
        ("UPDATE contents SET hash = zeroblob(32) WHERE key = 11", "'d5' does not match"),
        ("UPDATE contents SET hash = 7 WHERE key = 12", "'d5' does not match"),
        ("DELETE FROM parts WHERE seq = 6", "2 contents are shown by no document"),
        ("UPDATE parts SET seq = 99 WHERE seq = 6 AND position = 0", "1 parts belong to no document"),
        ("DELETE FROM contents WHERE key = 11", "1 parts show nothing"),
        ("DELETE FROM tags WHERE seq = 6 AND field = 1", "Filters do not find document 'd5'"),
        ("UPDATE fields SET value = 77 WHERE value = 5", "Filters do not find document 'd5'"),
        ("INSERT INTO tags SELECT max(key), 2 FROM fields WHERE value = 29", "by 1 values that they do not have"),
        ("UPDATE sqlite_sequence SET seq = 20", "10 documents are numbered above"),
        ("UPDATE sqlite_sequence SET seq = 'thirty'", "does not know how far it has come"),
        ("UPDATE manifest SET value = 0.5 WHERE name = 'generation'", "does not know how far it has come"),
        ("DELETE FROM manifest WHERE name = 'generation'", "does not know how far it has come"),
        ("UPDATE manifest SET value = 'other' WHERE name = 'fingerprint'", "does not know its encoder"),
        ("UPDATE manifest SET value = '16' WHERE name = 'dim'", "does not know its encoder"),
        ("UPDATE manifest SET value = 8 WHERE name = 'dim'", "does not know its encoder"),
        ("DELETE FROM manifest WHERE name = 'fingerprint'", "does not know its encoder"),
    ],
)
def test_each_table_is_checked(folder, statement, problem):
    connection = sqlite3.connect(folder / "memory.db")
    with connection:
        # Of two fields of d5 take one that only it has.
        field = "(SELECT field FROM tags WHERE seq = 6 ORDER BY field LIMIT 1)"
        connection.execute(statement.replace("field = 1", f"field = {field}"))
    connection.close()
    with FaissMemory(folder, read_only=True) as memory:
        assert any(problem in said for said in memory.verify()), memory.verify()


def test_documents_that_are_out_of_order_are_told_and_not_read_for_ever(folder):
    data = bytearray((folder / "memory.db").read_bytes())
    # A row stands in its page as its number, the width of its header (8), and the types of its columns.
    data[data.index(bytes([30, 8, 0, 12 + 2 * len("d29"), 12 + 2 * 32]))] = 1
    (folder / "memory.db").write_bytes(data)
    with FaissMemory(folder, read_only=True) as memory:
        assert any("out of order" in said for said in memory.verify())
        with pytest.raises(MemoryCorrupt, match="out of order"):
            list(islice(memory.items(), 100))


def test_a_document_that_is_gone_is_told(folder):
    connection = sqlite3.connect(folder / "memory.db")
    with connection:
        connection.execute("DELETE FROM documents WHERE seq = 6")
    connection.close()
    with FaissMemory(folder, read_only=True) as memory:
        assert memory.verify()
        ((hit,),) = memory.search(unit(0, 30)[5:6], k=1)
        assert hit.id == "d5"
        with pytest.raises(MemoryStoreError, match="'d5' was removed"):
            _ = hit.document


@pytest.mark.parametrize(
    "statement",
    [
        f"UPDATE contents SET key = {2**63 - 1} WHERE key = 12",
        f"UPDATE fields SET key = {2**63 - 1} WHERE key = 3",
        f"UPDATE sqlite_sequence SET seq = {2**63 - 1}",
    ],
)
def test_where_no_number_can_follow_nothing_is_added(folder, statement):
    connection = sqlite3.connect(folder / "memory.db")
    with connection:
        connection.execute(statement)
    connection.close()
    with FaissMemory(folder) as memory:
        with pytest.raises(MemoryCorrupt, match="numbers are higher than they can be"):
            memory.add([Document("new", id="new", metadata={"new": 1})], unit(1, 1))
        assert memory.get(["new"]) == [None]


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM tags",
        "DELETE FROM tags WHERE seq = 6",
        "UPDATE fields SET value = 77 WHERE value = 5",
        "INSERT INTO tags SELECT max(key), 2 FROM fields WHERE value = 29",
        "DELETE FROM fields",
    ],
)
def test_fields_that_are_indexed_anew_are_found_again(folder, statement):
    connection = sqlite3.connect(folder / "memory.db")
    with connection:
        connection.execute(statement)
    connection.close()
    with FaissMemory(folder) as memory:
        assert any("mends it" in said for said in memory.verify())
        memory.search(unit(0, 1), k=9, where={"n": {"$in": [5, 29]}})  # and remembers what it found
        seen = []
        for name in ("n", "even", "l"):
            assert memory.index_field(name, lambda *said: seen.append(said)) == 30
        assert seen[-1] == (30, 30, "index")
        assert memory.verify() == []
        assert {hit.id for hit in memory.search(unit(0, 1), k=9, where={"n": {"$in": [5, 29]}})[0]} == {"d5", "d29"}


def test_a_field_that_no_document_has_is_an_error_that_changes_nothing(folder):
    with FaissMemory(folder) as memory:
        with pytest.raises(MemoryStoreError, match="No document has a field 'm'"):
            memory.index_field("m")
        assert memory.verify() == []


def test_a_snapshot_that_seems_older_than_it_is_is_told(folder):
    path = folder / "index.json"
    path.write_text(path.read_text().replace(f'"format": {snapshot.FORMAT}', f'"format": {snapshot.FORMAT - 1}'))
    with FaissMemory(folder, read_only=True) as memory:
        assert memory.verify() == ["The snapshot of the index is damaged; compacting the memory builds it anew."]


def test_a_snapshot_that_differs_is_told(folder):
    (path,) = folder.glob("vectors-*.rows")
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with FaissMemory(folder, read_only=True) as memory:
        assert memory.verify() == ["The snapshot of the index is damaged; compacting the memory builds it anew."]


@pytest.mark.parametrize("name", ["memory.db", "vectors-*.rows", "index.json"])
def test_a_flipped_bit_is_found_or_changes_nothing(folder, name):
    """Bits that mean nothing (room that no row uses, counters of SQLite) may flip; what is read then is as it was."""
    with FaissMemory(folder) as memory:
        memory.export_read_only(folder.parent / "copy", snapshot=True)
    folder = folder.parent / "copy"
    (path,), draw, found = folder.glob(name), random.Random(0), 0
    sound = path.read_bytes()
    with FaissMemory(folder, read_only=True) as memory:
        expected, hits = contents(memory), memory.search(unit(0, 3), k=3, where={"even": True})
    for _ in range(150):
        data, place = bytearray(sound), draw.randrange(len(sound))
        data[place] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
        try:
            with FaissMemory(folder, read_only=True) as memory:
                if memory.verify():
                    found += 1
                    continue
                assert contents(memory) == expected, place
                again = memory.search(unit(0, 3), k=3, where={"even": True})
                assert [[hit.id for hit in one] for one in again] == [[hit.id for hit in one] for one in hits], place
        except MemoryStoreError:
            found += 1
    assert found >= 5


def test_compacting_gives_back_room_and_loses_nothing(folder):
    with FaissMemory(folder) as memory:
        pixels = np.random.default_rng(1).integers(0, 256, (40, 64, 64, 3), dtype=np.uint8)
        memory.add([Document(Image(one), id=f"large{n}") for n, one in enumerate(pixels)], unit(2, 40))
        memory.delete([f"large{n}" for n in range(40)])
        expected, before = contents(memory), sum(memory.stats()["bytes"].values())
        memory.compact()
        assert contents(memory) == expected and memory.verify() == []
        assert sum(memory.stats()["bytes"].values()) < before / 2
    with FaissMemory(folder) as memory:
        assert contents(memory) == expected
        memory.export_read_only(folder.parent / "copy")
    with FaissMemory(folder.parent / "copy") as memory:
        memory.compact()
    assert not list(folder.parent.glob("copy/index*"))  # it would only take room


def test_stats_say_what_is_stored(folder):
    with FaissMemory(folder) as memory:
        memory.add([Document("text 1", id="again", metadata={"n": 1})], unit(3, 1))
        stats = memory.stats()
    assert {name: stats[name] for name in ("documents", "texts", "images")} == {
        "documents": 31, "texts": 30, "images": 30
    }  # fmt: skip
    assert stats["fields"] == {"even": 30, "l": 30, "n": 31}
    assert stats["encoder"] == {"fingerprint": "encoder", "dim": DIM}
    assert stats["bytes"]["memory.db"] > 0
