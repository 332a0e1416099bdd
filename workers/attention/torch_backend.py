"""Attention over pages in plain torch, for any device: gather pages into kept buffers, then SDPA.

Decodes of similar length attend together, padded to the longest; a prefill chunk attends alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from workers.attention.context import ForwardContext
from workers.attention.kv_cache import KVCache


class Scratch:
    """Named buffers that live across steps: a fresh large tensor costs more (page faults) than the
    copy into it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffers: dict[str, Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A contiguous tensor over the start of the buffer; its content is what was left there."""
        size = torch.Size(shape).numel()
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < size:
            room = size if buffer is None else max(size, buffer.numel() * 3 // 2)
            buffer = self._buffers[name] = torch.empty(room, dtype=dtype, device=self._device)
        assert buffer.dtype is dtype, f"buffer {name} is {buffer.dtype}, not {dtype}"
        return buffer[:size].view(shape)


@dataclass(frozen=True, slots=True)
class Part:
    """Chunks that attend in one call: some decodes, or one prefill chunk.

    `page_rows` None: nothing stands in the cache before this chunk, so its own keys are enough.
    """

    rows: slice  # of the step's T tokens
    sequences: int
    queries: int  # per sequence
    length: int  # keys per sequence, padding included
    page_rows: Tensor | None  # [sequences * pages]
    bias: Tensor | None  # [sequences, 1, queries, length], 0 or -inf; None: see all (or causal)
    foreign_rows: Tensor | None  # of the gathered tokens: padding that others may have written


class TorchPlan:
    def __init__(self, cache: KVCache, scratch: Scratch, token_rows: Tensor, parts: list[Part]):
        self._cache = cache
        self._scratch = scratch
        self._token_rows = token_rows
        self._parts = parts

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        self._cache.write(layer, self._token_rows, key, value)
        outputs = self.read(layer, query, key, value)
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def read(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        """attend() where the pages are written already; one output for each part."""
        return [self._attend_part(layer, part, query, key, value) for part in self._parts]

    def _attend_part(
        self, layer: int, part: Part, query: Tensor, key: Tensor, value: Tensor
    ) -> Tensor:
        heads, width = query.shape[1:]
        queries = query[part.rows].view(part.sequences, part.queries, heads, width)
        if part.page_rows is None:
            keys, values = key[part.rows][None], value[part.rows][None]
        else:
            keys, values = self._gather(layer, part)
        out = scaled_dot_product_attention(
            queries.transpose(1, 2),  # [S, H, Q, D]
            keys.transpose(1, 2),  # [S, G, K, D]
            values.transpose(1, 2),
            attn_mask=part.bias,
            is_causal=part.page_rows is None,
            enable_gqa=keys.shape[2] != heads,
        )
        return out.transpose(1, 2).reshape(-1, heads, width)

    def _gather(self, layer: int, part: Part) -> tuple[Tensor, Tensor]:
        """Keys and values [sequences, length, kv_heads, head_dim] of one layer, from the pages."""
        assert part.page_rows is not None
        shape = self._cache.shape
        pages = part.page_rows.numel() // part.sequences
        full = (part.sequences, pages * shape.block_size, shape.kv_heads, shape.head_dim)
        keys = self._scratch.take("keys", full, shape.dtype)
        values = self._scratch.take("values", full, shape.dtype)
        self._cache.read(layer, part.page_rows, keys, values)
        if part.foreign_rows is not None:
            # The bias hides padding, but 0 * NaN is NaN: one broken sequence, or what it left in a
            # freed page, would break those that attend beside it.
            for side in (keys, values):
                side.view(-1, shape.kv_heads * shape.head_dim).index_fill_(0, part.foreign_rows, 0)
        return keys[:, : part.length], values[:, : part.length]


class TorchBackend:
    """AttentionBackend over one KVCache. Not thread-safe: one step at a time."""

    def __init__(self, cache: KVCache) -> None:
        self._cache = cache
        self._scratch = Scratch(cache.device)

    def plan(self, context: ForwardContext, first: int = 0) -> TorchPlan:
        """`first`: the chunk to begin with; those before it are somebody else's."""
        groups = [group for group in attention_groups(context) if group.start >= first]
        # The biases of a step live side by side: every layer uses them all.
        sizes = [_bias_size(context, group) for group in groups]
        arena = self._scratch.take("bias", (sum(sizes),), self._cache.shape.dtype).zero_()
        parts = [
            self._part(context, group, bias)
            for group, bias in zip(groups, arena.split(sizes), strict=True)
        ]
        token_rows = self._cache.token_rows(context.slots)
        return TorchPlan(self._cache, self._scratch, token_rows, parts)

    def _part(self, context: ForwardContext, group: range, bias: Tensor) -> Part:
        lengths = [context.lengths[i] for i in group]
        queries, length = context.queries(group[0]), max(lengths)
        size = self._cache.shape.block_size
        pages = -(-length // size)
        tables = context.block_tables[group.start : group.stop, :pages]
        whole = len(group) == 1 and queries == length
        return Part(
            rows=slice(context.starts[group.start], context.starts[group.stop]),
            sequences=len(group),
            queries=queries,
            length=length,
            page_rows=None if whole else self._cache.page_rows(tables).reshape(-1),
            bias=self._fill(context, group, bias) if bias.numel() else None,
            foreign_rows=(
                foreign_rows(lengths, pages, size).to(self._cache.device)
                if min(lengths) < length
                else None
            ),
        )

    def _fill(self, context: ForwardContext, group: range, bias: Tensor) -> Tensor:
        """-inf wherever a query must not look: behind itself, or behind its sequence's end."""
        queries, device = context.queries(group[0]), self._cache.device
        lengths = torch.tensor([context.lengths[i] for i in group], device=device)
        # SDPA's own causal flag aligns query 0 with key 0; here it stands at length - queries.
        own = lengths[:, None] - queries + torch.arange(queries, device=device)  # [S, Q]
        keys = torch.arange(bias.numel() // own.numel(), device=device)
        bias = bias.view(len(group), 1, queries, -1)
        return bias.masked_fill_(keys > own[:, None, :, None], float("-inf"))


def attention_groups(context: ForwardContext) -> list[range]:
    """Chunks that attend in one call: neighbouring decodes as long as padding them to the longest
    at most doubles what is read, and each prefill chunk alone."""
    groups: list[range] = []
    total = longest = 0
    for chunk, length in enumerate(context.lengths):
        decode = context.queries(chunk) == 1
        members = len(groups[-1]) + 1 if groups else 1
        fits = max(longest, length) * members <= 2 * (total + length)
        if decode and total and fits:
            groups[-1] = range(groups[-1].start, chunk + 1)
        else:
            groups.append(range(chunk, chunk + 1))
            total = longest = 0
        if decode:
            total, longest = total + length, max(longest, length)
    return groups


def foreign_rows(lengths: list[int], pages: int, block_size: int) -> Tensor:
    """Rows of gathered tokens [len(lengths) * pages * block_size] that their sequence never wrote.

    The rest of its last page, that is. Padding pages repeat its first page, so that only where the
    first is the last as well do they have such rows too.
    """
    length = torch.tensor(lengths)[:, None]
    position = torch.arange(pages * block_size)
    in_padding = position >= -(-length // block_size) * block_size
    source = torch.where(in_padding, position % block_size, position)
    return (source >= length).flatten().nonzero()[:, 0]


def _bias_size(context: ForwardContext, group: range) -> int:
    """Elements of a bias; 0 where all queries see all keys, or SDPA's own flag is enough."""
    lengths = [context.lengths[i] for i in group]
    queries = context.queries(group[0])
    if queries == 1 and min(lengths) == max(lengths):
        return 0
    if len(group) == 1 and queries == lengths[0]:
        return 0
    return len(group) * queries * max(lengths)
