"""Exact match and token F1."""

from __future__ import annotations

import pytest

from racm3.evaluation.answers import exact_match, token_f1


def test_answers_are_compared_word_by_word() -> None:
    assert exact_match("Flag: Bhutan", "flag bhutan") == 1.0
    assert exact_match("bhutan flag", "flag bhutan") == 0.0
    assert token_f1("red kite", "a red kite") == pytest.approx(0.8)
    assert token_f1("whale", "kite") == 0.0
