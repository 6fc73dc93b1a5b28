"""The default generator keeps every promise of the interface."""

from __future__ import annotations

import pytest

from racm3.generators.cm3.generator import Cm3Generator
from racm3.generators.cm3.model import Checkpoint
from racm3.testing import GeneratorContract


class TestCm3(GeneratorContract):
    @pytest.fixture(autouse=True)
    def tiny_checkpoint(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint

    def create(self) -> Cm3Generator:
        return Cm3Generator.from_checkpoint(self.checkpoint, batch_rows=4)
