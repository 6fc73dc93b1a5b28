"""Pictures that a memory keeps by their path: what is read is what was added, or an error."""

from __future__ import annotations

import os
import sqlite3
import threading
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from racm3 import Document, Image
from racm3.errors import MemoryCorrupt, MemoryStoreError
from racm3.interfaces import Encoder
from racm3.memories.checksum import checksum
from racm3.memories.faiss import FaissMemory
from racm3.memories.shards import Export, export_memory, import_memory

NAMES = ("red", "green", "blue")
VECTORS = np.eye(3, 4, dtype=np.float32)


@pytest.fixture
def photos(tmp_path: Path) -> dict[str, Path]:
    """Pictures with some content, so that their bytes outweigh what a memory takes of itself."""
    (tmp_path / "photos ü").mkdir()
    paths = {name: tmp_path / "photos ü" / f"{name}.png" for name in NAMES}
    for seed, path in enumerate(paths.values()):
        noise = np.random.default_rng(seed).integers(0, 256, (200, 200, 3), dtype=np.uint8)
        PIL.Image.fromarray(noise).save(path)
    return paths


@pytest.fixture
def pictures(photos) -> list[Document]:
    return [Document([name, Image(path)], id=name) for name, path in photos.items()]


def filled(folder: Path | None, documents: list[Document], **settings) -> FaissMemory:
    memory = FaissMemory(folder, **settings)
    memory.bind(Encoder("encoder", 4))
    memory.add(documents, VECTORS[: len(documents)])
    return memory


def test_they_come_back_from_their_files_and_take_no_room(tmp_path, pictures):
    with filled(tmp_path / "memory", pictures, images="in-files") as memory:
        assert memory.stats()["images"] == memory.stats()["images_in_files"] == 3
    assert sum(path.stat().st_size for path in (tmp_path / "memory").iterdir()) < 150_000  # where one takes 120,000
    with FaissMemory(tmp_path / "memory") as memory:  # whatever it would do with new ones
        assert memory.get(NAMES) == pictures
        hit = memory.search(VECTORS[:1], k=1)[0][0]
        assert hit.document == pictures[0]
        assert hit.document.images[0].path == pictures[0].images[0].path
        assert [document for document, _ in memory.items()] == pictures
        assert memory.search(VECTORS[:1], k=1, exclude=[{pictures[0].images[0].content_hash}])[0][0].id != "red"
        assert memory.verify() == []


def remove(path: Path) -> None:
    path.unlink()


def another(path: Path) -> None:
    PIL.Image.new("RGB", (8, 8)).save(path)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)  # reading it would never end


@pytest.mark.parametrize(
    ("damage", "reason"),
    [(remove, "is not there any more"), (another, "holds another"), (flip, "holds another"), (pipe, "holds another")],
)  # fmt: skip
def test_a_file_that_is_gone_or_another_is_an_error_that_names_it(tmp_path, photos, pictures, damage, reason):
    memory = filled(tmp_path / "memory", pictures, images="in-files")
    damage(photos["green"])
    hit = memory.search(VECTORS[1:2], k=1)[0][0]  # is found, for its vector is here
    assert hit.id == "green"
    with pytest.raises(MemoryCorrupt, match=f"picture of document 'green' lies in a file, and .*green.png {reason}"):
        _ = hit.document
    with pytest.raises(MemoryCorrupt, match=r"green\.png"):
        memory.get(["green"])
    assert memory.get(["red", "blue"]) == [pictures[0], pictures[2]]
    (problem,) = memory.verify()
    assert "green.png" in problem
    assert memory.delete(["green"]) == 1
    assert memory.verify() == []
    memory.close()


def test_what_has_no_file_is_stored(tmp_path):
    noise = np.zeros((8, 8, 3), np.uint8)
    with filled(tmp_path / "memory", [Document(Image(noise), id="red")], images="in-files") as memory:
        assert memory.stats()["images_in_files"] == 0
        assert np.array_equal(np.asarray(memory.get(["red"])[0].images[0].picture), noise)


def test_a_picture_that_is_stored_stays_stored(tmp_path, photos, pictures):
    filled(tmp_path / "memory", pictures[:1]).close()
    same = Document(["the same", pictures[0].images[0]], id="again")
    with FaissMemory(tmp_path / "memory", images="in-files") as memory:
        memory.add([same], VECTORS[1:2])
        assert memory.stats()["images_in_files"] == 0
    photos["red"].unlink()
    with FaissMemory(tmp_path / "memory") as memory:
        assert memory.get(["red", "again"]) == [pictures[0], same]


def test_a_picture_that_comes_both_ways_at_once_is_stored(tmp_path, photos):
    image, same = Image(photos["red"]), Image(photos["red"].read_bytes())
    for documents in ([Document(image, id="a"), Document(same, id="b")], [Document([same, "x", image], id="c")]):
        with filled(None, documents, images="in-files") as memory:
            assert memory.stats()["images_in_files"] == 0


def test_a_folder_that_was_moved_is_found_again_by_adding_it_anew(tmp_path, photos, pictures):
    memory = filled(tmp_path / "memory", pictures, images="in-files")
    moved = photos["red"].parent.rename(tmp_path / "moved")
    with pytest.raises(MemoryCorrupt, match="is not there any more"):
        memory.get(NAMES)
    again = [Document([name, Image(moved / f"{name}.png")], id=name) for name in NAMES]
    memory.add(again, VECTORS, on_duplicate="replace")
    assert memory.get(NAMES) == pictures
    assert memory.verify() == []
    memory.close()


def test_of_two_files_with_one_picture_the_one_that_is_there_counts(tmp_path, photos, pictures):
    copy = photos["red"].with_name("copy.png")
    copy.write_bytes(photos["red"].read_bytes())
    memory = filled(tmp_path / "memory", pictures[:1], images="in-files")
    memory.add([Document(Image(copy), id="copy")], VECTORS[1:2])
    copy.unlink()
    assert memory.get(["red"]) == pictures[:1]  # its own file was sound, and stays
    memory.close()


def test_a_file_that_changed_before_it_was_added_is_stored(tmp_path, photos, pictures):
    photos["red"].write_bytes(b"shorter")
    with filled(tmp_path / "memory", pictures[:1], images="in-files") as memory:
        assert memory.get(["red"]) == pictures[:1]


def test_what_came_through_a_pipe_has_no_file(photos):
    reading, writing = os.pipe()
    data = photos["red"].read_bytes()
    thread = threading.Thread(target=lambda: (os.write(writing, data), os.close(writing)))
    thread.start()
    assert Image(f"/dev/fd/{reading}").path is None
    thread.join()
    os.close(reading)


@pytest.mark.parametrize("data", [b"", b"no number", b"9" * 5000, b"0 /proc/kmsg", b"5 \0", b"5 .", "text", 7, None])
def test_a_place_that_is_none_is_an_error_of_ours(tmp_path, pictures, data):
    filled(tmp_path / "memory", pictures, images="in-files").close()
    check = checksum(b"file", data) if isinstance(data, bytes) else b""
    connection = sqlite3.connect(tmp_path / "memory" / "memory.db")
    if data is not None:
        connection.execute("UPDATE contents SET data = ?, checksum = ? WHERE is_image = 2", (data, check))
    else:  # or text that is taken for one
        connection.execute("UPDATE contents SET is_image = 2 WHERE is_image = 0")
    connection.commit()
    connection.close()
    with FaissMemory(tmp_path / "memory") as memory:
        with pytest.raises(MemoryCorrupt):
            memory.get(["red"])
        assert len(memory.verify()) >= 3
        if isinstance(data, bytes):
            with pytest.raises(MemoryCorrupt):
                memory.export_read_only(tmp_path / "copy")
        else:  # it is copied as it is, damage and all
            memory.export_read_only(tmp_path / "copy")
            with FaissMemory(tmp_path / "copy") as copy, pytest.raises(MemoryCorrupt):
                copy.get(["red"])


@pytest.mark.parametrize("data", ["text", 7])
def test_a_damaged_place_is_mended_when_its_picture_is_added_again(tmp_path, pictures, data):
    filled(tmp_path / "memory", pictures[:1], images="in-files").close()
    connection = sqlite3.connect(tmp_path / "memory" / "memory.db")
    connection.execute("UPDATE contents SET data = ? WHERE is_image = 2", (data,))
    connection.commit()
    connection.close()
    with FaissMemory(tmp_path / "memory", images="in-files") as memory:
        memory.add(pictures[:1], VECTORS[:1], on_duplicate="replace")
        assert memory.get(["red"]) == pictures[:1] and memory.verify() == []


def test_a_picture_that_is_added_as_such_needs_its_file_no_more(tmp_path, photos, pictures):
    filled(tmp_path / "memory", pictures[:1], images="in-files").close()
    with FaissMemory(tmp_path / "memory") as memory:
        memory.add([Document(["the same", pictures[0].images[0]], id="again")], VECTORS[1:2])
        photos["red"].unlink()
        assert memory.get(["red"]) == pictures[:1]


def test_a_copy_and_an_export_hold_the_pictures(tmp_path, photos, pictures):
    with filled(tmp_path / "memory", pictures, images="in-files") as memory:
        memory.export_read_only(tmp_path / "copy")
        export_memory(memory, tmp_path / "shards")
    for path in photos.values():
        path.unlink()
    with FaissMemory(tmp_path / "copy") as copy:
        assert copy.get(NAMES) == pictures
        assert copy.stats()["images_in_files"] == 0
        assert copy.verify() == []
    with FaissMemory(tmp_path / "imported", images="in-files") as imported:
        import_memory(Export(tmp_path / "shards"), imported)
        assert imported.get(NAMES) == pictures


def test_a_copy_without_all_pictures_is_none(tmp_path, photos, pictures):
    with filled(tmp_path / "memory", pictures, images="in-files") as memory:
        photos["blue"].unlink()
        with pytest.raises(MemoryCorrupt, match=r"A picture of the copy lies in a file, and .*blue\.png is not there"):
            memory.export_read_only(tmp_path / "copy")
    assert list((tmp_path / "copy").iterdir()) == []


def test_a_relative_path_is_kept_whole(tmp_path, photos, monkeypatch):
    monkeypatch.chdir(tmp_path)
    memory = filled(
        tmp_path / "memory", [Document(Image(f"photos ü/{photos['red'].name}"), id="red")], images="in-files"
    )
    monkeypatch.chdir("/")
    assert memory.get(["red"])[0].images[0].size == (200, 200)
    memory.close()


def test_another_word_is_an_error():
    with pytest.raises(MemoryStoreError, match="Images cannot be 'nowhere'"):
        FaissMemory(images="nowhere")
