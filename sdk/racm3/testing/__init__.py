"""For tests, yours and ours: contracts that say whether a component keeps its interface's promises, and light components.

    from racm3.testing import MemoryStoreContract

    class TestShelf(MemoryStoreContract):       # pytest runs every rule of a memory as a test of its own
        def open(self, path):
            return ShelfMemory(path)

`racm3 plugins check NAME` runs the same rules without pytest.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .contract import Contract, ContractViolation
    from .fakes import HashingRetriever, PaintingGenerator
    from .generator_contract import GeneratorContract
    from .memory_contract import MemoryStoreContract
    from .retriever_contract import RetrieverContract
    from .sampler_contract import SamplerContract

_HOMES = {
    "Contract": "contract",
    "ContractViolation": "contract",
    "GeneratorContract": "generator_contract",
    "HashingRetriever": "fakes",
    "MemoryStoreContract": "memory_contract",
    "PaintingGenerator": "fakes",
    "RetrieverContract": "retriever_contract",
    "SamplerContract": "sampler_contract",
}

__all__ = [
    "Contract", "ContractViolation", "GeneratorContract", "HashingRetriever", "MemoryStoreContract",
    "PaintingGenerator", "RetrieverContract", "SamplerContract",
]  # fmt: skip


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value
