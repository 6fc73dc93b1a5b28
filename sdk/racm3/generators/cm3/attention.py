"""Keys and values, and attention to them: while a prompt is read, and while many rows go on from what was read.

No mask is ever guessed from positions, which have gaps between documents: a token sees all that was fed before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import torch

    from .transformer import Transformer

KeysAndValues: TypeAlias = "list[tuple[torch.Tensor, torch.Tensor]]"
"""For each layer keys and values, [key heads, tokens, head width] each."""


class Reading:
    """Attention of one sequence that is read at once, behind what was read before (`past`).

    branches: lengths of several sequences instead, one after the other, that all stand behind `past` and do not see
    each other.
    """

    def __init__(self, past: KeysAndValues | None = None, branches: Sequence[int] | None = None) -> None:
        self.past, self.branches = past, branches
        self.read: KeysAndValues = []  # past and present
        self.mask: torch.Tensor | None = None

    def __call__(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        import torch

        keys, values = k.transpose(0, 1), v.transpose(0, 1)  # [key heads, tokens, head width]
        if self.past is not None:
            keys = torch.cat((self.past[layer][0], keys), 1)
            values = torch.cat((self.past[layer][1], values), 1)
        self.read.append((keys.contiguous(), values.contiguous()))
        if layer == 0:
            self.mask = self._mask(len(q), keys.shape[1], q.device)
        mask = self.mask
        seen = torch.nn.functional.scaled_dot_product_attention(
            q.transpose(0, 1)[None], keys[None], values[None], attn_mask=mask, is_causal=mask is None,
            enable_gqa=q.shape[1] != k.shape[1],
        )  # fmt: skip
        return seen[0].transpose(0, 1)

    def _mask(self, tokens: int, keys: int, device: torch.device) -> torch.Tensor | None:
        """What each token sees, bool [tokens, keys]; None: nothing stands before, and the sequence is one."""
        import torch

        alone = self.branches is None or len(self.branches) < 2
        if alone and keys == tokens:
            return None
        mask = torch.ones(tokens, keys, dtype=torch.bool, device=device).tril(keys - tokens)
        if not alone:
            lengths = torch.tensor(self.branches, device=device)
            branch = torch.arange(len(lengths), device=device).repeat_interleave(lengths)
            mask[:, keys - tokens :] &= branch[:, None] == branch
        return mask


class Sharing:
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
        q = q * width**-0.5
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


class Alone:
    """Attention of rows of which none shares what it has read: each has it in front of its own tokens.

    Arguments as of `Sharing`, with one row to a group; a kernel of the library does the rest.
    """

    def __init__(self, transformer: Transformer, prefixes: list[KeysAndValues], capacity: int) -> None:
        import torch

        lengths = torch.tensor([prefix[0][0].shape[1] for prefix in prefixes], device=transformer.device)
        self.read, self.drawn = int(lengths.max()), 0
        self.own: KeysAndValues = []  # [groups, key heads, longest + capacity, head width]
        for layer in range(transformer.layers):
            sides = (_stacked([prefix[layer][side] for prefix in prefixes]) for side in (0, 1))
            keys, values = (torch.nn.functional.pad(side, (0, 0, 0, capacity)) for side in sides)
            self.own.append((keys, values))
        # Hides the padding of shorter prefixes: [groups, 1, 1, longest + capacity]; None when all are of one length.
        at = torch.arange(self.read + capacity, device=transformer.device)
        hidden = (at >= lengths[:, None]) & (at < self.read)
        self.mask = ~hidden[:, None, None] if hidden.any() else None

    def __call__(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        import torch

        keys, values = self.own[layer]
        at = self.read + self.drawn
        keys[:, :, at], values[:, :, at] = k, v
        return torch.nn.functional.scaled_dot_product_attention(
            q.unsqueeze(2), keys[:, :, : at + 1], values[:, :, : at + 1],
            attn_mask=None if self.mask is None else self.mask[..., : at + 1], enable_gqa=q.shape[1] != k.shape[1],
        )  # fmt: skip

    def keep(self, groups: torch.Tensor, rows: torch.Tensor) -> None:
        """Go on with these groups alone: int64 [kept groups]; each keeps its one row."""
        self.own = [(keys[groups], values[groups]) for keys, values in self.own]
        self.mask = None if self.mask is None else self.mask[groups]


def _stacked(sides: list[torch.Tensor]) -> torch.Tensor:
    """Prefixes of one layer side by side, padded on the right: [groups, key heads, longest, head width]."""
    import torch

    longest = max(side.shape[1] for side in sides)
    if all(side.shape[1] == longest for side in sides):
        return sides[0][None] if len(sides) == 1 else torch.stack(sides)
    return torch.stack([torch.nn.functional.pad(side, (0, 0, 0, longest - side.shape[1])) for side in sides])
