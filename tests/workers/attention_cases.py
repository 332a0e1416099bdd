"""Steps over pages with a history, and attention written out by hand to compare with."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from workers.attention.backend import AttentionBackend, Scores
from workers.attention.context import ForwardContext
from workers.attention.kv_cache import KVCache, KVShape

LAYERS, LAYER = 3, 2
Step = list[tuple[int, int]]  # (queries, length) of each chunk, single tokens first

# Decodes, whole prompts, later chunks, and all of them at once.
STEPS: list[Step] = [
    [(1, 1)],
    [(1, 9)],
    [(1, 8), (1, 8)],
    [(1, 3), (1, 12), (1, 1)],
    [(7, 7)],
    [(5, 11)],
    [(1, 6), (1, 10), (1, 5), (6, 6), (3, 9), (2, 8)],
    # More than the compiled ones take at once: a split of a decode, a tile of queries or of keys.
    [(1, 255), (1, 256), (1, 600), (130, 130), (40, 333)],
]


def by_hand(query: Tensor, keys: Tensor, values: Tensor, scores: Scores) -> Tensor:
    """The last tokens of one sequence attend. [Q, H, D], [K, G, D], [K, G, V] -> [Q, H, V]."""
    group = query.shape[1] // keys.shape[1]
    keys, values = (side.float().repeat_interleave(group, 1) for side in (keys, values))
    logits = torch.einsum("qhd,khd->hqk", query.float(), keys) * scores.scale
    own = torch.arange(len(keys) - len(query), len(keys), device=keys.device)[:, None]
    at = torch.arange(len(keys), device=keys.device)
    logits.masked_fill_(at > own, float("-inf"))
    if scores.window is not None:
        logits.masked_fill_(at <= own - scores.window, float("-inf"))
    if scores.sinks is not None:
        sinks = scores.sinks.float()[:, None, None].expand(-1, len(query), 1)
        logits = torch.cat((logits, sinks), -1)
    weights = logits.softmax(-1)[..., : len(keys)]
    return torch.einsum("hqk,khd->qhd", weights, values)


def new_context(step: Step, slots: Tensor, block_tables: Tensor) -> ForwardContext:
    none = torch.tensor([], dtype=torch.int64)
    starts = (0, *accumulate(queries for queries, _ in step))
    lengths = tuple(length for _, length in step)
    device = slots.device
    return ForwardContext(
        token_ids=none,
        positions=none,
        slots=slots,
        block_tables=block_tables,
        starts=starts,
        lengths=lengths,
        sample_rows=none,
        starts_tensor=torch.tensor(starts, dtype=torch.int32, device=device),
        lengths_tensor=torch.tensor(lengths, dtype=torch.int32, device=device),
    )


@dataclass
class Case:
    """Sequences with their history in the pages, and a step that computes the last of them."""

    cache: KVCache
    context: ForwardContext
    qkv: Tensor  # [T, heads + sides * kv_heads, D], as a fused projection leaves it
    heads: int
    scores: Scores
    keys: list[Tensor]  # of each sequence, [length, kv_heads, D]
    values: list[Tensor]

    def attend(self, backend: Callable[[KVCache], AttentionBackend]) -> Tensor:
        query, key, *value = self.qkv.split(
            (self.heads, *[self.cache.shape.kv_heads] * self.cache.shape.sides), dim=1
        )
        plan = backend(self.cache).plan(self.context)
        return plan.attend(LAYER, query, key, value[0] if value else None, self.scores)

    def expected(self, chunk: int) -> Tensor:
        query = self.qkv[self.rows(chunk), : self.heads]
        return by_hand(query, self.keys[chunk], self.values[chunk], self.scores)

    def rows(self, chunk: int) -> slice:
        return slice(self.context.starts[chunk], self.context.starts[chunk + 1])

    def check(self, backend: Callable[[KVCache], AttentionBackend]) -> None:
        accuracy = 1e-5 if self.qkv.dtype is torch.float32 else 2e-2
        got = self.attend(backend)
        for chunk in range(len(self.context.lengths)):
            own, expected = got[self.rows(chunk)].float(), self.expected(chunk)
            torch.testing.assert_close(own, expected, rtol=1e-5, atol=accuracy)


def new_case(
    step: Step,
    device: torch.device,
    *,
    dtype: torch.dtype = torch.float32,
    heads: int = 6,
    kv_heads: int = 2,
    head_dim: int = 32,
    page: int = 4,
    left: float = float("nan"),
    scores: Scores | None = None,
) -> Case:
    """`left`: what stands wherever these sequences have not written."""
    torch.manual_seed(len(step))
    scores = scores or Scores(head_dim**-0.5)
    sides = 2 if scores.value_dim is None else 1
    num_pages = sum(-(-length // page) for _, length in step) + 3
    cache = KVCache(KVShape(LAYERS, kv_heads, head_dim, page, dtype, sides), num_pages, device)
    cache.pages.fill_(left)
    free = random.Random(1).sample(range(num_pages), num_pages)
    tables = [[free.pop() for _ in range(-(-length // page))] for _, length in step]
    history = [
        [torch.randn(n, kv_heads, head_dim, device=device).to(dtype) for _ in range(sides)]
        for _, n in step
    ]
    slots: list[int] = []
    for table, (queries, length), tokens in zip(tables, step, history, strict=True):
        for i in range(length - queries):
            for side, tensor in enumerate(tokens):
                cache.pages[table[i // page], LAYER, side, i % page] = tensor[i]
        slots += [table[i // page] * page + i % page for i in range(length - queries, length)]
    width = max(map(len, tables)) + 1
    padded = [t + t[:1] * (width - len(t)) for t in tables]
    context = new_context(
        step,
        torch.tensor(slots, device=device),
        torch.tensor(padded, dtype=torch.int32, device=device),
    )
    new = [
        torch.cat([tokens[side][n - q :] for tokens, (q, n) in zip(history, step, strict=True)])
        for side in range(sides)
    ]
    query = torch.randn(len(slots), heads, head_dim, device=device).to(dtype)
    keys, values = [t[0] for t in history], [t[-1][..., : scores.value_dim] for t in history]
    return Case(cache, context, torch.cat((query, *new), 1), heads, scores, keys, values)


def bury(case: Case, before: list[int]) -> None:
    """NaN in the first tokens of each sequence, so many of them."""
    page = case.cache.shape.block_size
    for chunk, count in enumerate(before):
        for i in range(count):
            block = case.context.block_tables[chunk, i // page]
            case.cache.pages[block, LAYER, :, i % page] = float("nan")
