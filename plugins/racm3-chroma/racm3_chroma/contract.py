"""How `racm3 plugins check chroma` makes the memory: in a folder, or on a server, `--set host=localhost --set port=8000`."""

from __future__ import annotations

import hashlib
from pathlib import Path

from racm3.testing import MemoryStoreContract

from .memory import ChromaMemory


class ChromaContract(MemoryStoreContract):
    """On a server each check has collections of its own, which stay there: give one that holds nothing else."""

    def open(self, path: Path) -> ChromaMemory:
        if "host" not in self.settings:
            return ChromaMemory(path, **self.settings)
        collection = f"{path.name}-{hashlib.sha256(str(path).encode()).hexdigest()[:16]}"
        return ChromaMemory(collection=collection, **self.settings)
