"""Three samplers of racm3 that trade relevance for variety, each from its paper."""

from __future__ import annotations

from collections.abc import Iterator

from racm3 import Component, Sampler, hookimpl


@hookimpl
def racm3_components() -> Iterator[Component]:
    yield Component(Sampler, "mmr", "racm3_samplers.mmr:MmrSampler", summary="Maximal marginal relevance")
    yield Component(Sampler, "dpp", "racm3_samplers.dpp:DppSampler", summary="Greedy determinantal point process")
    yield Component(Sampler, "cluster", "racm3_samplers.cluster:ClusterSampler", summary="One document per cluster")
