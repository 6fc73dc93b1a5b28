"""A user's documents: read from each kind of source, bad samples passed over, and kept on disk."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

from racm3.errors import CheckpointError, ConfigError
from racm3.image import Image as DocumentImage
from racm3.training import dataset
from racm3.training.data import Corpus, DocumentRows, PixelRows, TrainingSet
from racm3.training.dataset import DataSettings, is_held_out, open_dataset, skipped
from racm3.training.sources import corpus_of

COLOURS = {"red": (255, 0, 0), "green": (0, 128, 0), "blue": (0, 0, 255)}


def png(colour, size=(8, 8)):
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def folder(root):
    for colour in COLOURS:
        (root / f"{colour}.png").write_bytes(png(colour))
        (root / f"{colour}.txt").write_text(f"a {colour} square")
    (root / "broken.png").write_bytes(b"no picture")
    (root / "wordless.png").write_bytes(png("white"))
    return root


def jsonl(root):
    lines = []
    for colour in COLOURS:
        (root / f"{colour}.png").write_bytes(png(colour))
        metadata = {"entity": "square", "source": f"by {colour}", "keywords": ["flat"]}
        lines.append(json.dumps({"image": f"{colour}.png", "text": f"a {colour} square", "metadata": metadata}))
    (root / "all.jsonl").write_text("\n".join([*lines, "{", json.dumps({"image": "nowhere.png", "text": "x"})]))
    return root / "all.jsonl"


def coco(root):
    (root / "val").mkdir()
    for colour in COLOURS:
        (root / "val" / f"{colour}.png").write_bytes(png(colour))
    images = [{"id": i, "file_name": f"{c}.png"} for i, c in enumerate([*COLOURS, "nowhere"])]
    annotations = [
        {"id": 10 * i + n, "image_id": i, "caption": f"a {c} square, {n}"}
        for n in range(2)
        for i, c in enumerate(COLOURS)
    ]
    (root / "captions.json").write_text(
        json.dumps({"images": images, "annotations": [*annotations, {"id": 99, "image_id": 3, "caption": "?"}]})
    )
    return root / "captions.json"


def shards(root):
    """Two shards as img2dataset writes them, and a torn one between them."""
    for number, colours in enumerate((["red", "green"], [], ["blue"])):
        with tarfile.open(root / f"0000{number}.tar", "w") as tar:
            for n, colour in enumerate([*colours, "broken"]):
                caption = f"a {colour} square"
                members = {
                    "jpg": b"no picture" if colour == "broken" else png(colour), "txt": caption.encode(),
                    "json": json.dumps({"caption": caption, "status": "success"}).encode(),
                }  # fmt: skip
                for kind, data in members.items():
                    info = tarfile.TarInfo(f"0000{number}000{n}.{kind}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    (root / "00001.tar").write_bytes(b"torn" * 300)
    return root


def settings(source, path, **changes):
    return DataSettings(**{"source": source, "path": path, "size": 8, "held_out": 0.0, **changes})


def read(root, source, make, **changes):
    (root / "source").mkdir()
    return open_dataset(settings(source, make(root / "source"), **changes), root / "data")


@pytest.mark.parametrize(
    ("source", "make", "bad"),
    [("folder", folder, ["broken.png", "wordless.png"]), ("jsonl", jsonl, ["all.jsonl:4", "all.jsonl:5"])],
)
def test_documents_are_read_and_bad_samples_listed(tmp_path, source, make, bad):
    corpus = read(tmp_path, source, make)
    found = dict(zip(corpus.data.texts, corpus.data.pixels, strict=True))
    assert found.keys() == {f"a {colour} square" for colour in COLOURS}
    for colour, rgb in COLOURS.items():
        assert (found[f"a {colour} square"] == rgb).all()
    listed = skipped(tmp_path / "data")
    assert [sample["where"] for sample in listed] == bad and all(sample["error"] for sample in listed)


def test_metadata_says_what_is_shown_and_by_whom(tmp_path):
    data = read(tmp_path, "jsonl", jsonl).data
    assert set(data.entities) == {"square"} and [len(rows) for rows in data.rows_by_entity()] == [3]
    assert set(data.sources) == {"by red", "by green", "by blue"} and data.keywords[0] == ["flat"]
    assert data.groups()[0] == "square/by red"


def test_the_captions_of_a_coco_picture_are_documents_of_one_entity_and_share_its_pixels(tmp_path):
    corpus = read(tmp_path, "coco", coco, images=tmp_path / "source" / "val")
    data = corpus.data
    assert data.texts[:2] == ["a red square, 0", "a red square, 1"] and data.entities[:2] == ["0", "0"]
    assert len(set(data.groups())) == 3 and len(data) == 6 and len(set(data.ids)) == 6
    assert (tmp_path / "data" / "pixels.bin").stat().st_size == 3 * 8 * 8 * 3
    assert (data.pixels[3] == COLOURS["green"]).all()
    assert [sample["where"] for sample in skipped(tmp_path / "data")] == ["nowhere.png"]


def test_shards_are_read_past_a_torn_one(tmp_path):
    pytest.importorskip("webdataset")
    corpus = read(tmp_path, "webdataset", shards)
    assert corpus.data.texts == [f"a {colour} square" for colour in COLOURS]
    bad = [sample["where"] for sample in skipped(tmp_path / "data")]
    assert bad[0].startswith("source/00000.tar/")
    assert any("00001.tar" in where for where in bad) and len(bad) == 3


class Killed(BaseException):
    pass


@pytest.fixture
def broken_off(tmp_path, monkeypatch):
    """A folder of which the reading was killed at its seventh picture, of ten; and what looks at pictures afterwards."""
    source, looked = tmp_path / "source", []
    source.mkdir()
    for number in range(12):
        (source / f"{number:02}.png").write_bytes(png((20 * number, 0, 0)))
        (source / f"{number:02}.txt").write_text(f"picture {number}")
    (source / "03.png").write_bytes(b"no picture")
    (source / "05.txt").unlink()
    square = DocumentImage.square

    def look(image, size):
        looked.append(image.content_hash)
        if len(looked) == 7:
            raise Killed
        return square(image, size)

    monkeypatch.setattr(dataset, "SAFE_AFTER", 2)
    monkeypatch.setattr(DocumentImage, "square", look)
    with pytest.raises(Killed):
        open_dataset(settings("folder", source), tmp_path / "data")
    assert (tmp_path / "data.new" / "reading.json").is_file() and not (tmp_path / "data").exists()
    monkeypatch.setattr(
        DocumentImage, "square", lambda image, size: (looked.append(image.content_hash), square(image, size))[1]
    )
    looked.clear()
    return source, looked


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_reading_that_was_killed_goes_on_where_it_was(tmp_path, broken_off):
    source, looked = broken_off
    (tmp_path / "data.new" / "pixels.bin").open("ab").write(b"half of a picture")
    steps = []
    open_dataset(settings("folder", source), tmp_path / "data", lambda *step: steps.append(step))
    assert len(looked) == 6  # of eleven: the four documents, and the broken picture between them, were safe
    assert steps[0][1] >= steps[0][0] and "before" in steps[0][2] and not (tmp_path / "data.new").exists()
    open_dataset(settings("folder", source), tmp_path / "whole")
    assert files_of(tmp_path / "data") == files_of(tmp_path / "whole")
    assert [sample["where"] for sample in skipped(tmp_path / "data")] == ["03.png", "05.png"]


@pytest.mark.parametrize("what", ["source", "caption", "shrunk", "last", "settings", "state", "pixels"])
def test_a_reading_that_cannot_be_gone_on_with_begins_anew(tmp_path, broken_off, what):
    source, looked = broken_off
    new, size = tmp_path / "data.new", 8
    if what == "source":
        (source / "00.png").unlink()
        (source / "00.txt").unlink()
    elif what == "caption":  # of one that was read already: the likely reason for stopping
        (source / "01.txt").write_text("mended")
    elif what == "shrunk":
        for number in range(3, 12):
            (source / f"{number:02}.png").unlink()
            (source / f"{number:02}.txt").unlink(missing_ok=True)
    elif what == "last":
        (source / "04.png").write_bytes(b"")
    elif what == "settings":
        size = 16
    elif what == "state":
        (new / "reading.json").write_text("{")
    else:
        (new / "pixels.bin").write_bytes(b"")
    open_dataset(settings("folder", source, size=size), tmp_path / "data")
    assert len(looked) == {"source": 10, "shrunk": 3, "last": 10}.get(what, 11)
    open_dataset(settings("folder", source, size=size), tmp_path / "whole")
    assert files_of(tmp_path / "data") == files_of(tmp_path / "whole")


def test_a_second_reading_beside_the_first_is_refused_and_takes_nothing_from_it(tmp_path):
    source, code = (
        folder(tmp_path),
        f"""
import time
from pathlib import Path
from racm3.training.processes import claimed
from racm3.training.dataset import LOCK
with claimed(Path({str(tmp_path / "run")!r}), LOCK):
    (Path({str(tmp_path / "run")!r}) / "data.new").mkdir()
    print("reading", flush=True)
    time.sleep(60)
""",
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout.readline() == "reading\n"
            with pytest.raises(ConfigError, match=f"Process {other.pid}"):
                open_dataset(settings("folder", source), tmp_path / "run" / "data")
            assert (tmp_path / "run" / "data.new").is_dir()
        finally:
            other.kill()
    assert len(open_dataset(settings("folder", source), tmp_path / "run" / "data").data) == 3


def test_a_dataset_is_read_once_and_not_mixed_up_with_another(tmp_path):
    corpus = read(tmp_path, "folder", folder)
    for path in (tmp_path / "source").iterdir():
        path.unlink()
    again = open_dataset(settings("folder", tmp_path / "source"), tmp_path / "data")
    assert again.data.ids == corpus.data.ids and again.digest == corpus.digest
    with pytest.raises(ConfigError, match="table: size") as raised:
        open_dataset(settings("folder", tmp_path / "source", size=16), tmp_path / "data")
    assert raised.value.hint


@pytest.mark.parametrize("name", ["dataset.json", "documents.jsonl", "pixels.bin"])
def test_a_torn_file_is_named_and_the_documents_can_be_read_again(tmp_path, name):
    corpus = read(tmp_path, "folder", folder)
    path = tmp_path / "data" / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=re.escape(str(path))) as raised:
        open_dataset(settings("folder", tmp_path / "source"), tmp_path / "data")
    assert str(tmp_path / "data") in raised.value.hint
    shutil.rmtree(tmp_path / "data")
    assert open_dataset(settings("folder", tmp_path / "source"), tmp_path / "data").digest == corpus.digest


def test_a_reading_that_was_killed_leaves_nothing(tmp_path):
    def kill(*_):
        raise KeyboardInterrupt

    (tmp_path / "source").mkdir()
    for number in range(101):
        (tmp_path / "source" / f"{number}.png").write_bytes(png("red"))
        (tmp_path / "source" / f"{number}.txt").write_text("red")
    chosen = settings("folder", tmp_path / "source")
    with pytest.raises(KeyboardInterrupt):
        open_dataset(chosen, tmp_path / "data", kill)
    assert not (tmp_path / "data").exists()
    assert len(open_dataset(chosen, tmp_path / "data").data) == 101


def test_entities_are_held_out_by_their_hash(tmp_path):
    entities = [str(number) for number in range(2000)]
    assert np.mean([is_held_out(entity, 0.1) for entity in entities]) == pytest.approx(0.1, abs=0.02)
    assert all(is_held_out(e, 0.3) for e in entities if is_held_out(e, 0.1))
    corpus = read(tmp_path, "folder", folder, held_out=0.5)
    held = {corpus.data.entities[row] for row in corpus.held_out}
    assert held == {entity for entity in corpus.data.entities if is_held_out(entity, 0.5)}
    assert not set(corpus.training) & set(corpus.held_out)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "foldr"}, "Did you mean 'folder'"), ({"path": None}, "no path"), ({"held_out": 0.999999}, "held out"),
        ({"source": "coco"}, "captions.json"), ({"source": "webdataset"}, "no shards"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(tmp_path, changes, message):
    (tmp_path / "source").mkdir()
    path = folder(tmp_path / "source")
    if changes.get("source") == "coco":
        path = tmp_path / "captions.json"
    with pytest.raises(ConfigError, match=message):
        open_dataset(settings(**{"source": "folder", "path": path, **changes}), tmp_path / "data")


def test_a_folder_without_captions_is_refused(tmp_path):
    (tmp_path / "one.png").write_bytes(png("red"))
    with pytest.raises(ConfigError, match="no document with a picture and a text") as raised:
        open_dataset(settings("folder", tmp_path), tmp_path / "data")
    assert "one.png" in raised.value.message and ".txt" in raised.value.hint


def numbered():
    pixels = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1).repeat(3, 3)
    return TrainingSet(PixelRows(pixels, np.array([4, 3, 2])), list("abc"), ["x", "y", "z"], list("aab"))


def test_rows_of_pictures_stay_on_disk_until_they_are_asked_for():
    data = numbered()
    assert isinstance(data.pixels[1:], PixelRows) and data.pixels[1:].shape == (2, 1, 1, 3)
    assert np.asarray(data.pixels[np.array([2, 0])])[:, 0, 0, 0].tolist() == [2, 4]
    some = data.select(np.array([2, 1]))
    assert (some.ids, some.texts, some.entities) == (["c", "b"], ["z", "y"], ["b", "a"])
    assert int(some.pixels[0][0, 0, 0]) == 2
    assert [document.text for document in DocumentRows(data)[1:]] == ["y", "z"]


def test_coco_pictures_are_looked_for_where_coco_has_them(tmp_path):
    listing = coco(tmp_path)
    with pytest.raises(ConfigError, match=r"None of the 4 pictures of .*captions\.json is in") as raised:
        open_dataset(settings("coco", listing), tmp_path / "data")
    assert raised.value.hint == "Say where they are: [data] images."
    listing.rename(tmp_path / "captions_val.json")
    found = open_dataset(settings("coco", tmp_path / "captions_val.json"), tmp_path / "data")
    assert len(found.data) == 2 * len(COLOURS)


def test_a_function_that_fails_is_named(monkeypatch):
    import sys
    import types

    module = types.ModuleType("failing")
    module.boom, module.nothing = lambda stage: 1 / 0, lambda: None
    monkeypatch.setitem(sys.modules, "failing", module)
    for name, message in (("boom", "'failing:boom' raised ZeroDivisionError"), ("nothing", "raised TypeError")):
        with pytest.raises(ConfigError, match=message) as raised:
            corpus_of(f"failing:{name}", "retriever")
        assert "name of a stage" in raised.value.hint


def test_a_function_may_be_the_source(monkeypatch):
    import sys
    import types

    module = types.ModuleType("my_own")
    module.corpus = lambda stage: Corpus(numbered(), np.array([2]))
    module.wrong = lambda stage: []
    monkeypatch.setitem(sys.modules, "my_own", module)
    assert corpus_of("my_own:corpus", "generator").training.tolist() == [0, 1]
    for target in ("my_own:wrong", "my_own:nothing", "nowhere_at_all:x"):
        with pytest.raises(ConfigError, match=target):
            corpus_of(target, "generator")


def test_entries_of_a_coco_file_that_are_none_are_passed_over_and_the_others_read(tmp_path):
    def odd(root):
        path = coco(root)
        found = json.loads(path.read_text())
        found["images"] += [None, 7, {"id": 8}, {"id": 9, "file_name": None}]
        found["annotations"] = [
            None, {"id": 1, "image_id": [0], "caption": "a list"}, {"id": 2, "image_id": 0}, *found["annotations"],
        ]  # fmt: skip
        path.write_text(json.dumps(found))
        return path

    corpus = read(tmp_path, "coco", odd, images=tmp_path / "source" / "val")
    assert corpus.data.texts[:2] == ["a red square, 0", "a red square, 1"] and len(corpus.data) == 6
    assert [sample["where"] for sample in skipped(tmp_path / "data")] == [
        "annotations[0]", "annotations[1]", "annotations[2]", "images[4]", "images[5]", "images[6]", "images[7]",
        "nowhere.png",
    ]  # fmt: skip


@pytest.mark.parametrize("described", ["null", "[1]", '"text"'])
def test_a_sample_of_a_shard_that_is_described_by_no_object_is_passed_over(tmp_path, described):
    def odd(root):
        shards(root)
        with tarfile.open(root / "00003.tar", "w") as tar:
            for kind, data in {"jpg": png("white"), "json": described.encode()}.items():
                info = tarfile.TarInfo(f"odd.{kind}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        return root

    corpus = read(tmp_path, "webdataset", odd)
    assert len(corpus.data) == 3
    assert "source/00003.tar/odd" in [sample["where"] for sample in skipped(tmp_path / "data")]


def test_half_of_a_character_is_passed_over(tmp_path):
    def odd(root):
        path = jsonl(root)
        lines = [
            json.dumps({"image": "red.png", "text": "half \ud800"}),
            json.dumps({"image": "red.png", "text": "x", "metadata": {"entity": "\udfff"}}),
        ]
        path.write_text("\n".join([*lines, path.read_text()]))
        return path

    corpus = read(tmp_path, "jsonl", odd, held_out=0.01)
    assert len(corpus.data) == 3
    assert sum("half of a character" in sample["error"] for sample in skipped(tmp_path / "data")) == 2


def test_other_pictures_are_another_corpus():
    data = TrainingSet(np.zeros((3, 4, 4, 3), np.uint8), ["a", "b", "c"], ["a", "b", "c"], ["a", "b", "c"])
    other = TrainingSet(np.ones((3, 4, 4, 3), np.uint8), data.ids, data.texts, data.entities)
    viewed = TrainingSet(PixelRows(other.pixels, np.arange(3)), data.ids, data.texts, data.entities)
    digests = [Corpus(one, np.array([2])).digest for one in (data, other, viewed)]
    assert digests[0] != digests[1] == digests[2]


def test_an_entity_may_be_a_number_also_0(tmp_path):
    """As the classes of a data set are: what shows class 0 is held out together, or not at all."""
    lines = []
    for number in range(6):
        Image.new("RGB", (8, 8), (40 * number, 0, 0)).save(tmp_path / f"{number}.png")
        metadata = {"entity": number % 2, "source": number % 3}
        lines.append(json.dumps({"image": f"{number}.png", "text": f"number {number}", "metadata": metadata}))
    (tmp_path / "all.jsonl").write_text("\n".join(lines))
    settings = DataSettings(source="jsonl", path=tmp_path / "all.jsonl", size=8, held_out=0)
    data = open_dataset(settings, tmp_path / "read").data
    assert data.entities == ["0", "1"] * 3 and data.sources == ["0", "1", "2"] * 2


def test_the_documents_of_one_picture_are_one_entity_whatever_their_ids(tmp_path):
    def captions(root):
        for colour in COLOURS:
            (root / f"{colour}.png").write_bytes(png(colour))
        lines = [{"image": f"{colour}.png", "text": f"{colour}, {n}"} for n in range(3) for colour in COLOURS]
        (root / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
        return root

    data = read(tmp_path, "folder", captions).data
    assert len(set(data.ids)) == 9 and len(set(data.entities)) == 3
    assert sorted(len(rows) for rows in data.rows_by_entity()) == [3, 3, 3] and len(set(data.groups())) == 3


@pytest.mark.parametrize("source", [{"path": "nowhere"}, {"source": "foldr"}, {"path": None}])
def test_what_could_not_be_read_leaves_nothing_behind(tmp_path, source):
    (tmp_path / "empty").mkdir()
    given = settings(**{"source": "folder", "path": tmp_path / "empty", **source})
    with pytest.raises(ConfigError):
        open_dataset(given, tmp_path / "run" / "mine" / "data")
    assert not (tmp_path / "run").exists()
