"""What is shipped: small, safe, honest about what is held out, and repeatable."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from racm3 import Blank, Document, Pipeline
from racm3.cli import main
from racm3_emoji.bundle import BUNDLE, divide, held_out_documents
from racm3_emoji.world import Drawing, World, split_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pipeline() -> Iterator[Pipeline]:
    with Pipeline.from_preset("emoji") as opened:
        yield opened


def test_the_bundle_is_small_and_holds_no_pickle() -> None:
    files = [path for path in BUNDLE.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 40_000_000
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".jsonl", ".db", ".webp"}


def test_the_memory_never_holds_what_is_held_out(pipeline: Pipeline) -> None:
    held_out = list(held_out_documents())
    hands = {(d.metadata["entity"], d.metadata["vendor"]) for d in held_out}
    seen = set()
    for document, _ in pipeline.memory.items():
        assert (document.metadata["entity"], document.metadata["vendor"]) not in hands
        seen.add(split_of(str(document.metadata["entity"])))
    assert seen == {"train", "test"}
    assert {split_of(str(d.metadata["entity"])) for d in held_out} == {"test"}


def test_one_vendor_of_each_test_entity_is_held_out() -> None:
    drawings = [
        Drawing(f"{style}/{entity}", "x", style, "x", entity, entity, "objects", (), split_of(entity), True)
        for entity in (f"{n:x}" for n in range(40))
        for style in ("Fluent", "Noto", "Noto v1", "Twemoji")
    ]
    import numpy as np

    world = World(drawings, np.empty((len(drawings), 64, 64, 3), np.uint8))
    training, remembered, held_out = divide(world)
    assert {drawings[row].split for row in training} == {"train"}
    assert held_out and {drawings[row].split for row in (*remembered, *held_out)} == {"test"}
    for entity in {drawings[row].entity for row in held_out}:
        styles = {drawings[row].style for row in held_out if drawings[row].entity == entity}
        assert styles in ({"Fluent"}, {"Twemoji"}, {"Noto", "Noto v1"})
    assert not set(remembered) & set(held_out)


def test_an_unseen_flag_is_looked_up(pipeline: Pipeline) -> None:
    truth = next(d for d in held_out_documents() if str(d.metadata["name"]).startswith("flag: "))
    drawing = pipeline.imagine(truth.texts[0], seed=0)
    assert drawing.image is not None and drawing.image.size == (64, 64)
    assert drawing.hits[0].document.metadata["entity"] == truth.metadata["entity"]
    assert drawing.hits[0].document.metadata["vendor"] != truth.metadata["vendor"]


def test_the_context_steers_the_drawing(pipeline: Pipeline) -> None:
    """The same prompt and seed behind a red and behind a blue flag: the drawing moves towards its document."""
    flags = {
        str(hit.document.metadata["name"]): hit.document
        for hit in pipeline.search("flag", k=2000, where={"style": "Circle Flags"})
    }
    red, blue = flags["flag: Morocco"], flags["flag: Greece"]
    prompt = Document(["flag, in Twemoji style", Blank("image")])
    made = []
    for document in (red, blue):
        samples = pipeline.generate(prompt, context=[document], n=8, seed=0).outputs
        pixels = [output.document.images[0].square(64).astype(float).mean((0, 1)) for output in samples]
        made.append(sum(p[0] - p[2] for p in pixels) / len(pixels))  # redder than blue
    assert made[0] > made[1] + 20


def test_a_seed_gives_the_same_picture_again(pipeline: Pipeline) -> None:
    first, again, other = (pipeline.imagine("banjo, in Noto style", seed=seed) for seed in (5, 5, 6))
    assert first.image == again.image != other.image


def test_the_demo_shows_unseen_things_side_by_side_and_can_be_repeated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(out: Path) -> dict:
        with pytest.raises(SystemExit) as ended:
            main(["demo", "--out", str(out), "--count", "8", "--seed", "3", "--json"])
        assert not ended.value.code
        return json.loads(capsys.readouterr().out)

    said, again = run(tmp_path / "a"), run(tmp_path / "b")
    assert len(said["things"]) == 8 and len(said["pictures"]) == 24
    held_out = {d.texts[0] for d in held_out_documents()}
    assert {thing["prompt"] for thing in said["things"]} <= held_out
    page = Path(said["page"]).read_text(encoding="utf-8")
    assert not re.search(r"""(src|href)=["'](?!data:)""", page)  # nothing from elsewhere
    assert page.count("data:image/png;base64,") >= 8 * 4
    for a, b in zip(said["pictures"], again["pictures"], strict=True):
        assert Path(a).read_bytes() == Path(b).read_bytes()
    assert said["things"] == again["things"]
