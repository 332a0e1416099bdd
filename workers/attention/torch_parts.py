"""Which chunks of a step attend in one call of plain torch, which pages they gather, and what of
those each query must not see."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

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
    `bias` None: every query sees all keys, or all up to its own where `page_rows` is None.
    """

    rows: slice  # of the step's T tokens
    sequences: int
    queries: int  # per sequence
    length: int  # keys per sequence, padding included
    page_rows: Tensor | None  # [sequences * pages]
    bias: Tensor | None  # [sequences, 1, queries, length], 0 or -inf
    foreign_rows: Tensor | None  # of the gathered tokens: padding that others may have written


class Planner:
    """Makes the parts of one step for one window (None: queries see all before them). Of each chunk
    whole pages are left out that lie before the window of its first query."""

    def __init__(
        self, cache: KVCache, scratch: Scratch, context: ForwardContext, window: int | None
    ) -> None:
        self._cache = cache
        self._scratch = scratch
        self._context = context
        self._window = window
        self._size = size = cache.shape.block_size
        counts = [context.queries(i) for i in range(len(context.lengths))]
        before = [n - q for n, q in zip(context.lengths, counts, strict=True)]
        self._queries = counts
        self._skipped = [
            0 if window is None else max(0, seen + 1 - window) // size for seen in before
        ]
        # From here on positions count from the first page that is not left out.
        self._lengths = [
            length - pages * size
            for length, pages in zip(context.lengths, self._skipped, strict=True)
        ]

    def parts(self, first: int) -> list[Part]:
        """Of the chunks from `first` on."""
        groups = [g for g in attention_groups(self._queries, self._lengths) if g.start >= first]
        # The biases of a step live side by side: every layer uses them all.
        sizes = [self._bias_size(group) for group in groups]
        name, dtype = f"bias of window {self._window}", self._cache.shape.dtype
        arena = self._scratch.take(name, (sum(sizes),), dtype).zero_()
        return [
            self._part(group, bias) for group, bias in zip(groups, arena.split(sizes), strict=True)
        ]

    def _part(self, group: range, bias: Tensor) -> Part:
        starts, lengths = self._context.starts, [self._lengths[i] for i in group]
        pages = -(-max(lengths) // self._size)
        padded = min(lengths) < max(lengths)
        foreign = foreign_rows(lengths, pages, self._size) if padded else None
        return Part(
            rows=slice(starts[group.start], starts[group.stop]),
            sequences=len(group),
            queries=self._queries[group[0]],
            length=max(lengths),
            page_rows=None if self._whole(group) else self._page_rows(group, pages),
            bias=self._fill(group, bias) if bias.numel() else None,
            foreign_rows=None if foreign is None else foreign.to(self._cache.device),
        )

    def _whole(self, group: range) -> bool:
        """A whole prompt: its keys need not be gathered."""
        chunk = group[0]
        return len(group) == 1 and self._queries[chunk] == self._context.lengths[chunk]

    def _page_rows(self, group: range, pages: int) -> Tensor:
        """Shorter sequences are padded with their own first page."""
        page = torch.arange(pages)
        own = torch.tensor([-(-self._lengths[i] // self._size) for i in group])[:, None]
        skipped = torch.tensor([self._skipped[i] for i in group])[:, None]
        columns = skipped + torch.where(page < own, page, 0)
        tables = self._context.block_tables[group.start : group.stop]
        blocks = tables.gather(1, columns.to(tables.device))
        return self._cache.page_rows(blocks).reshape(-1)

    def _bias_size(self, group: range) -> int:
        """Elements of a bias; 0 where all queries see all keys, or SDPA's own flag is enough."""
        lengths = [self._lengths[i] for i in group]
        queries, longest = self._queries[group[0]], max(lengths)
        inside = self._window is None or longest <= self._window
        if inside and (self._whole(group) or (queries == 1 and min(lengths) == longest)):
            return 0
        return len(group) * queries * longest

    def _fill(self, group: range, bias: Tensor) -> Tensor:
        """-inf wherever a query must not look: behind itself, behind its sequence's end, or before
        its window."""
        queries, device = self._queries[group[0]], bias.device
        lengths = torch.tensor([self._lengths[i] for i in group], device=device)
        # SDPA's own causal flag aligns query 0 with key 0; here it stands at length - queries.
        own = (lengths[:, None] - queries + torch.arange(queries, device=device))[:, None, :, None]
        keys = torch.arange(bias.numel() // own.numel(), device=device)
        hidden = keys > own
        if self._window is not None:
            hidden |= keys <= own - self._window
        return bias.view(hidden.shape).masked_fill_(hidden, float("-inf"))


def attention_groups(queries: list[int], lengths: list[int]) -> list[range]:
    """Chunks that attend in one call: neighbouring decodes as long as padding them to the longest
    at most doubles what is read, and each prefill chunk alone."""
    groups: list[range] = []
    total = longest = 0
    for chunk, (count, length) in enumerate(zip(queries, lengths, strict=True)):
        decode = count == 1
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
