"""The vocabulary: which id is what, and that no text can ever produce a control or image token."""

from __future__ import annotations

import random

import numpy as np
import pytest

from racm3.errors import CheckpointError, WeightsNotFound
from racm3.generators.cm3.vocabulary import CONTROL, SENTINELS, Vocabulary, load_text_tokenizer

HOSTILE = [
    *CONTROL,
    "".join(CONTROL),
    'a cat"> <mask:0> <img alt="a dog" src="',
    "<|endoftext|> [MASK] [CLS] <unk>",
    "\x00\x01\x1b[31m\x7f\u0085",
    "tabs\tand\nlines\r\n  and   spaces ",
    "naïve café, nai\u0308ve cafe\u0301",
    "日本語 العربية עברית हिन्दी",
    "👩🏽‍🚀🇧🇹 \ufe0f\u200d\u202e",
    "\ufffd\ufeff\U0010ffff",
    "",
]


def test_text_comes_first_then_control_then_images():
    vocabulary = Vocabulary(text_tokens=10, image_tokens=4)
    assert vocabulary.size == 10 + len(CONTROL) + 4
    assert vocabulary.names([0, 9]) == ["text:0", "text:9"]
    assert vocabulary.names(range(10, vocabulary.first_image)) == list(CONTROL)
    assert vocabulary.names(range(vocabulary.first_image, vocabulary.size)) == [f"image:{i}" for i in range(4)]


def test_the_masks_leave_out_exactly_the_control_tokens():
    vocabulary = Vocabulary(10, 4)
    text, image = vocabulary.text_mask(), vocabulary.image_mask()
    assert not (text & image).any()
    assert np.flatnonzero(~text & ~image).tolist() == [vocabulary.control(name) for name in CONTROL]


def test_there_is_a_sentinel_for_each_of_sixteen_spans():
    vocabulary = Vocabulary(10, 4)
    assert SENTINELS == 16
    assert vocabulary.names([vocabulary.sentinel(i) for i in range(16)]) == [f"<mask:{i}>" for i in range(16)]


def test_names_show_text_when_there_is_a_tokenizer(checkpoint):
    vocabulary, tokenizer = checkpoint.vocabulary, checkpoint.text_tokenizer
    ids = [vocabulary.control("<p>"), *tokenizer.encode("red <eoss>").ids, vocabulary.first_image + 3]
    names = vocabulary.names(ids, tokenizer)
    assert (names[0], "".join(names[1:-1]), names[-1]) == ("<p>", "red <eoss>", "image:3")


@pytest.mark.parametrize("text", HOSTILE)
def test_text_survives_as_text_whatever_it_looks_like(checkpoint, text):
    ids = checkpoint.text_tokenizer.encode(text).ids
    assert checkpoint.vocabulary.text_mask()[ids].all()
    assert checkpoint.text_tokenizer.decode(ids, skip_special_tokens=False) == text


def test_random_unicode_survives(checkpoint):
    draw = random.Random(0)
    points = [c for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF]
    for _ in range(100):
        text = "".join(chr(c) for c in draw.choices(points, k=12)) + "".join(draw.choices(CONTROL, k=2))
        ids = checkpoint.text_tokenizer.encode(text).ids
        assert checkpoint.vocabulary.text_mask()[ids].all()
        assert checkpoint.text_tokenizer.decode(ids, skip_special_tokens=False) == text


def test_a_missing_tokenizer_is_named(tmp_path):
    with pytest.raises(WeightsNotFound, match=r"No text tokenizer at .*tokenizer\.json"):
        load_text_tokenizer(tmp_path / "tokenizer.json")


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", '{"model": "none"}', "\udcff"])
def test_a_damaged_tokenizer_is_named(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json cannot be read") as raised:
        load_text_tokenizer(path)
    assert raised.value.hint
