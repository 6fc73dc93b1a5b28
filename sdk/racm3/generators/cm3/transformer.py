"""The forward pass of a stock Llama, written for decoding: the same weights and figures as `LlamaForCausalLM`.

Tokens come flat, [tokens, width], whether they are one sequence (reading a prompt) or one token of each of many rows
(drawing). What a token attends to is the business of the `Attention` that is passed in, and of nothing else: no mask is
ever guessed from positions, which have gaps between documents.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    import torch

KeysAndValues: TypeAlias = "list[tuple[torch.Tensor, torch.Tensor]]"
"""For each layer keys and values, [key heads, tokens, head width] each."""


class Attention(Protocol):
    """Keeps keys and values, and attends to them."""

    def __call__(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """q: [tokens, heads, head width], scaled; k, v: [tokens, key heads, head width]. Gives the shape of q."""


class Transformer:
    """A `LlamaForCausalLM`, called layer by layer. It holds no state, so threads can share it."""

    def __init__(self, model: Any) -> None:
        import torch

        config = model.config
        self.model, self.device, self.dtype = model, model.device, model.dtype
        self.layers, self.eps = len(model.model.layers), config.rms_norm_eps
        self.heads, self.key_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_width: int = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        with torch.inference_mode():
            every = torch.arange(config.max_position_embeddings, device=self.device)
            cos, sin = model.model.rotary_emb(model.lm_head.weight[:1], every[None])  # [1, positions, head width]
            half = self.head_width // 2
            self._cos, self._sin = cos[0], torch.cat((-sin[0, :, :half], sin[0, :, half:]), -1)

    def __call__(self, ids: torch.Tensor, positions: torch.Tensor, attend: Attention) -> torch.Tensor:
        """What the last layer makes of tokens (ids and positions: int64 [tokens]), normalised: [tokens, width]."""
        import torch

        stack = self.model.model
        hidden = stack.embed_tokens(ids)  # [tokens, width]
        cos, sin = self._cos[positions].unsqueeze(1), self._sin[positions].unsqueeze(1)  # [tokens, 1, head width]
        both, scale, half = self.heads + self.key_heads, self.head_width**-0.5, self.head_width // 2
        for number, layer in enumerate(stack.layers):
            attention = layer.self_attn
            x = self._norm(hidden, layer.input_layernorm)
            qk = torch.cat((attention.q_proj(x), attention.k_proj(x)), -1).view(-1, both, self.head_width)
            qk = torch.addcmul(qk * cos, qk.roll(half, -1), sin)
            v = attention.v_proj(x).view(-1, self.key_heads, self.head_width)
            seen = attend(number, qk[:, : self.heads] * scale, qk[:, self.heads :], v)
            hidden = hidden + attention.o_proj(seen.reshape(len(hidden), -1))
            hidden = hidden + layer.mlp(self._norm(hidden, layer.post_attention_layernorm))
        return self._norm(hidden, stack.norm)

    def _norm(self, hidden: torch.Tensor, norm: Any) -> torch.Tensor:
        import torch

        return torch.nn.functional.rms_norm(hidden, hidden.shape[-1:], norm.weight, self.eps)

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


class Reading:
    """Attention of one sequence that is read at once, behind what was read before (`past`)."""

    def __init__(self, past: KeysAndValues | None = None) -> None:
        self.past = past
        self.read: KeysAndValues = []  # past and present

    def __call__(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        import torch

        keys, values = k.transpose(0, 1), v.transpose(0, 1)  # [key heads, tokens, head width]
        if self.past is not None:
            keys = torch.cat((self.past[layer][0], keys), 1)
            values = torch.cat((self.past[layer][1], values), 1)
        self.read.append((keys.contiguous(), values.contiguous()))
        before = keys.shape[1] - len(q)
        mask = None
        if before:
            mask = torch.ones(len(q), keys.shape[1], dtype=torch.bool, device=q.device).tril(before)
        seen = torch.nn.functional.scaled_dot_product_attention(
            q.transpose(0, 1)[None], keys[None], values[None], attn_mask=mask, is_causal=mask is None, scale=1.0,
            enable_gqa=q.shape[1] != k.shape[1],
        )  # fmt: skip
        return seen[0].transpose(0, 1)


class Drawing:
    """Attention of rows that draw side by side: to a prefix that a group of rows shares, and to their own tokens.

    prefixes: of each group, what was read. rows: in each group; row r of group g is the token `g * rows + r` of a step.
    capacity: the most tokens that a row will add.
    """

    def __init__(self, transformer: Transformer, prefixes: list[KeysAndValues], rows: int, capacity: int) -> None:
        import torch

        self.groups, self.rows, self.drawn = len(prefixes), rows, 0
        self.key_heads, width = transformer.key_heads, transformer.head_width
        self.lengths = [prefix[0][0].shape[1] for prefix in prefixes]
        self.prefix: KeysAndValues = []  # [groups, key heads, longest, head width]
        for layer in range(transformer.layers):
            self.prefix.append((_stacked([p[layer][0] for p in prefixes]), _stacked([p[layer][1] for p in prefixes])))
        self.mask = self._mask(transformer.device)
        # [groups, key heads, rows, capacity, head width]: the layout in which both parts can be multiplied uncopied.
        shape = (self.groups, self.key_heads, rows, capacity, width)
        empty = {"dtype": transformer.dtype, "device": transformer.device}
        self.own: KeysAndValues = [
            (torch.empty(shape, **empty), torch.empty(shape, **empty)) for _ in range(transformer.layers)
        ]

    def _mask(self, device: torch.device) -> torch.Tensor | None:
        """Hides the padding of shorter prefixes: [groups * key heads, 1, longest]; None when all are of one length."""
        import torch

        if len(set(self.lengths)) == 1:
            return None
        lengths = torch.tensor(self.lengths, device=device).repeat_interleave(self.key_heads)
        padding = torch.arange(max(self.lengths), device=device) >= lengths[:, None]  # [groups * key heads, longest]
        return torch.zeros(padding.shape, device=device).masked_fill(padding, float("-inf"))[:, None]

    def __call__(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        import torch

        groups, heads, rows, width = self.groups, self.key_heads, self.rows, q.shape[-1]
        share = q.shape[1] // heads  # query heads to a key head
        now = self.drawn + 1
        keys, values = self.own[layer]
        keys[:, :, :, self.drawn] = k.view(groups, rows, heads, width).transpose(1, 2)
        values[:, :, :, self.drawn] = v.view(groups, rows, heads, width).transpose(1, 2)
        keys, values = keys[:, :, :, :now].flatten(0, 2), values[:, :, :, :now].flatten(0, 2)
        shared_keys, shared_values = (side.flatten(0, 1) for side in self.prefix[layer])
        q = q.view(groups, rows, heads, share, width).transpose(1, 2).reshape(groups * heads, rows * share, width)
        shared = torch.bmm(q, shared_keys.transpose(1, 2))  # [groups * heads, rows * share, prefix]
        if self.mask is not None:
            shared = shared + self.mask
        own = torch.bmm(q.reshape(-1, share, width), keys.transpose(1, 2)).view(*shared.shape[:2], now)
        weights = torch.cat((shared, own), -1).softmax(-1, dtype=torch.float32).to(v.dtype)
        prefix = shared.shape[-1]
        seen = torch.bmm(weights[..., :prefix], shared_values)
        own_weights = weights[..., prefix:].reshape(-1, share, now)
        seen = seen.view(-1, share, width).baddbmm(own_weights, values)
        return seen.view(groups, heads, rows, share, width).transpose(1, 2)

    def keep(self, groups: torch.Tensor, rows: torch.Tensor) -> None:
        """Go on with these groups alone, and of each with these rows: int64 [kept groups], [kept groups, kept rows]."""

        def chosen(side: torch.Tensor) -> torch.Tensor:
            made = side.new_empty(len(groups), side.shape[1], rows.shape[1], *side.shape[3:])
            made[:, :, :, : self.drawn] = side[groups[:, None], :, rows, : self.drawn].transpose(1, 2)
            return made

        self.own = [(chosen(keys), chosen(values)) for keys, values in self.own]
        if len(groups) < self.groups:
            self.lengths = [self.lengths[group] for group in groups.tolist()]
            longest = max(self.lengths)
            self.prefix = [(k[groups, :, :longest], v[groups, :, :longest]) for k, v in self.prefix]
            self.mask = self._mask(groups.device)
        self.groups, self.rows = len(groups), rows.shape[1]


def _stacked(sides: list[torch.Tensor]) -> torch.Tensor:
    """Prefixes of one layer side by side, padded on the right: [groups, key heads, longest, head width]."""
    import torch

    longest = max(side.shape[1] for side in sides)
    if all(side.shape[1] == longest for side in sides):
        return sides[0][None] if len(sides) == 1 else torch.stack(sides)
    return torch.stack([torch.nn.functional.pad(side, (0, 0, 0, longest - side.shape[1])) for side in sides])
