"""What `racm3 plugins new` writes: components that keep every promise of their interfaces."""

from __future__ import annotations

from pathlib import Path

from racm3.scaffold.generator import ExampleGenerator
from racm3.scaffold.memory import ExampleMemory
from racm3.scaffold.retriever import ExampleRetriever
from racm3.scaffold.sampler import ExampleSampler
from racm3.testing import GeneratorContract, MemoryStoreContract, RetrieverContract, SamplerContract


class TestMemory(MemoryStoreContract):
    def open(self, path: Path) -> ExampleMemory:
        return ExampleMemory(path)


class TestSampler(SamplerContract):
    def create(self) -> ExampleSampler:
        return ExampleSampler()


class TestRetriever(RetrieverContract):
    modalities = frozenset({"text"})

    def create(self) -> ExampleRetriever:
        return ExampleRetriever()


class TestGenerator(GeneratorContract):
    def create(self) -> ExampleGenerator:
        return ExampleGenerator()
