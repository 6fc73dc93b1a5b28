"""Three samplers that trade relevance for variety: the contract, and what each paper says, by hand."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from racm3 import Document, Image
from racm3.errors import ConfigError
from racm3.interfaces import Hit, Query, Sampler
from racm3.testing import SamplerContract
from racm3_samplers.cluster import ClusterSampler
from racm3_samplers.dpp import DppSampler
from racm3_samplers.mmr import MmrSampler


class TestMmr(SamplerContract):
    def create(self) -> Sampler:
        return MmrSampler()


class TestDpp(SamplerContract):
    def create(self) -> Sampler:
        return DppSampler()


class TestCluster(SamplerContract):
    def create(self) -> Sampler:
        return ClusterSampler()


def at(degrees: float) -> np.ndarray:
    """A unit vector in the plane; the similarity of two is the cosine of the angle between them."""
    return np.float32([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))])


def hit(name: str, degrees: float, parts: object = None) -> Hit:
    return Hit(Document(parts or f"text of {name}", id=name), score=float(at(0) @ at(degrees)), vector=at(degrees))


QUERY = Query(Document("what is asked"), at(0))


def sampled(sampler: Sampler, hits: list[Hit], k: int) -> tuple[list[str], list[tuple[str, str, str | None]]]:
    selection = sampler.sample(QUERY, hits, k=k, rng=np.random.default_rng(0))
    return [h.id for h in selection.hits], [(s.hit.id, s.reason, s.because_of) for s in selection.skipped]


def random_hits(seed: int, n: int = 12, dim: int = 6) -> tuple[Query, list[Hit]]:
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((n + 1, dim)) + 0.5
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    scores = vectors[1:] @ vectors[0]
    order = np.argsort(-scores)
    hits = [
        Hit(Document(f"text {row}", id=f"d{row}"), score=float(scores[row]), vector=vectors[1:][row]) for row in order
    ]
    return Query(Document("asked"), vectors[0]), hits


# Maximal marginal relevance


def test_mmr_weighs_relevance_against_the_most_similar_chosen_document() -> None:
    # After a: b has .5 cos 20 - .5 cos 10 = -.02, c has .5 cos 30 - .5 cos 40 = .05; d, .5 cos 80 - .5 cos 70 = -.08.
    hits = [hit("a", 10), hit("b", 20), hit("c", -30), hit("d", 80)]
    chosen, skipped = sampled(MmrSampler(0.5), hits, 2)
    assert chosen == ["a", "c"]
    assert skipped == [("b", "too much like a chosen document for its relevance", "a")]


@pytest.mark.parametrize("relevance", [0.2, 0.5, 0.8])
def test_mmr_is_what_the_paper_writes(relevance: float) -> None:
    for seed in range(5):
        query, hits = random_hits(seed)
        chosen: list[Hit] = []
        for _ in range(4):
            left = [h for h in hits if h not in chosen]
            chosen.append(
                max(
                    left,
                    key=lambda h: (
                        relevance * h.score
                        - (1 - relevance) * max([float(h.vector @ other.vector) for other in chosen], default=0.0)
                    ),
                )
            )
        selection = MmrSampler(relevance).sample(query, hits, k=4, rng=np.random.default_rng(0))
        assert {h.id for h in selection.hits} == {h.id for h in chosen}


def test_mmr_with_relevance_alone_is_the_top_k() -> None:
    query, hits = random_hits(1)
    assert MmrSampler(1.0).sample(query, hits, k=5, rng=np.random.default_rng(0)).hits == hits[:5]


# Determinantal point process


def objective(chosen: list[Hit], relevance: float) -> float:
    """What the paper maximises, with the determinant as it stands there."""
    vectors = np.stack([h.vector for h in chosen]).astype(float)
    return relevance * sum(h.score for h in chosen) + (1 - relevance) * np.linalg.slogdet(vectors @ vectors.T)[1]


@pytest.mark.parametrize("relevance", [0.0, 0.5, 0.9])
def test_dpp_chooses_greedily_what_the_determinant_says(relevance: float) -> None:
    for seed in range(5):
        query, hits = random_hits(seed)
        chosen: list[int] = []
        for _ in range(4):
            left = (row for row in range(len(hits)) if row not in chosen)
            chosen.append(max(left, key=lambda row: objective([hits[row] for row in [*chosen, row]], relevance)))
        selection = DppSampler(relevance).sample(query, hits, k=4, rng=np.random.default_rng(0))
        assert [h.id for h in selection.hits] == [hits[row].id for row in sorted(chosen)]


def test_dpp_looks_at_all_chosen_documents_together() -> None:
    # In a plane two documents span all there is: a third adds nothing, however unlike each of the two it is.
    hits = [hit("a", 0), hit("b", 60), hit("c", -60)]
    chosen, skipped = sampled(DppSampler(), hits, 3)
    assert chosen == ["a", "b"]
    assert skipped == [("c", "adds too little to the chosen documents", "a")]


# One document per cluster


def test_each_cluster_shows_its_most_relevant_document() -> None:
    hits = [hit("a1", 20), hit("a2", 22), hit("b1", -40), hit("a3", 45), hit("b2", -50), hit("c1", 85), hit("c2", 95)]
    assert sampled(ClusterSampler(), hits, 3) == (
        ["a1", "b1", "c1"],
        [("a2", *WITH, "a1"), ("a3", *WITH, "a1"), ("b2", *WITH, "b1")],
    )
    assert sampled(ClusterSampler(pool=1), hits, 2)[0] == ["a1", "a2"]


WITH = ("in the cluster of a chosen document",)


def test_clusters_are_found_from_any_order_of_the_vectors() -> None:
    from racm3_samplers.cluster import _clusters

    rng = np.random.default_rng(0)
    truth = rng.permutation(np.repeat(range(4), 25))
    vectors = np.eye(4, 16)[truth] * 3 + 0.3 * rng.standard_normal((100, 16))
    labels = _clusters(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), 4)
    assert len({(one, other) for one, other in zip(truth, labels, strict=True)}) == 4


def test_the_pool_of_clusters_grows_while_it_gives_too_few() -> None:
    twins = [Hit(Document(f"twin {n}", id=f"t{n}"), score=0.9, vector=at(10)) for n in range(20)]
    assert sampled(ClusterSampler(pool=2), [*twins, hit("other", 70)], 2)[0] == ["t0", "other"]
    assert sampled(ClusterSampler(pool=2), twins, 2)[0] == ["t0"]


# All of them

SAMPLERS = [MmrSampler(), DppSampler(), ClusterSampler()]
every = pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: type(sampler).__name__)


@every
def test_the_same_content_is_never_chosen_twice_nor_that_of_the_query(sampler: Sampler) -> None:
    image = Image(np.zeros((2, 2, 3), np.uint8))
    hits = [
        hit("asked", 5, "what is asked"),
        hit("a", 30, ["a caption", image]),
        hit("twin", -80, ["another caption", image]),
        hit("b", -85),
    ]
    chosen, skipped = sampled(sampler, hits, 3)
    assert chosen == ["a", "b"]
    assert skipped == [
        ("asked", "same content as the query", None),
        ("twin", "same content as a chosen document", "a"),
    ]


@every
def test_the_selection_is_more_varied_than_the_top_k(sampler: Sampler) -> None:
    def likeness(hits: list[Hit]) -> float:
        return float(np.mean([one.vector @ other.vector for one, other in combinations(hits, 2)]))

    found = []
    for seed in range(20):
        query, hits = random_hits(seed, n=40)
        chosen = sampler.sample(query, hits, k=4, rng=np.random.default_rng(0)).hits
        assert [h.score for h in chosen] == sorted((h.score for h in chosen), reverse=True)
        found.append(likeness(hits[:4]) - likeness(chosen))
    assert np.mean(found) > 0.1


@pytest.mark.parametrize("make", [MmrSampler, DppSampler])
@pytest.mark.parametrize("relevance", [-0.1, 1.1, float("nan")])
def test_a_share_outside_of_its_range_is_an_error(make: type, relevance: float) -> None:
    with pytest.raises(ConfigError, match="relevance is a share"):
        make(relevance)
    with pytest.raises(ConfigError, match="pool"):
        ClusterSampler(pool=0)


def test_the_plugin_declares_three_samplers() -> None:
    import racm3_samplers
    from racm3.registry import Registry

    info = Registry().register(racm3_samplers, name="samplers", distribution="racm3-samplers")
    assert [(c.kind, c.name) for c in info.components] == [("sampler", n) for n in ("mmr", "dpp", "cluster")]
    assert Registry().resolve(info.components[0]) is MmrSampler
