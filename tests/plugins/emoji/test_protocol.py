"""The test protocol: who draws an unseen thing looks up other vendors' drawings of it, and never its own."""

from __future__ import annotations

import numpy as np
import pytest

from racm3.samplers.diverse import DiverseSampler
from racm3.testing import HashingRetriever
from racm3_emoji.protocol import Protocol
from racm3_emoji.world import Drawing, World

STYLES = ("Fluent", "Noto", "Noto v1", "Twemoji")


def world() -> World:
    drawings = []
    for entity, name, split in (
        ("a", "red kite", "train"),
        ("b", "grey whale", "test"),
        ("c", "old oak", "validation"),
    ):
        for style in STYLES:
            text = f"{name}, in {style} style"
            drawings.append(
                Drawing(f"{style}/{entity}", name, style, text, entity, entity, "animals-nature", (), split, True)  # type: ignore[arg-type]
            )
    pixels = np.random.default_rng(0).integers(0, 256, (len(drawings), 64, 64, 3), dtype=np.uint8)
    return World(drawings, pixels)


@pytest.fixture
def protocol() -> Protocol:
    return Protocol.prepare(world(), HashingRetriever(), DiverseSampler(threshold=1.0))


def test_the_memory_holds_the_training_side_and_the_targets_and_nothing_else(protocol: Protocol) -> None:
    stored = {document.metadata["entity"] for document, _ in protocol.memory.items()}
    assert stored == {"a", "b"}
    assert set(protocol.entities) == {"b"}


@pytest.mark.parametrize("context", ["retrieved", "random"])
def test_no_target_sees_a_drawing_by_its_own_vendor(protocol: Protocol, context: str) -> None:
    for requests in (protocol.drawing_requests(context, 4), protocol.caption_requests(context, 4)):  # type: ignore[arg-type]
        for request, row in zip(requests, protocol.targets, strict=True):
            target = protocol.world.drawings[row]
            by_same = [
                hit.id for hit in request.context
                if hit.document.metadata["entity"] == target.entity and hit.document.metadata["vendor"] == target.style.removesuffix(" v1")
            ]  # fmt: skip
            assert request.context and not by_same


def test_retrieval_finds_the_other_vendors(protocol: Protocol) -> None:
    twemoji = [r for r in protocol.drawing_requests("retrieved", 3) if "Twemoji" in r.prompt.text]
    assert {hit.id for hit in twemoji[0].context} == {"Fluent/b", "Noto/b", "Noto v1/b"}


def test_a_prompt_says_nothing_of_its_target(protocol: Protocol) -> None:
    for drawing, caption in zip(
        protocol.drawing_requests("none", 0), protocol.caption_requests("none", 0), strict=True
    ):
        assert not drawing.prompt.images and not drawing.context
        assert not caption.prompt.texts and not caption.context
