"""The forward pass of a stock Llama, written for decoding: the same weights and figures as `LlamaForCausalLM`.

Tokens come flat, [tokens, width], whether they are one sequence (reading a prompt) or one token of each of many rows
(drawing). What a token attends to is the business of the `Attention` that is passed in, and of nothing else: no mask is
ever guessed from positions, which have gaps between documents.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from ...errors import GenerationError

if TYPE_CHECKING:
    import torch

Linear: TypeAlias = "tuple[torch.Tensor, torch.Tensor | None]"
"""Weight and bias of a layer. Functions work on them, not modules: at one token a step, calling a module costs as much as
what it does."""


class Attention(Protocol):
    """Keeps keys and values, and attends to them."""

    def __call__(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """q: [tokens, heads, head width]; k, v: [tokens, key heads, head width]. Gives as many values as q has."""


class Transformer:
    """A `LlamaForCausalLM`, called layer by layer. It holds no state, so threads can share it.

    compile: have torch compile what stands between two attentions. `GenerationError` where it cannot.
    """

    def __init__(self, model: Any, *, compile: bool = False) -> None:
        import torch

        config = model.config
        self.model, self.device, self.dtype = model, model.device, model.dtype
        self.layers, self.eps = len(model.model.layers), config.rms_norm_eps
        self.heads, self.key_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_width: int = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        # The parameters themselves, which take up no more room. Once they are trained further, what was kept of documents
        # (`PrefixCache.clear`) is that of others.
        self._weights = [
            (
                (layer.input_layernorm.weight, *((m.weight, m.bias) for m in (a.q_proj, a.k_proj, a.v_proj))),
                (
                    (a.o_proj.weight, a.o_proj.bias),
                    layer.post_attention_layernorm.weight,
                    *((m.weight, m.bias) for m in (f.gate_proj, f.up_proj, f.down_proj)),
                ),
            )
            for layer, a, f in ((layer, layer.self_attn, layer.mlp) for layer in model.model.layers)
        ]
        with torch.inference_mode():
            every = torch.arange(config.max_position_embeddings, device=self.device)
            cos, sin = model.model.rotary_emb(model.lm_head.weight[:1], every[None])  # [1, positions, head width]
            half = self.head_width // 2
            self._cos, self._sin = cos[0], torch.cat((-sin[0, :, :half], sin[0, :, half:]), -1)
        self._before_attention, self._after_attention = before_attention, after_attention
        if compile:
            self._compile()

    def _compile(self) -> None:
        """For any number of tokens; done here, so that a machine that cannot is found out before anything is asked."""
        import torch

        self._before_attention = torch.compile(before_attention, dynamic=True)
        self._after_attention = torch.compile(after_attention, dynamic=True)
        with torch.inference_mode():
            for count in (1, 2):  # one row and many are compiled apart
                tokens = torch.zeros(count, dtype=torch.int64, device=self.device)
                try:
                    self(tokens, tokens, lambda layer, q, k, v: q)
                except Exception as error:
                    raise GenerationError(
                        f"The model cannot be compiled on this machine: {error}",
                        "Set compile = false, or install what torch.compile needs (on a CPU: a C++ compiler).",
                    ) from error

    def __call__(self, ids: torch.Tensor, positions: torch.Tensor, attend: Attention) -> torch.Tensor:
        """What the last layer makes of tokens (ids and positions: int64 [tokens]), normalised: [tokens, width]."""
        import torch

        stack = self.model.model
        hidden = torch.nn.functional.embedding(ids, stack.embed_tokens.weight)  # [tokens, width]
        cos, sin = self._cos[positions].unsqueeze(1), self._sin[positions].unsqueeze(1)  # [tokens, 1, head width]
        for number, (before, after) in enumerate(self._weights):
            qk, value = self._before_attention(hidden, cos, sin, self.eps, *before)
            seen = attend(number, qk[:, : self.heads], qk[:, self.heads :], value)
            hidden = self._after_attention(hidden, seen, self.eps, *after)
        return torch.nn.functional.rms_norm(hidden, hidden.shape[-1:], stack.norm.weight, self.eps)

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


def before_attention(
    hidden: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, eps: float,
    norm: torch.Tensor, q: Linear, k: Linear, v: Linear,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Queries and keys, turned by their positions, [tokens, heads + key heads, head width]; and values."""
    import torch

    linear, width = torch.nn.functional.linear, cos.shape[-1]
    x = torch.nn.functional.rms_norm(hidden, hidden.shape[-1:], norm, eps)
    qk = torch.cat((linear(x, *q), linear(x, *k)), -1).view(len(x), -1, width)
    return torch.addcmul(qk * cos, qk.roll(width // 2, -1), sin), linear(x, *v).view(len(x), -1, width)


def after_attention(
    hidden: torch.Tensor, seen: torch.Tensor, eps: float,
    o: Linear, norm: torch.Tensor, gate: Linear, up: Linear, down: Linear,
) -> torch.Tensor:  # fmt: skip
    """What a layer makes of tokens, [tokens, width], and of what they have seen."""
    import torch

    linear = torch.nn.functional.linear
    hidden = hidden + linear(seen.reshape(len(hidden), -1), *o)
    x = torch.nn.functional.rms_norm(hidden, hidden.shape[-1:], norm, eps)
    return hidden + linear(torch.nn.functional.silu(linear(x, *gate)) * linear(x, *up), *down)
