"""racm3 memory: what each command says of a sound memory, a damaged one and none."""

from __future__ import annotations

import json
import sqlite3
from functools import partial

import numpy as np
import pytest

from racm3.document import Document, Image
from racm3.interfaces import Encoder
from racm3.memories.faiss import FaissMemory


@pytest.fixture
def run(run):
    """Runs `racm3 memory ...`."""
    return partial(run, "memory")


@pytest.fixture
def folder(tmp_path):
    """A closed memory of two documents, from which a large one was removed."""
    with FaissMemory(tmp_path / "memory") as memory:
        memory.bind(Encoder("encoder", 2))
        large = Image(np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8))
        documents = [Document(text, id=text, metadata={"colour": text}) for text in ("red", "blue")]
        memory.add([*documents, Document(large, id="large")], np.tile(np.float32([1, 0]), (3, 1)))
        memory.delete(["large"])
    return tmp_path / "memory"


def test_stats(folder, run):
    code, out, _ = run("stats", folder, "--json")
    stats = json.loads(out)
    assert code == 0 and (stats["documents"], stats["texts"], stats["images"]) == (2, 2, 0)
    assert stats["encoder"] == {"fingerprint": "encoder", "dim": 2} and stats["fields"] == {"colour": 2}
    code, out, _ = run("stats", folder)
    assert code == 0 and "field colour" in out and "encoder (width 2)" in out and "memory.db" in out


def test_verify_names_what_is_damaged_and_fails(folder, run):
    code, out, _ = run("verify", folder)
    assert (code, out) == (0, f"{folder} is sound.\n")
    connection = sqlite3.connect(folder / "memory.db")
    with connection:
        connection.execute("UPDATE contents SET data = x'00' WHERE key = 2")
    connection.close()
    code, out, _ = run("verify", folder)
    assert code == 1 and out == "Document 'blue' does not match its checksum.\n"
    code, out, _ = run("verify", folder, "--json")
    assert code == 1 and json.loads(out)["sound"] is False


def test_compact_gives_back_room(folder, run):
    code, out, _ = run("compact", folder, "--json")
    sizes = json.loads(out)
    assert code == 0
    assert sizes["bytes_after"] < sizes["bytes_before"] - 100_000  # noise does not compress: it took 120,000 bytes
    with FaissMemory(folder) as memory:
        assert [document.id for document, _ in memory.items()] == ["red", "blue"]


def test_another_index_is_made(folder, run):
    code, out, _ = run("reindex", folder, "--index", "ivf")
    assert (code, out) == (
        0,
        f"{folder}: the index of 2 documents is now ivf, which of so many documents is exact.\n",
    )
    code, out, _ = run("stats", folder, "--json")
    assert code == 0 and json.loads(out)["index"] == "ivf"
    code, _, err = run("reindex", folder, "--index", "hsnw")
    assert code == 1 and "No index 'hsnw'" in err and "Did you mean 'hnsw'?" in err


def test_a_field_is_indexed_anew(folder, run):
    code, out, _ = run("index-field", folder, "colour")
    assert (code, out) == (0, f"{folder}: filters by colour find 2 documents.\n")
    code, out, _ = run("index-field", folder, "colour", "--json")
    assert code == 0 and json.loads(out) == {"field": "colour", "documents": 2}
    code, _, err = run("index-field", folder, "color")
    assert code == 1 and "No document has a field 'color'" in err and "Did you mean 'colour'?" in err


def test_documents_are_removed_damaged_ones_as_well(folder, run):
    connection = sqlite3.connect(folder / "memory.db")
    with connection:
        connection.execute("UPDATE contents SET data = x'00' WHERE key = 2")
    connection.close()
    assert run("verify", folder)[0] == 1
    assert run("delete", folder, "blue", "gone")[:2] == (0, "1 document removed; the memory holds 1.\n")
    assert run("verify", folder)[0] == 0
    code, out, _ = run("delete", folder, "gone", "--json")
    assert code == 1 and json.loads(out) == {"removed": 0, "left": 1}


def test_what_is_no_memory_of_this_kind_is_told_from_one_that_lost_its_database(folder, tmp_path, run):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "chroma.sqlite3").write_bytes(b"another kind")
    (tmp_path / "other" / "index.html").write_text("of another thing")
    for command in ("stats", "verify", "compact"):
        code, _, err = run(command, tmp_path / "other")
        assert code == 1 and "no memory of this kind" in err
    (folder / "memory.db").unlink()
    for command in ("stats", "compact", "reindex"):
        code, _, err = run(command, folder)
        assert code == 1 and "its database, memory.db, is gone" in err and "backup" in err
    assert not (folder / "memory.db").exists()


def test_a_memory_is_not_exported_into_itself(folder, run):
    for inside in (folder, folder / "shards"):
        code, _, err = run("export", folder, inside)
        assert code == 1 and "lies inside the memory" in err
    assert not (folder / "shards").exists()


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["verify"], "no document was changed"),
        (["reindex"], "no document was changed"),
        (["export", "shards"], "the same command begins it anew"),
    ],
)
def test_who_interrupts_a_command_is_told_what_has_come_of_it(folder, tmp_path, run, monkeypatch, command, said):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    for name in ("verify", "reindex", "items"):
        monkeypatch.setattr(FaissMemory, name, interrupted)
    name, *more = command
    code, _, err = run(name, folder, *(tmp_path / one for one in more))
    assert code == 130 and "Interrupted" in err and said in err


def test_a_memory_is_exported_and_imported(folder, tmp_path, run):
    code, out, _ = run("export", folder, tmp_path / "shards")
    assert (code, out) == (0, f"2 documents in 1 shard at {tmp_path / 'shards'}.\n")
    code, out, _ = run("import", tmp_path / "shards", tmp_path / "copy", "--json")
    assert code == 0 and json.loads(out) == {"read": 2, "new": 2, "stored": 2, "broken": {}}
    code, out, _ = run("import", tmp_path / "shards", tmp_path / "copy")
    assert (code, out) == (0, "0 new documents; the memory holds 2.\n")
    with FaissMemory(tmp_path / "copy") as memory:
        assert [document.id for document, _ in memory.items()] == ["red", "blue"]


def test_a_broken_shard_is_named_and_no_memory_is_made(folder, tmp_path, run):
    run("export", folder, tmp_path / "shards")
    (tmp_path / "shards" / "shard-000000.tar").write_bytes(b"torn")
    code, _, err = run("import", tmp_path / "shards", tmp_path / "copy")
    assert code == 1 and "shard-000000.tar: it does not match its checksum" in err and "--skip-broken" in err
    assert not (tmp_path / "copy").exists()
    code, out, err = run("import", tmp_path / "shards", tmp_path / "copy", "--skip-broken")
    assert code == 1 and "All 1 shards" in err and out == "" and not (tmp_path / "copy").exists()


def test_another_kind_of_memory_is_exported_and_imported(toy, install, folder, tmp_path, run):
    install("racm3-example", """
        @hookimpl
        def racm3_components():
            yield Component(MemoryStore, "example", "racm3.scaffold.memory:ExampleMemory")
    """)  # fmt: skip
    run("export", folder, tmp_path / "shards")
    code, out, err = run("import", tmp_path / "shards", tmp_path / "example", "--kind", "example")
    assert code == 0 and "2 new documents" in out, err
    code, out, err = run("export", tmp_path / "example", tmp_path / "back", "--kind", "example")
    assert code == 0 and "2 documents" in out, err
    code, _, err = run("import", tmp_path / "back", tmp_path / "copy", "--kind", "exmaple")
    assert code == 1 and "Did you mean 'example'?" in err and not (tmp_path / "copy").exists()


def test_what_is_no_export_is_not_imported(folder, tmp_path, run):
    code, _, err = run("import", folder, tmp_path / "copy")
    assert code == 1 and "There is no export of a memory at" in err and "racm3 memory export" in err
    code, _, err = run("export", tmp_path / "nowhere", tmp_path / "shards")
    assert code == 1 and "There is no memory at" in err and not (tmp_path / "shards").exists()


@pytest.mark.parametrize("command", ["stats", "verify", "compact", "reindex", "index-field", "delete"])
def test_no_memory_is_made_where_none_is(tmp_path, run, command):
    more = ["colour"] if command in ("index-field", "delete") else []
    code, _, err = run(command, tmp_path / "nowhere", *more)
    assert code == 1 and "There is no memory at" in err and "racm3 index" in err
    assert not (tmp_path / "nowhere").exists()
    (tmp_path / "empty").mkdir()
    code, _, err = run(command, tmp_path / "empty", *more)
    assert code == 1 and "There is no memory at" in err
    assert list((tmp_path / "empty").iterdir()) == []
