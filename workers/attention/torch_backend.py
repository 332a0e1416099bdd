"""Attention over pages in plain torch, for any device: gather pages into kept buffers, then attend.

Decodes of similar length attend together, padded to the longest; a prefill chunk attends alone.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from workers.attention.backend import Scores
from workers.attention.context import ForwardContext
from workers.attention.kv_cache import KVCache
from workers.attention.torch_parts import Part, Planner, Scratch

LOGITS = 1 << 22  # of one product, where they are written out


class TorchPlan:
    """Of the chunks from `first` on; those before it are somebody else's."""

    def __init__(
        self, cache: KVCache, scratch: Scratch, context: ForwardContext, first: int
    ) -> None:
        self._cache = cache
        self._scratch = scratch
        self._context = context
        self._first = first
        self._token_rows = cache.token_rows(context.slots)
        self._parts: dict[int | None, list[Part]] = {}  # by window

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor | None, scores: Scores
    ) -> Tensor:
        sides = (key,) if value is None else (key, value)
        self._cache.write(layer, self._token_rows, *sides)
        outputs = self.read(layer, query, key, value, scores)
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def read(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor | None, scores: Scores
    ) -> list[Tensor]:
        """attend() where the pages are written already; one output for each part."""
        window = scores.window
        if window not in self._parts:
            planner = Planner(self._cache, self._scratch, self._context, window)
            self._parts[window] = planner.parts(self._first)
        return [
            self._attend_part(layer, part, query, key, value, scores)
            for part in self._parts[window]
        ]

    def _attend_part(
        self,
        layer: int,
        part: Part,
        query: Tensor,
        key: Tensor,
        value: Tensor | None,
        scores: Scores,
    ) -> Tensor:
        if part.page_rows is not None:
            keys, values = self._gather(layer, part)
        else:
            keys = key[part.rows][None]
            values = keys if value is None else value[part.rows][None]
        values = values[..., : scores.value_dim]
        queries = query[part.rows].view(part.sequences, part.queries, *query.shape[1:])
        # [S, H, Q, D], [S, G, K, D], [S, G, K, V]
        by_head = queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2)
        if scores.sinks is None and scores.value_dim is None:
            out = scaled_dot_product_attention(
                *by_head,
                attn_mask=part.bias,
                is_causal=part.page_rows is None and part.bias is None,
                scale=scores.scale,
                enable_gqa=keys.shape[2] != query.shape[1],
            )
        else:
            out = written_out(*by_head, self._bias(part), scores)
        return out.transpose(1, 2).reshape(-1, query.shape[1], values.shape[-1])

    def _bias(self, part: Part) -> Tensor | None:
        """A part's bias, also where it was left to SDPA's own causal flag."""
        if part.bias is not None or part.page_rows is not None:
            return part.bias
        shape, device = (part.queries, part.length), self._cache.device
        return torch.full(shape, float("-inf"), device=device).triu_(1)[None, None]

    def _gather(self, layer: int, part: Part) -> tuple[Tensor, Tensor]:
        """Keys and values [sequences, length, kv_heads, head_dim] of one layer, from the pages; the
        same twice where the pages hold one side."""
        assert part.page_rows is not None
        shape = self._cache.shape
        pages = part.page_rows.numel() // part.sequences
        full = (part.sequences, pages * shape.block_size, shape.kv_heads, shape.head_dim)
        names = ("keys", "values")[: shape.sides]
        sides = [self._scratch.take(name, full, shape.dtype) for name in names]
        self._cache.read(layer, part.page_rows, *sides)
        if part.foreign_rows is not None:
            # The bias hides padding, but 0 * NaN is NaN: one broken sequence, or what it left in a
            # freed page, would break those that attend beside it.
            for side in sides:
                side.view(-1, shape.kv_heads * shape.head_dim).index_fill_(0, part.foreign_rows, 0)
        return sides[0][:, : part.length], sides[-1][:, : part.length]


class TorchBackend:
    """AttentionBackend over one KVCache, for one step at a time."""

    def __init__(self, cache: KVCache) -> None:
        self._cache = cache
        self._scratch = Scratch(cache.device)

    def plan(self, context: ForwardContext, first: int = 0) -> TorchPlan:
        """`first`: the chunk to begin with."""
        return TorchPlan(self._cache, self._scratch, context, first)


def written_out(
    query: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, scores: Scores
) -> Tensor:
    """What SDPA does not do: sinks, and the many heads of a latent without a copy of it for each.
    [S, H, Q, D], [S, G, K, D], [S, G, K, V] -> [S, H, Q, V]; bias [S or 1, 1, Q, K]. Computed in
    float32, under one KV head and for some queries at a time, so that logits stay few."""
    sequences, heads, count, dim = query.shape
    group, width = heads // keys.shape[1], values.shape[-1]
    out = query.new_empty(sequences, heads, count, width)
    step = max(1, LOGITS // (sequences * group * keys.shape[2]))
    for kv_head in range(keys.shape[1]):
        own = slice(kv_head * group, (kv_head + 1) * group)
        key, value = keys[:, kv_head].float(), values[:, kv_head].float()
        for first in range(0, count, step):
            rows = slice(first, first + step)
            some = query[:, own, rows].float()
            # The heads are rows of one product: they share the keys.
            logits = some.reshape(sequences, -1, dim) @ key.mT * scores.scale
            logits = logits.view(*some.shape[:3], -1)
            if bias is not None:
                logits += bias[:, :, rows]
            if scores.sinks is not None:
                sink = scores.sinks[own, None, None].expand(*some.shape[:3], 1)
                weights = torch.cat((logits, sink.float()), -1).softmax(-1)[..., :-1]
            else:
                weights = logits.softmax(-1)
            mixed = weights.reshape(sequences, -1, weights.shape[-1]) @ value
            out[:, own, rows] = mixed.view(*some.shape[:3], width).to(out.dtype)
    return out
