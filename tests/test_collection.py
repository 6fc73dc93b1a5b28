"""The user's own folder: what is read, under which ids, and what becomes of bad samples."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from racm3 import read_folder
from racm3.errors import ConfigError, InvalidDocument, InvalidImage


def paint(path: Path, colour: str = "red") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", (8, 6), colour).save(path)
    return path


@pytest.fixture
def skipped() -> list[tuple[str, Exception]]:
    return []


@pytest.fixture
def read(tmp_path: Path, skipped):
    return lambda: list(read_folder(tmp_path, on_skip=lambda path, error: skipped.append((path, error))))


def lines(path: Path, *entries: object) -> None:
    path.write_text("\n".join(entry if isinstance(entry, str) else json.dumps(entry) for entry in entries) + "\n")


def test_pictures_with_captions_beside_them(tmp_path: Path, read, skipped):
    paint(tmp_path / "kite.png")
    (tmp_path / "kite.txt").write_text("﻿a red kite 凧\n", encoding="utf-8")
    paint(tmp_path / "deep/er/whale.JPG", "grey")
    paint(tmp_path / ".hidden/x.png")
    (tmp_path / "notes.txt").write_text("no picture of that name")
    (tmp_path / "scan.tiff").write_bytes(b"another format")
    (tmp_path / "scan.txt").write_text("its caption")
    whale, kite = read()
    assert (kite.id, kite.text, dict(kite.metadata)) == ("kite.png", "a red kite 凧", {"path": "kite.png"})
    assert kite.image is not None and kite.image.size == (8, 6)
    assert (whale.id, whale.texts, len(whale.images)) == ("deep/er/whale.JPG", (), 1)
    assert [name for name, _ in skipped] == ["scan.tiff", "notes.txt"]
    assert ".png" in str(skipped[0][1]) and "without a picture" in str(skipped[1][1])


def test_half_of_a_character_is_passed_over(tmp_path: Path, read, skipped):
    lines(tmp_path / "captions.jsonl", '{"text": "half \\ud800"}', '{"text": "x", "id": "\\ud800"}', {"text": "whole"})
    assert [document.text for document in read()] == ["whole"]
    assert ["half of a character" in str(error) for _, error in skipped] == [True, True]


def test_reading_again_gives_the_same_ids_whatever_the_content(tmp_path: Path, read):
    paint(tmp_path / "a.png", "red")
    first = read()
    paint(tmp_path / "a.png", "blue")
    assert [document.id for document in read()] == [document.id for document in first]


def test_one_jsonl_file(tmp_path: Path, read, skipped):
    paint(tmp_path / "pictures/kite.png")
    lines(
        tmp_path / "anything.jsonl",
        {"image": "pictures/kite.png", "text": "a kite", "metadata": {"year": 2021, "tags": ["x"]}},
        "",
        {"image": "./pictures/../pictures/kite.png", "text": "again"},
        {"image": "pictures/kite.png", "id": "mine"},
        {"text": "words alone"},
    )
    first, again, mine, words = read()
    assert first.id == "pictures/kite.png"
    assert dict(first.metadata) == {"year": 2021, "tags": ["x"], "path": "pictures/kite.png"}
    assert again.id == "pictures/kite.png#2" and again.text == "again"
    assert mine.id == "mine" and mine.texts == ()
    assert words.images == () and words.id == words.content_hash
    assert skipped == []


def test_captions_jsonl_is_preferred_and_others_are_ambiguous(tmp_path: Path, read):
    lines(tmp_path / "a.jsonl", {"text": "a"})
    lines(tmp_path / "b.jsonl", {"text": "b"})
    with pytest.raises(ConfigError, match=r"a\.jsonl, b\.jsonl"):
        read()
    lines(tmp_path / "captions.jsonl", {"text": "c"})
    assert [document.text for document in read()] == ["c"]


def test_bad_pictures_are_reported_and_passed_over(tmp_path: Path, read, skipped):
    for name in ("a.png", "truncated.png", "z.png"):
        rng = np.random.default_rng(0)
        PIL.Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(tmp_path / name)
    whole = (tmp_path / "truncated.png").read_bytes()
    (tmp_path / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "bogus.jpg").write_bytes(b"no picture")
    (tmp_path / "empty.gif").write_bytes(b"")
    paint(tmp_path / "latin.png")
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    assert [document.id for document in read()] == ["a.png", "z.png"]
    assert [path for path, _ in skipped] == ["bogus.jpg", "empty.gif", "latin.png", "truncated.png"]
    errors = dict(skipped)
    assert isinstance(errors["truncated.png"], InvalidImage) and "truncated.png" in str(errors["truncated.png"])
    assert isinstance(errors["latin.png"], InvalidDocument) and "not UTF-8" in str(errors["latin.png"])


def test_a_broken_link_is_reported(tmp_path: Path, read, skipped):
    (tmp_path / "link.png").symlink_to(tmp_path / "gone.png")
    assert read() == [] and [path for path, _ in skipped] == ["link.png"]


def test_a_pipe_that_is_named_like_a_picture_is_reported_and_not_waited_for(tmp_path: Path, read, skipped):
    paint(tmp_path / "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    assert [document.id for document in read()] == ["a.png"]
    assert [(path, str(error).partition(" Put")[0]) for path, error in skipped] == [
        ("pipe.png", "pipe.png is not a regular file.")
    ]


def test_bad_lines_are_reported_and_passed_over(tmp_path: Path, read, skipped):
    paint(tmp_path.parent / "outside.png")
    paint(tmp_path / "ok.png")
    (tmp_path / "link.png").symlink_to(tmp_path.parent / "outside.png")
    bad = {
        '{"image": "ok.png", ': "not valid JSON",
        "[1, 2]": "holds list",
        '{"image": "missing.png"}': "cannot be read",
        '{"image": "../outside.png"}': "leads out of the folder",
        '{"image": "/etc/hostname"}': "leads out of the folder",
        '{"image": "link.png"}': "leads out of the folder",
        '{"image": "ok.png", "txt": "x"}': "Did you mean 'text'",
        '{"image": 5}': "are strings",
        '{"text": " \\n"}': "its text is blank",
        '{"metadata": {}}': "neither an image nor a text",
        '{"text": "x", "metadata": {"a": {"b": 1}}}': "not plain",
        '{"text": "x", "id": 5}': "id",
        '{"text": "x", "metadata": ' + "[" * 100_000: "recursion",
        '{"text": "\udce9"}': "not UTF-8",
        '{"image": "nul\\u0000.png"}': "null",
    }
    text = "\n".join(["", '{"image": "ok.png"}', *bad, '{"text": "last"}'])
    (tmp_path / "captions.jsonl").write_bytes(text.encode("utf-8", "surrogateescape"))
    first, *_ = read()
    assert first.id == "ok.png"
    assert [path for path, _ in skipped] == [f"captions.jsonl:{number}" for number in range(3, 3 + len(bad))]
    for (_, error), expected in zip(skipped, bad.values(), strict=True):
        assert expected in str(error)


def test_progress_counts_bad_samples_too(tmp_path: Path):
    paint(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"bogus")
    seen: list[tuple[int, int, str]] = []
    list(read_folder(tmp_path, on_skip=lambda *_: None, progress=lambda *step: seen.append(step)))
    assert seen == [(1, 2, "a.png"), (2, 2, "b.png")]


def test_reading_is_lazy(tmp_path: Path):
    for number in range(3):
        paint(tmp_path / f"{number}.png")
    documents = read_folder(tmp_path)
    assert next(documents).id == "0.png"
    (tmp_path / "1.png").unlink()
    assert [document.id for document in documents] == ["2.png"]


def test_without_a_callback_a_bad_sample_is_logged(tmp_path: Path, caplog):
    (tmp_path / "b.png").write_bytes(b"bogus")
    assert list(read_folder(tmp_path)) == []
    assert "b.png is passed over" in caplog.text


def test_a_folder_that_is_not_there(tmp_path: Path):
    with pytest.raises(ConfigError, match="There is no folder"):
        read_folder(tmp_path / "nope")


def test_cocos_captions_are_read_by_their_name_and_told_of_in_a_folder(tmp_path: Path, read, skipped):
    for name in ("kite", "whale", "bare"):
        paint(tmp_path / f"{name}.png")
    images = [
        {"id": number, "file_name": f"{name}.png"} for number, name in enumerate(("kite", "whale", "bare", "gone"))
    ]
    captions = [(0, "a kite"), (1, "a whale"), (0, "it flies"), (3, "nothing")]
    listing = tmp_path / "captions.json"
    annotations = [{"id": n, "image_id": image, "caption": text} for n, (image, text) in enumerate(captions)]
    listing.write_text(json.dumps({"images": images, "annotations": annotations}))
    bad: list[tuple[str, Exception]] = []
    found = list(read_folder(listing, on_skip=lambda where, error: bad.append((where, error))))
    assert [(one.id, one.texts) for one in found] == [("kite.png", ("a kite", "it flies")), ("whale.png", ("a whale",))]
    assert [where for where, _ in bad] == ["gone.png"]
    assert len(read()) == 3 and [name for name, _ in skipped] == ["captions.json"]
    assert "COCO" in str(skipped[0][1])
    (tmp_path / "kite.json").write_text("{}")  # as some programs leave beside every picture
    skipped.clear()
    read()
    assert [name for name, _ in skipped] == ["captions.json"]


def test_the_second_of_two_with_one_id_is_told(tmp_path: Path, read, skipped):
    paint(tmp_path / "a.png")
    lines(
        tmp_path / "all.jsonl", {"text": "one", "id": "x"}, {"text": "two", "id": "x"}, {"image": "a.png"},
        {"image": "a.png", "text": "again"}, {"text": "the same"}, {"text": "the same"},
    )  # fmt: skip
    assert [document.id for document in read()][:3] == ["x", "a.png", "a.png#2"]
    assert [name for name, _ in skipped] == ["all.jsonl:2", "all.jsonl:6"]
    assert "'x'" in str(skipped[0][1])
