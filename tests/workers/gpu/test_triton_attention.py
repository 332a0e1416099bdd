"""Attention over pages in place, against attention written out by hand."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from tests.workers.test_attention import STEPS, by_hand
from tests.workers.test_attention import new_context as host_context
from workers.attention import triton_backend
from workers.attention.context import ForwardContext
from workers.attention.kv_cache import KVCache, KVShape
from workers.attention.triton_backend import TritonBackend, choose_tiles

LAYERS, LAYER = 3, 2


@dataclass
class Case:
    """Sequences with their history in the pages, and a step that computes the last of them."""

    cache: KVCache
    context: ForwardContext
    qkv: Tensor  # [T, heads + 2 * kv_heads, D], as the fused projection leaves it
    heads: int
    keys: list[Tensor]  # of each sequence, [length, kv_heads, D]
    values: list[Tensor]

    def attend(self) -> Tensor:
        kv_heads = self.cache.shape.kv_heads
        query, key, value = self.qkv.split((self.heads, kv_heads, kv_heads), dim=1)
        return TritonBackend(self.cache).plan(self.context).attend(LAYER, query, key, value)

    def expected(self, chunk: int) -> Tensor:
        rows = self.qkv[self.rows(chunk), : self.heads]
        return by_hand(rows.float(), self.keys[chunk].float(), self.values[chunk].float())

    def rows(self, chunk: int) -> slice:
        return slice(self.context.starts[chunk], self.context.starts[chunk + 1])


def new_context(
    step: list[tuple[int, int]], slots: Tensor, tables: Tensor, device: torch.device
) -> ForwardContext:
    context = host_context(step, slots.to(device), tables.to(device))
    starts, lengths = context.starts_tensor.to(device), context.lengths_tensor.to(device)
    return replace(context, starts_tensor=starts, lengths_tensor=lengths)


def new_case(
    step: list[tuple[int, int]],
    device: torch.device,
    *,
    dtype: torch.dtype = torch.float32,
    heads: int = 6,
    kv_heads: int = 2,
    head_dim: int = 8,
    page: int = 4,
    left: float = float("nan"),
) -> Case:
    """step: (queries, length) of each chunk, single tokens first as in every context. `left`: what
    stands wherever these sequences have not written."""
    step = sorted(step, key=lambda chunk: chunk[0] > 1)
    torch.manual_seed(len(step))
    num_pages = sum(-(-length // page) for _, length in step) + 3
    shape = KVShape(LAYERS, kv_heads, head_dim, page, dtype)
    cache = KVCache(shape, num_pages, device)
    cache.pages.fill_(left)
    free = random.Random(1).sample(range(num_pages), num_pages)
    tables = [[free.pop() for _ in range(-(-length // page))] for _, length in step]
    keys, values = (
        [torch.randn(n, kv_heads, head_dim, device=device).to(dtype) for _, n in step]
        for _ in range(2)
    )
    slots: list[int] = []
    for table, (queries, length), k, v in zip(tables, step, keys, values, strict=True):
        for i in range(length - queries):
            cache.pages[table[i // page], LAYER, 0, i % page] = k[i]
            cache.pages[table[i // page], LAYER, 1, i % page] = v[i]
        slots += [table[i // page] * page + i % page for i in range(length - queries, length)]
    width = max(map(len, tables))
    context = new_context(
        step,
        torch.tensor(slots),
        torch.tensor([t + t[:1] * (width - len(t)) for t in tables], dtype=torch.int32),
        device,
    )
    new_keys = torch.cat([k[n - q :] for k, (q, n) in zip(keys, step, strict=True)])
    new_values = torch.cat([v[n - q :] for v, (q, n) in zip(values, step, strict=True)])
    query = torch.randn(len(slots), heads, head_dim, device=device).to(dtype)
    qkv = torch.cat((query, new_keys, new_values), dim=1)
    return Case(cache, context, qkv, heads, keys, values)


def check(case: Case) -> None:
    accuracy = 1e-5 if case.qkv.dtype is torch.float32 else 2e-2
    got = case.attend()
    for chunk in range(len(case.context.lengths)):
        torch.testing.assert_close(
            got[case.rows(chunk)].float(), case.expected(chunk), rtol=1e-5, atol=accuracy
        )


@pytest.mark.parametrize(("heads", "dtype"), [(6, torch.float32), (2, torch.bfloat16)], ids=str)
@pytest.mark.parametrize("step", STEPS)
def test_attention_over_poisoned_pages(
    step: list[tuple[int, int]], heads: int, dtype: torch.dtype, device: torch.device
) -> None:
    check(new_case(step, device, heads=heads, dtype=dtype))


@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "page"),
    [(3, 3, 24, 3), (4, 1, 64, 16), (5, 1, 80, 16), (8, 2, 128, 16), (18, 1, 16, 1)],
)
def test_shapes_of_models(
    heads: int, kv_heads: int, head_dim: int, page: int, device: torch.device
) -> None:
    step = [(1, 1), (1, 70), (3, 67)]
    check(new_case(step, device, heads=heads, kv_heads=kv_heads, head_dim=head_dim, page=page))


def test_float16(device: torch.device) -> None:
    check(new_case([(1, 20), (5, 9)], device, dtype=torch.float16))


def test_chunks_of_several_tiles_of_queries_and_keys(device: torch.device) -> None:
    tiles = choose_tiles(8, torch.float32)
    queries = tiles.rows + 3
    step = [(queries, queries), (queries, queries + tiles.keys + 5)]
    check(new_case(step, device, heads=2, kv_heads=1))


@pytest.fixture
def short_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_backend, "SPLITS", 4)
    monkeypatch.setattr(triton_backend, "LEAST_KEYS", 8)


@pytest.mark.usefixtures("short_splits")
@pytest.mark.parametrize("programs", [1, 4, 1000])
@pytest.mark.parametrize("length", [7, 8, 9, 31, 33, 100])
def test_splits_are_merged_whoever_computes_them(
    length: int, programs: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to four splits of eight keys or more, by one, two or four programs."""
    monkeypatch.setattr(triton_backend, "PROGRAMS", programs)
    check(new_case([(1, length)], device))


@pytest.mark.usefixtures("short_splits")
def test_a_sequence_gets_the_same_bits_in_every_batch(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = new_case([(1, 30), (1, 5), (1, 90), (4, 12)], device)
    together = case.attend()
    monkeypatch.setattr(triton_backend, "PROGRAMS", 1)
    context = case.context
    for chunk in range(3):
        alone = new_context(
            [(1, context.lengths[chunk])],
            context.slots[chunk : chunk + 1],
            context.block_tables[chunk : chunk + 1],
            device,
        )
        rows = case.qkv[chunk : chunk + 1]
        single = Case(case.cache, alone, rows, case.heads, [], [])
        assert torch.equal(single.attend()[0], together[chunk])


def test_a_row_of_padding_writes_nothing_and_reads_nothing(device: torch.device) -> None:
    case = new_case([(1, 6), (1, 9)], device, left=1.0)
    before = case.cache.pages.clone()
    case.context.slots[1] = -1
    case.context.lengths_tensor[1] = 0
    case.context.block_tables[1] = 10**6
    got = case.attend()
    torch.testing.assert_close(got[:1], case.expected(0), rtol=1e-5, atol=1e-5)
    assert not got[1].any()
    changed = (case.cache.pages != before).flatten(4).any(4)  # [block, layer, side, offset]
    slot = int(case.context.slots[0])
    assert changed.nonzero().tolist() == [[slot // 4, LAYER, side, slot % 4] for side in (0, 1)]


def test_keys_and_values_stand_where_the_slots_say(device: torch.device) -> None:
    case = new_case([(1, 6), (5, 11)], device, page=3)
    case.attend()
    key, value = case.qkv[:, 6:8], case.qkv[:, 8:]
    pages = case.cache.pages[:, LAYER]
    for row, slot in enumerate(case.context.slots.tolist()):
        assert torch.equal(pages[slot // 3, 0, slot % 3], key[row])
        assert torch.equal(pages[slot // 3, 1, slot % 3], value[row])
    assert pages[:, :].isnan().any() and case.cache.pages[:, :LAYER].isnan().all()
