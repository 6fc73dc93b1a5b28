"""The figures of the emoji world, on answers whose figures are known."""

from __future__ import annotations

import numpy as np
import pytest

from racm3 import Document
from racm3.interfaces import Output
from racm3.samplers.diverse import DiverseSampler
from racm3.testing import HashingRetriever
from racm3_emoji.figures import caption_figures, drawing_figures
from racm3_emoji.protocol import Protocol
from racm3_emoji.world import Drawing, World


@pytest.fixture
def protocol() -> Protocol:
    drawings = [
        Drawing(f"{style}/{name}", name, style, f"{name}, in {style} style", name, name, "objects", (), "test", True)  # type: ignore[arg-type]
        for name in ("kite", "whale", "oak", "drum")
        for style in ("Fluent", "Noto", "Twemoji")
    ]
    pixels = np.random.default_rng(0).integers(0, 256, (len(drawings), 64, 64, 3), dtype=np.uint8)
    return Protocol.prepare(World(drawings, pixels), HashingRetriever(), DiverseSampler(threshold=1.0))


def outputs(documents: list[Document]) -> list[Output]:
    return [Output(document, 0.0, 1) for document in documents]


def test_the_true_drawings_are_found_and_at_no_distance(protocol: Protocol) -> None:
    truth = protocol.truth()
    shifted = truth[3:] + truth[:3]  # every entity is drawn as the next one
    figures = drawing_figures(
        protocol,
        HashingRetriever(),
        {"true": [outputs(truth)], "next": [outputs(shifted)], "same": [outputs([truth[0]] * len(truth))]},
    )
    assert figures["true"]["recall_at_1"] == 1.0
    assert figures["true"]["frechet_distance"] == pytest.approx(0.0, abs=1e-6)
    # The wrong drawing for every prompt, but the same drawings on the whole: only recall tells.
    assert figures["next"]["recall_at_1"] == 0.0
    assert figures["next"]["frechet_distance"] == pytest.approx(0.0, abs=1e-6)
    assert figures["same"]["frechet_distance"] > 0.1
    assert figures["same"]["cmmd"] > figures["true"]["cmmd"]
    for name in ("frechet_distance", "cmmd"):
        low, high = figures["same"][f"{name}_interval"]
        assert low <= figures["same"][name] <= high


def test_captions_are_judged_by_the_name_alone(protocol: Protocol) -> None:
    truth = protocol.truth()
    right = [Document([f"{d.metadata['name']}, in any style", d.images[0]]) for d in truth]
    wrong = [Document(["a spoon, in Noto style", d.images[0]]) for d in truth]
    figures = caption_figures(protocol, {"right": outputs(right), "wrong": outputs(wrong)})
    # One word a name: of the four lengths of n-grams only the first one can agree.
    assert (figures["right"]["exact_match"], figures["right"]["cider"]) == (1.0, pytest.approx(250.0))
    assert (figures["wrong"]["token_f1"], figures["wrong"]["cider"]) == (0.0, 0.0)
    assert figures["right"]["cider_interval"] == [pytest.approx(250.0), pytest.approx(250.0)]
