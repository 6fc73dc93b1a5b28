"""The samplers that come with racm3 keep every promise of the interface."""

from __future__ import annotations

from racm3.samplers.diverse import DiverseSampler
from racm3.samplers.random import RandomSampler
from racm3.samplers.topk import TopKSampler
from racm3.testing import SamplerContract


class TestDiverse(SamplerContract):
    def create(self) -> DiverseSampler:
        return DiverseSampler()


class TestTopK(SamplerContract):
    def create(self) -> TopKSampler:
        return TopKSampler()


class TestRandom(SamplerContract):
    def create(self) -> RandomSampler:
        return RandomSampler()
