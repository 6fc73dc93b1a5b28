"""The forward pass of a stock Llama, written for decoding: the same weights and figures as `LlamaForCausalLM`.

Tokens come flat, [tokens, width], whether they are one sequence (reading a prompt) or one token of each of many rows
(drawing). What a token attends to is the business of the `Attention` that is passed in, and of nothing else: no mask is
ever guessed from positions, which have gaps between documents.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch


class Attention(Protocol):
    """Keeps keys and values, and attends to them."""

    def __call__(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """q: [tokens, heads, head width]; k, v: [tokens, key heads, head width]. Gives as many values as q has."""


class Transformer:
    """A `LlamaForCausalLM`, called layer by layer. It holds no state, so threads can share it."""

    def __init__(self, model: Any) -> None:
        import torch

        config = model.config
        self.model, self.device, self.dtype = model, model.device, model.dtype
        self.layers, self.eps = len(model.model.layers), config.rms_norm_eps
        self.heads, self.key_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_width: int = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        # The parameters themselves, so that they may go on being trained.
        self._weights = [
            (
                layer.input_layernorm.weight,
                *((m.weight, m.bias) for m in (a.q_proj, a.k_proj, a.v_proj, a.o_proj)),
                layer.post_attention_layernorm.weight,
                *((m.weight, m.bias) for m in (f.gate_proj, f.up_proj, f.down_proj)),
            )
            for layer, a, f in ((layer, layer.self_attn, layer.mlp) for layer in model.model.layers)
        ]
        with torch.inference_mode():
            every = torch.arange(config.max_position_embeddings, device=self.device)
            cos, sin = model.model.rotary_emb(model.lm_head.weight[:1], every[None])  # [1, positions, head width]
            half = self.head_width // 2
            self._cos, self._sin = cos[0], torch.cat((-sin[0, :, :half], sin[0, :, half:]), -1)

    def __call__(self, ids: torch.Tensor, positions: torch.Tensor, attend: Attention) -> torch.Tensor:
        """What the last layer makes of tokens (ids and positions: int64 [tokens]), normalised: [tokens, width]."""
        import torch

        # Functions on weights, not modules: at one token a step, calling a module costs as much as what it does.
        linear, norm = torch.nn.functional.linear, torch.nn.functional.rms_norm
        stack = self.model.model
        hidden = torch.nn.functional.embedding(ids, stack.embed_tokens.weight)  # [tokens, width]
        cos, sin = self._cos[positions].unsqueeze(1), self._sin[positions].unsqueeze(1)  # [tokens, 1, head width]
        both, half, shape, eps = self.heads + self.key_heads, self.head_width // 2, hidden.shape[-1:], self.eps
        for number, (before, q, k, v, o, after, gate, up, down) in enumerate(self._weights):
            x = norm(hidden, shape, before, eps)
            qk = torch.cat((linear(x, *q), linear(x, *k)), -1).view(-1, both, self.head_width)
            qk = torch.addcmul(qk * cos, qk.roll(half, -1), sin)
            value = linear(x, *v).view(-1, self.key_heads, self.head_width)
            seen = attend(number, qk[:, : self.heads], qk[:, self.heads :], value)
            hidden = hidden + linear(seen.reshape(len(hidden), -1), *o)
            x = norm(hidden, shape, after, eps)
            hidden = hidden + linear(torch.nn.functional.silu(linear(x, *gate)) * linear(x, *up), *down)
        return norm(hidden, shape, stack.norm.weight, eps)

    def logits(self, hidden: torch.Tensor, first: int, stop: int) -> torch.Tensor:
        """Logits of the tokens `first:stop` alone, float32 [..., stop - first]."""
        import torch

        head = self.model.lm_head
        bias = None if head.bias is None else head.bias[first:stop]
        return torch.nn.functional.linear(hidden, head.weight[first:stop], bias).float()

    def logits_of(self, hidden: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """The logit of one token for each of n rows (hidden: [n, streams, width], tokens: [n]): float32 [n, streams]."""
        head = self.model.lm_head
        found = (hidden @ head.weight[tokens].unsqueeze(-1)).squeeze(-1).float()
        return found if head.bias is None else found + head.bias[tokens].float().unsqueeze(-1)
