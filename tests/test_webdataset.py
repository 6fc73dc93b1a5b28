"""Shards as others write them: what is read of them as documents, and what becomes of damaged ones."""

from __future__ import annotations

import io
import json
import os
import tarfile
import tracemalloc
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from racm3 import Document, Image, read_folder
from racm3.errors import ConfigError
from racm3.evaluation.pairs import read_pairs
from racm3.interfaces import Encoder
from racm3.memories.faiss import FaissMemory
from racm3.memories.shards import export_memory


def png(colour: str) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (8, 8), colour).save(buffer, "PNG")
    return buffer.getvalue()


def write(shard: Path, files: Mapping[str, bytes]) -> Path:
    with tarfile.open(shard, "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return shard


def said(**values: object) -> bytes:
    return json.dumps(values).encode()


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    folder = tmp_path / "shards"
    folder.mkdir()
    described = said(
        caption="not this one", url="https://a/1", entity="kite", width=8, exif="{}", similarity=float("nan")
    )
    write(folder / "00000.tar", {"0001.png": png("red"), "0001.txt": b" a red kite\n", "0001.json": described,
                                 "0002.JPG": png("grey"), "0002.json": said(caption="a whale", entity="whale")})  # fmt: skip
    write(
        folder / "00001.tar", {"a/b/1.png": png("blue"), "a/b/2.png": b"no picture", "a/b/3.txt": b"no picture at all"}
    )
    return folder


@pytest.fixture
def skipped() -> list[str]:
    return []


def texts(path: Path, skipped: list[str]) -> list[str]:
    return [document.text for document in read_folder(path, on_skip=lambda where, error: skipped.append(where))]


def test_documents_of_a_folder_a_shard_and_a_pattern(shards: Path, skipped):
    steps: list[tuple[int, int, str]] = []
    documents = list(
        read_folder(shards, on_skip=lambda where, error: skipped.append(where), progress=lambda *s: steps.append(s))
    )
    kite, whale, blue = documents
    assert (kite.id, kite.text, dict(kite.metadata)) == (
        "00000.tar/0001",
        "a red kite",
        {"url": "https://a/1", "entity": "kite"},
    )
    assert (whale.text, dict(whale.metadata)) == ("a whale", {"entity": "whale"})
    assert (blue.id, blue.texts, len(blue.images)) == ("00001.tar/a/b/1", (), 1)
    assert skipped == ["00001.tar/a/b/2", "00001.tar/a/b/3"]
    assert steps[0] == (1, 0, "00000.tar/0001") and len(steps) == 5
    assert texts(shards / "00000.tar", skipped) == texts(shards / "0000[0].tar", skipped) == ["a red kite", "a whale"]
    with pytest.raises(ConfigError, match="There are no shards"):
        read_folder(shards / "9*.tar")


def test_shards_beside_pictures_are_told_of(shards: Path, skipped):
    (shards / "one.png").write_bytes(png("red"))
    assert texts(shards, skipped) == [""] and skipped == ["00000.tar", "00001.tar"]


def test_pairs_and_an_exported_memory(shards: Path, tmp_path: Path):
    pairs = read_pairs(shards / "00000.tar", entity="entity")
    assert [(pair.caption, pair.entity) for pair in pairs] == [("a red kite", "kite"), ("a whale", "whale")]
    memory = FaissMemory()
    memory.bind(Encoder("shards", 2))
    picture = Image(PIL.Image.new("RGB", (8, 8), "red"))
    memory.add([Document(["a kite", picture], id="k", metadata={"entity": "kite"})], np.array([[1, 0]], np.float32))
    export_memory(memory, tmp_path / "out")
    (document,) = read_folder(tmp_path / "out")
    assert (document.text, dict(document.metadata)) == ("a kite", {"entity": "kite"})


def test_of_a_damaged_shard_what_comes_before_is_read(shards: Path, skipped):
    path = shards / "00000.tar"
    whole = path.read_bytes()
    second = whole.index(b"0001.json")
    for damaged in (whole[: second + 700], whole[:second] + b"\xff" + whole[second + 1 :], whole[: len(whole) // 2]):
        skipped.clear()
        path.write_bytes(damaged)
        assert set(texts(path, skipped)) <= {"a red kite", "a whale"} and skipped[-1] == "00000.tar"
    path.write_bytes(b"torn" * 300)
    assert texts(path, skipped) == [] and skipped[-1] == "00000.tar"


def test_a_file_name_is_never_a_command(tmp_path: Path, monkeypatch, skipped):
    monkeypatch.chdir(tmp_path)
    os.rename(write(tmp_path / "x.tar", {"1.png": png("red"), "1.txt": b"red"}), "pipe:touch run;.tar")
    assert texts(Path("*.tar"), skipped) == texts(Path("."), skipped) == ["red"]
    assert not (tmp_path / "run").exists()


def test_a_link_is_not_followed(tmp_path: Path, skipped):
    path = write(tmp_path / "0.tar", {"1.png": png("red")})
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("2.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    assert texts(path, skipped) == [""] and skipped == ["0.tar"]


def test_no_room_is_made_for_more_than_the_file_has(tmp_path: Path, skipped):
    path = write(tmp_path / "0.tar", {"1.png": png("red"), "2.png": png("blue")})
    data = bytearray(path.read_bytes())
    at = data.index(b"2.png")
    data[at + 124 : at + 136] = b"%011o\0" % 2**32  # the size of the second, four gigabytes
    data[at + 148 : at + 156] = b" " * 8
    data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    path.write_bytes(data)
    tracemalloc.start()
    try:
        assert texts(path, skipped) == [""] and skipped == ["0.tar"]
        assert tracemalloc.get_traced_memory()[1] < 2**26
    finally:
        tracemalloc.stop()
