"""Which candidates the generator sees: the paper's rules, one by one."""

from __future__ import annotations

import numpy as np
import pytest

from racm3.document import Blank, Document, Image
from racm3.errors import ConfigError
from racm3.interfaces import Hit, Query
from racm3.samplers.diverse import DiverseSampler
from racm3.samplers.random import RandomSampler
from racm3.samplers.topk import TopKSampler

RNG = np.random.default_rng(0)


def at(degrees):
    """A unit vector in the plane; the similarity of two is the cosine of the angle between them."""
    return np.float32([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))])


def hit(name, degrees=None, parts=None):
    document = Document(parts or f"text of {name}", id=name)
    vector = None if degrees is None else at(degrees)
    return Hit(document, score=None if vector is None else float(at(0) @ vector), vector=vector)


def query(degrees=0, parts="what is asked"):
    return Query(Document(parts), None if degrees is None else at(degrees))


def sampled(sampler, hits, k=2, asked=None):
    selection = sampler.sample(asked or query(), hits, k=k, rng=np.random.default_rng(0))
    return [h.id for h in selection.hits], [(s.hit.id, s.reason, s.because_of) for s in selection.skipped]


# cos 25° = 0.906, cos 26° = 0.899


def test_what_is_too_close_to_the_query_is_passed_over():
    chosen, skipped = sampled(DiverseSampler(), [hit("a", 25), hit("b", 26), hit("c", -40)])
    assert chosen == ["b", "c"]
    assert skipped == [("a", "too close to the query", None)]


def test_what_is_too_close_to_a_chosen_document_is_passed_over_and_the_walk_goes_on():
    hits = [hit("a", 30), hit("b", 40), hit("c", -50), hit("d", 55), hit("e", 80)]
    assert sampled(DiverseSampler(), hits, k=3) == (
        ["a", "c", "e"],
        [("b", "too close to a chosen document", "a"), ("d", "too close to a chosen document", "a")],
    )


def test_only_chosen_documents_count_and_not_those_passed_over():
    # d is close to b alone, which is close to a and therefore not chosen.
    assert sampled(DiverseSampler(), [hit("a", 30), hit("b", 50), hit("d", 60)])[0] == ["a", "d"]


def test_the_similarity_that_equals_the_threshold_is_allowed():
    one, other = np.float32([1, 0]), np.float32([0.75, 0.25])
    pair = [Hit(Document(name), score=0.0, vector=vector) for name, vector in (("a", one), ("b", other))]
    assert len(sampled(DiverseSampler(0.75), pair, asked=query(None))[0]) == 2
    assert len(sampled(DiverseSampler(0.74), pair, asked=query(None))[0]) == 1


def test_a_threshold_of_one_passes_over_exact_content_alone():
    vector = np.full(3, 0.57735032, np.float32)  # its product with itself exceeds 1 by rounding
    assert vector @ vector > 1
    twins = [Hit(Document(name, id=name), score=1.0, vector=vector) for name in ("a", "b")]
    copy = Hit(Document("a", id="c"), score=1.0, vector=vector)
    asked = Query(Document("q"), vector)
    assert sampled(DiverseSampler(1.0), [*twins, copy], k=3, asked=asked) == (
        ["a", "b"],
        [("c", "same content as a chosen document", "a")],
    )


def test_an_identical_image_or_text_is_a_duplicate_however_far_apart_the_documents_are():
    image = Image(np.zeros((2, 2, 3), np.uint8))
    hits = [
        hit("a", 30, ["a caption", image]),
        hit("b", -60, ["another caption", image]),
        hit("c", 100, ["a caption", Image(np.ones((2, 2, 3), np.uint8))]),
        hit("d", 150, "something else"),
        hit("e", -100, ["what is asked", "and more"]),
    ]
    assert sampled(DiverseSampler(), hits, k=4) == (
        ["a", "d"],
        [
            ("b", "same content as a chosen document", "a"),
            ("c", "same content as a chosen document", "a"),
            ("e", "same content as the query", None),
        ],
    )


def test_blanks_are_not_content():
    blank = Blank("image")
    hits = [hit("a", 40, ["one", blank]), hit("b", -40, ["two", blank])]
    assert sampled(DiverseSampler(), hits, asked=query(0, ["asked", blank])) == (["a", "b"], [])


def test_an_empty_caption_is_no_content():
    pictures = [Image(np.full((2, 2, 3), value, np.uint8)) for value in (0, 1)]
    hits = [hit("a", 40, ["", pictures[0]]), hit("b", -40, ["", pictures[1]])]
    assert sampled(DiverseSampler(), hits, asked=query(0, ["", Blank("image")])) == (["a", "b"], [])


def test_documents_given_by_hand_are_compared_by_content_alone():
    hits = [hit("a"), hit("b"), hit("c", None, "text of a"), hit("d", None, "what is asked")]
    expected = (
        ["a", "b"],
        [("c", "same content as a chosen document", "a"), ("d", "same content as the query", None)],
    )
    assert sampled(DiverseSampler(), hits, k=4) == expected
    assert sampled(DiverseSampler(), [hit("a", 0), hit("b", 90)], asked=query(None)) == (["a", "b"], [])


def test_the_walk_ends_with_the_last_document_that_is_needed():
    assert sampled(DiverseSampler(), [hit("a", 40), hit("b", 40), hit("c", 0)], k=1) == (["a"], [])


def test_top_k_takes_the_first_as_they_come():
    assert sampled(TopKSampler(), [hit("a", 0), hit("b", 0), hit("c", 0)]) == (["a", "b"], [])


def test_random_draws_uniformly_without_replacement_by_the_generator_given():
    hits = [hit(str(number)) for number in range(6)]

    def draw(seed, k):
        chosen = RandomSampler().sample(query(), hits, k=k, rng=np.random.default_rng(seed)).hits
        return [int(h.id) for h in chosen]

    assert draw(1, 3) == draw(1, 3)
    assert sorted(draw(0, 99)) == [0, 1, 2, 3, 4, 5]
    first, anywhere = np.zeros(6), np.zeros(6)
    for seed in range(1200):
        drawn = draw(seed, 2)
        first[drawn[0]] += 1
        anywhere[drawn] += 1
    assert abs(first - 200).max() < 65 and abs(anywhere - 400).max() < 82  # five standard deviations


@pytest.mark.parametrize("threshold", [0, -0.5, 1.01, float("nan")])
def test_a_threshold_outside_of_its_range_is_an_error(threshold):
    with pytest.raises(ConfigError, match="threshold"):
        DiverseSampler(threshold)
