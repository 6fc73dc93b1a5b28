"""CIDEr and BLEU-4 against small cases that were worked out by hand, with Java and without."""

from __future__ import annotations

import math
import shutil

import numpy as np
import pytest

from racm3.errors import ConfigError
from racm3.evaluation.bleu import Bleu4
from racm3.evaluation.caption_tokens import CaptionTokens, tokenize_captions
from racm3.evaluation.cider import cider


@pytest.fixture
def no_java(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)


def test_cider_of_a_hand_worked_case() -> None:
    # Two pictures; every n-gram stands in the reference of one of them alone, so its weight is log 2 throughout.
    # 1-grams: "a b c" against "a b d" share 2 of 3, so the cosine is 2/3; 2-grams: "a b" of 2, so 1/2; 3-grams: none;
    # 4-grams: neither has any. Equal lengths: no penalty. 10 · (2/3 + 1/2 + 0 + 0) / 4, times 100.
    tokens = CaptionTokens(["a b c", "w x y z"], [["a b d"], ["w x y z"]], "plain")
    np.testing.assert_allclose(cider(tokens), [1000 * (2 / 3 + 1 / 2) / 4, 1000.0])


def test_cider_gives_nothing_for_words_that_every_picture_has() -> None:
    tokens = CaptionTokens(["the", "the kite"], [["the whale"], ["the kite"]], "plain")
    scores = cider(tokens)
    assert scores[0] == 0.0
    assert scores[1] == pytest.approx(1000 * 2 / 4)  # 1-grams and 2-grams agree, there are no longer ones


def test_bleu_of_a_hand_worked_case() -> None:
    # Against the six words of the reference: 1-grams 5/6, 2-grams 3/5, 3-grams 2/4, 4-grams 1/3; no brevity penalty.
    tokens = CaptionTokens(["the cat sat on a mat"], [["the cat sat on the mat"]], "plain")
    assert Bleu4(tokens)() == pytest.approx((5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25, rel=1e-6)


def test_bleu_punishes_a_short_candidate() -> None:
    tokens = CaptionTokens(["the cat sat on"], [["the cat sat on the mat"]], "plain")
    assert Bleu4(tokens)() == pytest.approx(math.exp(1 - 6 / 4), rel=1e-6)


def test_bleu_weighs_captions() -> None:
    pairs = CaptionTokens(["a b c d", "a x y z"], [["a b c d"], ["a b c d"]], "plain")
    first = CaptionTokens(["a b c d"], [["a b c d"]], "plain")
    assert Bleu4(pairs)(np.array([2.0, 0.0])) == pytest.approx(Bleu4(first)())
    assert Bleu4(pairs)() < 1.0


def test_without_java_words_are_cut_plainly_and_it_says_so(no_java: None) -> None:
    tokens = tokenize_captions(["A red kite, flying!"], [["flag: São Tomé", "a kite"]])
    assert tokens == CaptionTokens(["a red kite flying"], [["flag são tomé", "a kite"]], "plain")
    assert cider(tokenize_captions(["a", "b"], [["a"], ["b"]])).tolist() == [250.0, 250.0]
    with pytest.raises(ConfigError, match="Java"):
        tokenize_captions(["a"], [["a"]], tokenizer="ptb")


@pytest.mark.skipif(shutil.which("java") is None, reason="the Penn Treebank tokenizer is a Java program")
def test_with_java_words_are_cut_as_pycocoevalcap_cuts_them() -> None:
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    said = ["A red kite, flying!", "", "the dog's\nbowl (São Tomé)", "don't -- it's 3.5 m"]
    expected = PTBTokenizer().tokenize({i: [{"caption": text}] for i, text in enumerate(said)})
    tokens = tokenize_captions(said, [["x"]] * 4)
    assert tokens.tokenizer == "ptb"
    assert tokens.candidates == [expected[i][0] for i in range(4)]
