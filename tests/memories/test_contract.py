"""The default memory keeps every promise of the interface."""

from __future__ import annotations

from pathlib import Path

from racm3.memories.faiss import FaissMemory
from racm3.testing import MemoryStoreContract


class TestFaissMemory(MemoryStoreContract):
    def open(self, path: Path) -> FaissMemory:
        return FaissMemory(path)
