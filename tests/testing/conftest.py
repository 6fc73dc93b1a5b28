"""How the kit is tested: a component that is wrong in one way must be caught by the check that is meant for it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from racm3.testing.contract import Contract, run

Caught = Callable[[type[Contract], str, str], None]


@pytest.fixture
def caught() -> Caught:
    """`caught(contract, check, words)`: the check fails, and its message has these words."""

    def caught(contract: type[Contract], check: str, words: str) -> None:
        (verdict,) = run(contract, only=[check])
        assert verdict.outcome == "failed", f"{contract.__name__} passes {check}"
        assert words in verdict.why

    return caught
