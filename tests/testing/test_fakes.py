"""The light components are components like any others: they keep every promise of their interfaces."""

from __future__ import annotations

from racm3.testing import GeneratorContract, HashingRetriever, PaintingGenerator, RetrieverContract


class TestHashingRetriever(RetrieverContract):
    def create(self) -> HashingRetriever:
        return HashingRetriever()


class TestPaintingGenerator(GeneratorContract):
    def create(self) -> PaintingGenerator:
        return PaintingGenerator()
