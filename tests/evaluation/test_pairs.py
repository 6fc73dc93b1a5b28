"""Reading paired data: folders, JSONL, and COCO's captions JSON."""

from __future__ import annotations

import json
from pathlib import Path

import PIL.Image
import pytest

from racm3 import Image
from racm3.errors import ConfigError
from racm3.evaluation.pairs import read_pairs


def save(path: Path, colour: str = "red") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", (8, 8), colour).save(path)
    return path


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """COCO's own layout: annotations/captions_val2017.json beside val2017."""
    for number, colour in enumerate(("red", "green", "blue"), start=1):
        save(tmp_path / f"val2017/{number}.png", colour)
    (tmp_path / "val2017/4.png").write_bytes(b"no picture")
    content = {
        "images": [{"id": n, "file_name": f"{n}.png"} for n in (1, 2, 3, 4)],
        "annotations": [
            {"image_id": n, "caption": f"a thing {n}, {way} "} for way in ("said", "put") for n in (1, 2, 4)
        ],
    }
    listing = tmp_path / "annotations/captions_val2017.json"
    listing.parent.mkdir()
    listing.write_text(json.dumps(content))
    return listing


def test_a_folder_and_what_is_no_pair_in_it(tmp_path: Path) -> None:
    for name in ("kite", "whale", "bare"):
        save(tmp_path / f"{name}.png")
    for name in ("kite", "whale"):
        (tmp_path / f"{name}.txt").write_text(f"a {name}")
    skipped: list[str] = []
    pairs = read_pairs(tmp_path, on_skip=lambda where, error: skipped.append(where))
    assert [(pair.caption, pair.references, pair.entity) for pair in pairs] == [
        ("a kite", ("a kite",), "kite.png"), ("a whale", ("a whale",), "whale.png")
    ]  # fmt: skip
    assert skipped == ["bare.png"]


def test_a_jsonl_file_with_entities(tmp_path: Path) -> None:
    save(tmp_path / "kite.png")
    lines = [{"image": "kite.png", "text": text, "metadata": {"what": "kite"}} for text in ("a kite", "it flies")]
    for name in ("wanted", "other"):  # the folder alone would not say which
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert [pair.entity for pair in read_pairs(tmp_path / "wanted.jsonl", entity="what")] == ["kite", "kite"]
    with pytest.raises(ConfigError, match=r"no metadata 'which'\. It has: path, what"):
        read_pairs(tmp_path / "wanted.jsonl", entity="which")


def test_an_entity_that_is_null_is_none(tmp_path: Path) -> None:
    save(tmp_path / "kite.png")
    line = {"image": "kite.png", "text": "a kite", "metadata": {"what": None}}
    (tmp_path / "all.jsonl").write_text(json.dumps(line))
    with pytest.raises(ConfigError, match=r"no metadata 'what'\. It has: path\."):
        read_pairs(tmp_path / "all.jsonl", entity="what")


def test_what_is_meant_by_a_folder_with_a_coco_listing_is_said(coco: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no pictures with captions") as raised:
        read_pairs(coco.parent)
    assert str(coco) in raised.value.hint
    with pytest.raises(ConfigError, match="is for COCO captions JSON"):
        read_pairs(coco.parent, images=tmp_path)


def test_coco_gives_each_picture_all_its_captions(coco: Path) -> None:
    skipped: list[str] = []
    pairs = read_pairs(coco, on_skip=lambda where, error: skipped.append(where))
    assert [pair.references for pair in pairs] == [
        ("a thing 1, said", "a thing 1, put"), ("a thing 2, said", "a thing 2, put")
    ]  # fmt: skip
    assert pairs[0].document.texts == ("a thing 1, said",) and pairs[0].image.size == (8, 8)
    assert skipped == ["4.png"]  # 3.png has no caption: it is no sample at all


def test_a_limit_draws_the_same_pairs_every_time(coco: Path) -> None:
    save(coco.parent.parent / "val2017/4.png")
    first, again = (read_pairs(coco, limit=1) for _ in range(2))
    assert len(first) == 1 and [pair.caption for pair in first] == [pair.caption for pair in again]


def test_of_a_folder_no_more_pictures_are_decoded_than_are_drawn(tmp_path: Path, monkeypatch) -> None:
    for number in range(8):
        save(tmp_path / f"{number}.png").with_suffix(".txt").write_text(f"thing {number}")
    save(tmp_path / "bare.png")
    every, skipped, decoded = read_pairs(tmp_path), [], []
    decode = Image._decoded
    monkeypatch.setattr(Image, "_decoded", lambda image, *given: decoded.append(image.origin) or decode(image, *given))
    drawn = read_pairs(tmp_path, limit=3, on_skip=lambda where, error: skipped.append(where))
    assert len(drawn) == len(decoded) == 3 and skipped == ["bare.png"]
    assert [pair.caption for pair in drawn] == [
        pair.caption for pair in every if pair.caption in {p.caption for p in drawn}
    ]
    (tmp_path / f"{drawn[0].caption[-1]}.png").write_bytes(b"no picture")
    fewer = read_pairs(tmp_path, limit=3, on_skip=lambda where, error: skipped.append(where))
    assert [pair.caption for pair in fewer] == [pair.caption for pair in drawn[1:]] and len(skipped) == 3


def test_coco_pictures_that_are_nowhere(coco: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--images"):
        read_pairs(coco, images=tmp_path / "elsewhere")


def test_a_coco_listing_does_not_lead_out_of_its_folder(coco: Path, tmp_path: Path) -> None:
    save(tmp_path / "secret.png")
    content = json.loads(coco.read_text())
    content["images"][1]["file_name"] = "../secret.png"
    coco.write_text(json.dumps(content))
    skipped: list[str] = []
    read_pairs(coco, on_skip=lambda where, error: skipped.append(where))
    assert "../secret.png" in skipped


def test_another_json_is_told_what_is_expected(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(ConfigError, match="COCO's captions JSON"):
        read_pairs(tmp_path / "x.json")
    with pytest.raises(ConfigError, match="no pictures with captions"):
        read_pairs(tmp_path)


def test_entries_of_a_coco_listing_that_are_none_are_passed_over(coco: Path) -> None:
    content = json.loads(coco.read_text())
    content["images"] += [7, {"id": 9}]
    content["annotations"] += [None, {"image_id": 1}, {"image_id": 2, "caption": "half \ud800"}]
    coco.write_text(json.dumps(content))
    skipped: list[str] = []
    assert len(read_pairs(coco, on_skip=lambda where, error: skipped.append(where))) == 2
    assert skipped == ["annotations[6]", "annotations[7]", "annotations[8]", "images[4]", "images[5]", "4.png"]


def test_a_coco_listing_without_captions_is_told(coco: Path) -> None:
    coco.write_text(json.dumps({"images": [{"id": 1, "file_name": "1.png"}], "annotations": []}))
    with pytest.raises(ConfigError, match="captions of none of its 1 pictures"):
        read_pairs(coco)
