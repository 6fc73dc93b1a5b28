"""Causal masking: how many spans there are, and where they may lie."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from pydantic import ValidationError

from racm3.generators.cm3.document_format import Span, TokenPart
from racm3.generators.cm3.masking import MaskingSettings, draw_spans

LONG = [TokenPart("text", range(300)), TokenPart("image", range(700))]


def draws(parts, count=2000, **settings):
    rng = np.random.default_rng(0)
    return [draw_spans(parts, MaskingSettings(**settings), rng) for _ in range(count)]


def test_the_defaults_are_those_of_the_method():
    assert MaskingSettings() == MaskingSettings(rate=1.0, minimum=0, whole_segment=0.2)


def test_the_number_of_spans_is_poisson():
    drawn = draws(LONG, whole_segment=0.0)
    # 37 % of documents stay left to right.
    assert np.mean([not spans for spans in drawn]) == pytest.approx(np.exp(-1), abs=0.03)
    # Spans that would overlap are dropped, so there is rather one than two.
    assert np.mean([len(spans) == 1 for spans in drawn]) > np.exp(-1)
    assert 0.05 < np.mean([len(spans) >= 2 for spans in drawn]) < 1 - 2 * np.exp(-1)


def test_no_rate_masks_nothing():
    assert not any(draws(LONG, 200, rate=0.0, whole_segment=0.0))


def test_a_minimum_of_one_masks_nearly_every_document():
    """All but those whose only span came out empty."""
    assert np.mean([not spans for spans in draws(LONG, 1000, minimum=1, whole_segment=0.0)]) < 0.01


def test_a_share_of_documents_has_one_whole_part_masked():
    drawn = draws(LONG, rate=0.0, whole_segment=0.2)
    assert np.mean([bool(spans) for spans in drawn]) == pytest.approx(0.2, abs=0.03)
    kinds = Counter(tuple(spans) for spans in drawn if spans)
    assert set(kinds) == {(Span(0, 0, 300),), (Span(1, 0, 700),)}
    # Caption and picture alike, although the picture is longer.
    assert kinds[Span(0, 0, 300),] / sum(kinds.values()) == pytest.approx(0.5, abs=0.1)


def test_an_empty_part_is_never_masked():
    parts = [TokenPart("text", ()), TokenPart("image", range(4))]
    assert {s.part for spans in draws(parts, 300, rate=2.0, whole_segment=0.5) for s in spans} == {1}
    assert draw_spans([TokenPart("text", ())], MaskingSettings(whole_segment=1.0), np.random.default_rng(0)) == []


@pytest.mark.parametrize("rate", [1.0, 4.0, 60.0])
def test_spans_lie_inside_one_part_and_never_touch(rate):
    parts = [TokenPart("text", range(30)), TokenPart("image", range(64)), TokenPart("text", range(3))]
    for spans in draws(parts, 300, rate=rate, whole_segment=0.0):
        assert len(spans) <= 16
        for span in spans:
            assert 0 <= span.start < span.stop <= len(parts[span.part].tokens)
        for part in range(len(parts)):
            own = sorted((s.start, s.stop) for s in spans if s.part == part)
            assert all(stop < start for (_, stop), (start, _) in pairwise(own))


def test_a_part_is_hit_in_proportion_to_its_length():
    hit = Counter(s.part for spans in draws(LONG, minimum=1, rate=0.0, whole_segment=0.0) for s in spans)
    assert hit[1] / hit.total() == pytest.approx(0.7, abs=0.04)


def test_both_ends_are_uniform():
    """Two uniform draws: a span covers a third of its part on average, and may reach either end."""
    drawn = draws([TokenPart("image", range(64))], minimum=1, rate=0.0, whole_segment=0.0)
    spans = [spans[0] for spans in drawn if spans]
    assert np.mean([s.stop - s.start for s in spans]) / 64 == pytest.approx(1 / 3, abs=0.03)
    assert min(s.start for s in spans) == 0 and max(s.stop for s in spans) == 64


def test_a_seed_repeats_the_spans():
    assert draws(LONG, 20) == draws(LONG, 20)


@pytest.mark.parametrize("wrong", [{"rate": -1}, {"minimum": 17}, {"whole_segment": 1.1}, {"rates": 1}])
def test_settings_are_checked(wrong):
    with pytest.raises(ValidationError):
        MaskingSettings(**wrong)
