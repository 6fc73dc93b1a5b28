"""The forward pass for decoding gives what `LlamaForCausalLM` gives, with what was read kept or not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from racm3.errors import GenerationError
from racm3.generators.cm3.attention import Alone, Sharing
from racm3.generators.cm3.document_format import DocumentFormat, TokenPart
from racm3.generators.cm3.prefix_cache import PrefixCache, read
from racm3.generators.cm3.transformer import Transformer
from racm3.generators.cm3.vocabulary import Vocabulary

VOCABULARY = Vocabulary(40, 20)


def llama(key_heads: int) -> LlamaForCausalLM:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        config = LlamaConfig(
            vocab_size=VOCABULARY.size, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=key_heads, max_position_embeddings=256, pad_token_id=40,
        )  # fmt: skip
        model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(8)
    return model


def context(shift: int = 0):
    """Two documents, with a gap between their positions."""
    format = DocumentFormat(VOCABULARY, 32, 8)
    first = format.write([TokenPart("text", [1 + shift, 2]), TokenPart("image", range(9))])
    return [first, format.write([TokenPart("text", [3]), TokenPart("image", range(5, 14))], slot=32)]


def plain_logits(model, ids, positions) -> torch.Tensor:
    """What the library gives for a whole sequence, with an explicit mask: [tokens, vocabulary]."""
    ids, positions = torch.tensor(ids)[None], torch.tensor(positions)[None]
    with torch.no_grad():
        return model(input_ids=ids, position_ids=positions, attention_mask=torch.ones_like(ids)).logits[0]


@pytest.mark.parametrize("key_heads", [4, 2, 1])
def test_logits_are_those_of_the_library_with_and_without_a_prefix(key_heads):
    """A prefix shared by three rows of each of two groups of unlike length, and rows that go on in different ways."""
    model = llama(key_heads)
    transformer, documents = Transformer(model), context()
    seen = read(transformer, documents[0].ids, documents[0].positions)[0]
    both = read(transformer, documents[1].ids, documents[1].positions, seen)[0]
    drawing = Sharing(transformer, [both, seen], 3, 4)
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, VOCABULARY.size, (6, 4))
    starts = [documents, documents[:1]]
    for step in range(4):
        with torch.inference_mode():
            at = torch.tensor([70 + step] * 6)
            hidden = transformer(torch.tensor(drawn[:, step]), at, drawing)
            drawing.drawn += 1
            found = transformer.logits(hidden, 0, VOCABULARY.size)
        for row in range(6):
            before = starts[row // 3]
            ids = [*np.concatenate([s.ids for s in before]), *drawn[row, : step + 1]]
            positions = [*np.concatenate([s.positions for s in before]), *range(70, 71 + step)]
            assert (plain_logits(model, ids, positions)[-1] - found[row]).abs().max() < 1e-4
        if step == 1:  # rows leave: what stays goes on as before
            drawing.keep(torch.tensor([0, 1]), torch.tensor([[0, 2], [1, 2]]))
            drawn, starts = drawn[[0, 2, 4, 5]], [documents, documents[:1]]
            break
    for step in range(2, 4):
        with torch.inference_mode():
            hidden = transformer(torch.tensor(drawn[:, step]), torch.tensor([70 + step] * 4), drawing)
            drawing.drawn += 1
            found = transformer.logits(hidden, 0, VOCABULARY.size)
        for row in range(4):
            before = starts[row // 2]
            ids = [*np.concatenate([s.ids for s in before]), *drawn[row, : step + 1]]
            positions = [*np.concatenate([s.positions for s in before]), *range(70, 71 + step)]
            assert (plain_logits(model, ids, positions)[-1] - found[row]).abs().max() < 1e-4
    with torch.inference_mode():
        drawing.keep(torch.tensor([1]), torch.tensor([[1]]))
    assert drawing.prefix[0][0].shape[2] == len(documents[0]), "what a group that left had read is gone"


@pytest.mark.parametrize("key_heads", [4, 2])
@pytest.mark.parametrize("unlike", [True, False])
def test_rows_that_share_nothing(key_heads, unlike):
    """Three rows, each behind documents of its own; one leaves on the way."""
    model = llama(key_heads)
    transformer = Transformer(model)
    starts = [context(), context(1)[:1] if unlike else context(1), context(2)]
    prefixes = PrefixCache()
    alone = Alone(transformer, [prefixes.read(transformer, start) for start in starts], 3)
    drawn = np.random.default_rng(0).integers(0, VOCABULARY.size, (3, 3))
    for step in range(3):
        if step == 2:
            with torch.inference_mode():
                alone.keep(torch.tensor([1, 2]), torch.tensor([[0], [0]]))
            drawn, starts = drawn[1:], starts[1:]
        with torch.inference_mode():
            at = torch.tensor([70 + step] * len(drawn))
            hidden = transformer(torch.tensor(drawn[:, step]), at, alone)
            alone.drawn += 1
            found = transformer.logits(hidden, 0, VOCABULARY.size)
        for row, before in enumerate(starts):
            ids = [*np.concatenate([s.ids for s in before]), *drawn[row, : step + 1]]
            positions = [*np.concatenate([s.positions for s in before]), *range(70, 71 + step)]
            assert (plain_logits(model, ids, positions)[-1] - found[row]).abs().max() < 1e-4


def test_logits_over_a_part_of_the_vocabulary(checkpoint):
    transformer = Transformer(checkpoint.model)
    hidden = torch.randn(3, 2, 32)
    with torch.no_grad():
        every = checkpoint.model.lm_head(hidden)
        assert torch.allclose(transformer.logits(hidden, 7, 19), every[..., 7:19], atol=1e-5)
        found = transformer.logits_of(hidden, torch.tensor([3, 99, 5]))
    for row, token in enumerate([3, 99, 5]):
        assert torch.allclose(found[row], every[row, :, token], atol=1e-5)


@pytest.mark.slow
def test_compiled_it_gives_the_same(checkpoint):
    """For one token, for many at once, and for as many as were never compiled for."""
    plain, compiled = Transformer(checkpoint.model), Transformer(checkpoint.model, compile=True)
    rng = np.random.default_rng(0)
    for count in (1, 2, 7, 40):
        ids, positions = rng.integers(0, checkpoint.vocabulary.size, count), np.arange(count)
        (_, expected), (_, found) = (read(transformer, ids, positions) for transformer in (plain, compiled))
        assert torch.allclose(found, expected, atol=1e-4)


def test_a_machine_that_cannot_compile_says_so(checkpoint, monkeypatch):
    def compiler(function, **settings):
        def fails(*arguments):
            raise RuntimeError("no C++ compiler was found")

        return fails

    monkeypatch.setattr(torch, "compile", compiler)
    with pytest.raises(GenerationError, match=r"cannot be compiled.*no C\+\+ compiler") as raised:
        Transformer(checkpoint.model, compile=True)
    assert "compile = false" in raised.value.hint


# --- what is kept of documents ------------------------------------------------------------------------------------


def test_a_context_is_read_once():
    transformer, cache = Transformer(llama(4)), PrefixCache()
    first = cache.read(transformer, context())
    assert cache.read(transformer, context()) is first
    assert (cache.hits, cache.misses, len(cache)) == (1, 1, 1)
    assert cache.read(transformer, context(shift=1)) is not first, "another document"
    assert cache.read(transformer, context()[:1]) is not first, "fewer documents"
    assert cache.read(transformer, []) is None
    assert (cache.hits, cache.misses, len(cache)) == (1, 3, 3)


def test_the_least_recently_used_goes_first_and_the_limit_is_kept():
    transformer = Transformer(llama(4))
    cache = PrefixCache()
    cache.read(transformer, context())
    size = cache.bytes
    assert size == 3 * 2 * 4 * 8 * 4 * sum(map(len, context())), "layers, keys and values, heads, width, bytes, tokens"
    cache = PrefixCache(limit=2 * size)
    for shift in (0, 1, 0, 2):
        cache.read(transformer, context(shift))
    assert cache.bytes == 2 * size and cache.hits == 1
    cache.read(transformer, context(0))
    assert cache.hits == 2, "used twice, it stayed"
    cache.read(transformer, context(1))
    assert cache.hits == 2
    cache.clear()
    assert (cache.bytes, len(cache)) == (0, 0)
    small = PrefixCache(limit=size - 1)
    assert small.read(transformer, context()) is not None and len(small) == 0
