"""What is Chroma's own: embedding functions, exact filters, pictures, calls that fail, and folders that are not ours."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import chromadb
import numpy as np
import pytest
from chromadb.utils import embedding_functions

from racm3 import Document, Image, MemoryStore
from racm3.errors import ConfigError, DuplicateDocument, MemoryCorrupt, MemoryStoreError
from racm3.interfaces import Encoder
from racm3.memories.predicate import predicate
from racm3.registry import Registry
from racm3_chroma import record
from racm3_chroma.archive import MANIFEST
from racm3_chroma.memory import ChromaMemory
from racm3_chroma.where import Unsayable, translated

DIM = 8
ENCODER = Encoder("test", DIM)


def unit(seed: int, n: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((n, DIM)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def texts(n: int, start: int = 0) -> list[Document]:
    return [Document(f"text {i}", id=f"d{i:03d}", metadata={"i": i}) for i in range(start, start + n)]


def picture(seed: int) -> Image:
    return Image(np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8))


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[ChromaMemory]:
    with ChromaMemory(tmp_path / "memory") as memory:
        memory.bind(ENCODER)
        yield memory


def chroma_at(path: Path) -> Any:
    """Chroma's own client of a folder, as another program has it."""
    return chromadb.PersistentClient(str(path.resolve()), chromadb.Settings(_env_file=None, anonymized_telemetry=False))


# Embedding functions


class Tempting(embedding_functions.EmbeddingFunction):
    """An embedding function that says when it is made or called."""

    used: ClassVar[list[str]] = []

    def __init__(self) -> None:
        pass

    def __call__(self, input: Any) -> Any:
        Tempting.used.append("called")
        return [np.zeros(DIM, np.float32) for _ in input]

    @staticmethod
    def name() -> str:
        return "tempting"

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> Tempting:
        Tempting.used.append("made")
        return Tempting()

    def get_config(self) -> dict[str, Any]:
        return {"load": "anything"}


def test_an_embedding_function_that_a_collection_names_is_never_made(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(embedding_functions.known_embedding_functions, "tempting", Tempting)
    client = chroma_at(tmp_path)
    for name in ("racm3", "racm3-pictures", "control"):
        client.create_collection(name, metadata=MANIFEST, embedding_function=Tempting())
    named = client.get_collection("racm3", embedding_function=None).configuration_json["embedding_function"]
    assert named["name"] == "tempting"
    Tempting.used.clear()
    with ChromaMemory(tmp_path) as memory:
        memory.bind(ENCODER)
        vectors = unit(0, 3)
        memory.add([*texts(2), Document(["a picture", picture(0)], id="p")], vectors)
        memory.add([Document("new", id="p")], vectors[2:], on_duplicate="replace")
        for limit in (100, 0):
            memory.exact_up_to = limit
            assert memory.search(vectors[:1], k=1, where={"i": {"$gte": 0}})[0][0].document == texts(1)[0]
        assert len(list(memory.items())) == 3
        assert len(memory.random(2, rng=np.random.default_rng(0))) == 2
        memory.delete(["d001"])
        memory.refresh()
    assert Tempting.used == []
    # The usual way, with embedding_function=None, makes it as soon as something is added: this test can fail.
    client.get_collection("control", embedding_function=None).add(ids=["x"], embeddings=[[0.0] * DIM])
    assert "made" in Tempting.used
    client.close()


# What a process connects to while it uses a memory; Python tells of every attempt.
CONNECTIONS = """
import json, sys
seen = []
sys.addaudithook(lambda event, given: seen.append(given[1]) if event == "socket.connect" else None)
from pathlib import Path
import numpy as np
from racm3 import Document
from racm3.interfaces import Encoder
from racm3_chroma.memory import ChromaMemory
settings = json.loads(sys.argv[1])
with ChromaMemory(Path("memory") if not settings else None, collection="telemetry", **settings) as memory:
    memory.bind(Encoder("e", 2))
    memory.add([Document("a")], np.float32([[1, 0]]))
    assert memory.search(np.float32([[1, 0]]), k=1)[0]
print(json.dumps(seen))
"""


def test_nobody_but_the_server_is_told_anything(
    tmp_path: Path, chroma_server: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANONYMIZED_TELEMETRY", "True")
    for settings in ({}, {"host": "127.0.0.1", "port": chroma_server}):
        command = [sys.executable, "-c", CONNECTIONS, json.dumps(settings)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        told = {tuple(address) for address in json.loads(done.stdout)}
        assert told == ({("127.0.0.1", chroma_server)} if settings else set())


def test_telemetry_is_off(memory: ChromaMemory) -> None:
    assert memory._chroma._client.get_settings().anonymized_telemetry is False


# Filters

NUMBERS = (0, 1, -1, 2**53, 2**53 + 1, float(2**53), 2**63 - 1, -(2**63), 0.1, 0.30000000000000004, 5e-324, -2.5, 1e308, 10**400)  # fmt: skip


def test_numbers_of_any_size_compare_exactly_in_chroma(memory: ChromaMemory) -> None:
    stored: list[Any] = [*NUMBERS, True, "1", None, [], [-7, 0.5], ["a", 3], [None]]
    documents = [Document("x", id=f"{row:02d}", metadata={"n": value}) for row, value in enumerate(stored)]
    memory.add([*documents, Document("x", id="none")], np.tile(unit(0, 1), (len(documents) + 1, 1)))
    everything: dict[str, Any] = {d.id: d.metadata for d in documents} | {"none": {}}
    for operator, bound in product(("$gt", "$gte", "$lt", "$lte", "$eq"), (*NUMBERS, 2**53 - 1, 0.2)):
        for where in ({"n": {operator: bound}}, {"n": {"$not": {operator: bound}}}):
            fits = predicate(where)
            expected = [id for id, metadata in everything.items() if fits(metadata)]
            assert sorted(memory._archive.records.keys(translated(where))) == sorted(expected), where


def test_what_chroma_cannot_say_is_read_from_the_metadata(memory: ChromaMemory) -> None:
    names = ["ant", "bee", "Cat", "élan", "z\ud800"]
    documents = [Document("x", id=str(row), metadata={"name": name, "i": row}) for row, name in enumerate(names)]
    memory.add(documents, unit(0, 5))
    asked: list[Any] = [{"name": {"$gt": "b"}}, {"$not": {"name": {"$lte": "b"}}}, {"i": {"$in": list(range(2, 9000))}}]
    for limit, where in product((100, 0), asked):
        memory.exact_up_to = limit
        with pytest.raises(Unsayable):
            translated(where)
        expected = [d.id for d in documents if predicate(where)(d.metadata)]
        assert 0 < len(expected) < 5
        assert sorted(hit.id for hit in memory.search(unit(1, 1), k=9, where=where)[0]) == expected


# Beyond what is searched exactly


def test_a_large_memory_is_searched_by_chromas_index_and_scored_exactly(memory: ChromaMemory) -> None:
    documents, vectors = texts(300), unit(0, 300)
    twin = Document("twin", id="a twin", metadata={"i": 5})
    memory.add([*documents, twin], np.concatenate([vectors, vectors[5:6]]))
    memory.exact_up_to = 100
    scores = vectors @ vectors[5]
    hits = memory.search(vectors[5:6], k=10)[0]
    assert [hit.id for hit in hits[:2]] == ["a twin", "d005"]
    nearest = {documents[row].id for row in np.argsort(-scores)[:9]} | {"a twin"}
    assert len({hit.id for hit in hits} & nearest) >= 9
    for hit in hits[1:]:
        assert hit.score == pytest.approx(float(scores[int(hit.id[1:])]), abs=1e-6)
    late, names = {"i": {"$gte": 290}}, {documents[row].id for row in range(295)}
    found = memory.search(vectors[:1], k=9, where=late, exclude=[names])[0]
    assert {hit.id for hit in found} == {f"d{row}" for row in range(295, 300)}
    assert len(memory.search(vectors[:1], k=1000)[0]) == 301


# Pictures


def test_pictures_are_stored_once_in_pieces_and_leave_with_their_last_document(
    memory: ChromaMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "PIECE_BYTES", 100)
    shared = picture(0)
    memory.add([Document([text, shared], id=text) for text in "abc"], unit(0, 3))
    pieces = memory._archive.pictures.count()
    assert pieces == -(-len(shared.data) // 100) > 1
    found = memory.get(["b"])[0]
    assert found is not None and found.image is not None and found.image.data == shared.data
    memory.delete(["a"])
    memory.add([Document("text alone", id="b")], unit(1, 1), on_duplicate="replace")
    assert memory._archive.pictures.count() == pieces
    memory.delete(["c"])
    assert memory._archive.pictures.count() == 0


def test_a_document_that_is_not_what_was_stored_is_named(memory: ChromaMemory, tmp_path: Path) -> None:
    memory.add([Document(["kite", picture(0)], id="p"), *texts(2)], unit(0, 3))
    client = chroma_at(tmp_path / "memory")
    records = client.get_collection("racm3", embedding_function=None)
    changed = records.get(ids=["d001"])["metadatas"][0]["racm3:document"].replace("text 1", "text 2")
    records.update(ids=["d001"], metadatas=[{"racm3:document": changed}])
    with pytest.raises(MemoryCorrupt, match="'d001'"):
        memory.get(["d000", "d001"])
    pictures = client.get_collection("racm3-pictures", embedding_function=None)
    pictures.delete(ids=pictures.get()["ids"])
    with pytest.raises(MemoryCorrupt, match="'p'"):
        memory.get(["p"])
    client.close()


def test_other_programs_see_ids_texts_and_plain_metadata(memory: ChromaMemory, tmp_path: Path) -> None:
    metadata = {"style": "noto", "year": 2024, "odd\n": 1, "list": [1, "a"], "none": None}
    memory.add([Document(["a red kite", picture(0)], id="kite", metadata=metadata), *texts(2)], unit(0, 3))
    client = chroma_at(tmp_path / "memory")
    seen = client.get_collection("racm3", embedding_function=None).get(
        where={"$and": [{"style": "noto"}, {"year": 2024}]}
    )
    assert (seen["ids"], seen["documents"]) == (["kite"], ["a red kite"])
    client.close()


# Calls that fail


@pytest.mark.parametrize("failing", ["add", "set_manifest"])
def test_a_call_that_fails_half_way_is_taken_back(
    memory: ChromaMemory, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    old = Document(["old", picture(0)], id="a", metadata={"v": 1})
    memory.add([old, *texts(3)], unit(0, 4))
    before = [(document, vector.tolist()) for document, vector in memory.items()]
    pieces = memory._archive.pictures.count()
    real, calls = getattr(memory._archive.records, failing), []

    def broken(given: Any) -> None:
        calls.append(given)
        if len(calls) == 1:
            if failing == "add":
                real(given[:1])
            raise MemoryStoreError("The server is gone.")
        real(given)

    monkeypatch.setattr(memory._archive.records, failing, broken)
    new = [Document(["new", picture(1)], id="a"), Document("more", id="b")]
    with pytest.raises(MemoryStoreError, match="is gone"):
        memory.add(new, unit(1, 2), on_duplicate="replace")
    assert [(document, vector.tolist()) for document, vector in memory.items()] == before
    assert memory._archive.pictures.count() == pieces
    assert memory.search(unit(0, 1), k=9)[0][0].document == old
    with pytest.raises(DuplicateDocument):
        memory.add(new, unit(1, 2))


@pytest.mark.parametrize("shelf", ["pictures", "records"])
def test_what_fails_again_when_it_is_taken_back_is_told_and_takes_no_more_than_it_must(
    memory: ChromaMemory, monkeypatch: pytest.MonkeyPatch, shelf: str
) -> None:
    old = Document("old", id="a")
    memory.add([old], unit(0, 1))

    def full(records: Any) -> None:
        if records:
            raise MemoryStoreError("The disk is full.")

    monkeypatch.setattr(getattr(memory._archive, shelf), "add", full)
    new = Document(["new", picture(0)], id="a")
    with pytest.raises(MemoryStoreError, match="full") as raised:
        memory.add([new], unit(1, 1), on_duplicate="replace")
    if shelf == "pictures":  # which come first
        assert memory.get(["a"]) == [old]
    else:
        assert "['a']" in raised.value.message and "on_duplicate" in raised.value.hint
    monkeypatch.undo()
    memory.add([new], unit(1, 1), on_duplicate="replace")
    assert memory.get(["a"]) == [new] and len(memory) == 1


def test_a_search_sees_what_another_memory_of_the_same_folder_changed(memory: ChromaMemory, tmp_path: Path) -> None:
    vectors = unit(0, 4)
    memory.add(texts(3), vectors[:3])
    assert memory.search(vectors[:1], k=1)[0][0].id == "d000"
    with ChromaMemory(tmp_path / "memory") as other:
        other.add([Document("replaced", id="d000")], vectors[3:], on_duplicate="replace")
        other.delete(["d001"])
    assert {hit.id for hit in memory.search(vectors[:1], k=9)[0]} == {"d000", "d002"}
    best = memory.search(vectors[3:], k=1)[0][0]
    assert (best.id, best.document.text) == ("d000", "replaced")


# Places


@pytest.mark.parametrize("settings", [{"host": "localhost"}, {"exact_up_to": -1}])
def test_settings_that_do_not_fit_are_an_error(tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        ChromaMemory(tmp_path / "x", **settings)
    assert not (tmp_path / "x").exists()


def test_without_settings_it_is_where_chroma_itself_would_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with ChromaMemory():
        assert (tmp_path / "chroma" / "chroma.sqlite3").is_file()


def test_what_is_not_a_memory_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("hello")
    for name, content in (("other", "notes.txt"), ("broken", "chroma.sqlite3")):
        (tmp_path / name).mkdir()
        (tmp_path / name / content).write_bytes(b"this is no database" * 100)
    before = sorted(tmp_path.rglob("*"))
    for name, kind, message in (
        ("file", MemoryStoreError, "is a file"),
        ("other", MemoryCorrupt, "no Chroma database"),
        ("broken", MemoryStoreError, "broken"),
    ):
        with pytest.raises(kind, match=message):
            ChromaMemory(tmp_path / name)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_collection_of_another_program_or_version_is_left_alone(tmp_path: Path) -> None:
    client = chroma_at(tmp_path)
    client.create_collection("racm3", embedding_function=None).add(ids=["theirs"], embeddings=[[1.0, 0.0]])
    client.create_collection("newer", embedding_function=None, metadata={"racm3:format": 99})
    with pytest.raises(MemoryCorrupt, match="which racm3 did not make"):
        ChromaMemory(tmp_path)
    with pytest.raises(MemoryStoreError, match=r"format 99.*Upgrade"):
        ChromaMemory(tmp_path, collection="newer")
    assert client.get_collection("racm3", embedding_function=None).count() == 1
    client.close()


def test_a_server_that_does_not_answer_is_named() -> None:
    with pytest.raises(MemoryStoreError, match=r"127\.0\.0\.1:9 .*chroma run"):
        ChromaMemory(host="127.0.0.1", port=9)


def test_the_plugin_gives_the_memory_by_name(tmp_path: Path) -> None:
    import racm3_chroma

    registry = Registry()
    registry.register(racm3_chroma, name="chroma", distribution="racm3-chroma")
    with registry.create(MemoryStore, "chroma", {"path": str(tmp_path / "m")}) as memory:
        assert isinstance(memory, ChromaMemory) and len(memory) == 0
    with pytest.raises(ConfigError, match="Did you mean 'path'"):
        registry.create(MemoryStore, "chroma", {"paht": "x"})
