"""Pages and the torch backend, against attention written out by hand."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate

import pytest
import torch

from workers.attention.backend import AttentionBackend
from workers.attention.compiled_backend import CompiledBackend
from workers.attention.context import ForwardContext
from workers.attention.kv_cache import KVCache, KVShape
from workers.attention.torch_backend import (
    Scratch,
    TorchBackend,
    attention_groups,
    foreign_rows,
)
from workers.kernels.library import level, load_library

CPU = torch.device("cpu")
SHAPE = KVShape(layers=3, kv_heads=2, head_dim=8, block_size=4, dtype=torch.float32)


def new_cache(num_blocks: int = 12) -> KVCache:
    cache = KVCache(SHAPE, num_blocks, CPU)
    cache.pages.normal_(generator=torch.Generator().manual_seed(0))
    return cache


def test_a_block_is_one_run_of_bytes() -> None:
    cache = new_cache()
    assert cache.block_bytes == 3 * 2 * 4 * 2 * 8 * 4 == cache.pages[0].numel() * 4
    staging = cache.new_staging(3 * cache.block_bytes)
    cache.gather([7, 2], staging)
    assert cache.to_bytes(staging, cache.block_bytes) == cache.pages[7].numpy().tobytes()


def test_pages_move_to_another_cache_unchanged() -> None:
    source, target = new_cache(), KVCache(SHAPE, 5, CPU)
    staging = source.new_staging(4 * source.block_bytes)  # larger than what is moved
    source.gather([11, 0, 5], staging)
    arrived = target.from_bytes(source.to_bytes(staging, 3 * source.block_bytes))
    target.scatter(arrived, [1, 4, 2])
    assert torch.equal(target.pages[[1, 4, 2]], source.pages[[11, 0, 5]])
    assert not target.pages[[0, 3]].any()


def test_staging_too_small_is_our_bug() -> None:
    cache = new_cache()
    with pytest.raises(AssertionError, match="staging"):
        cache.gather([1, 2], cache.new_staging(cache.block_bytes))


def test_write_puts_each_token_where_its_slot_says() -> None:
    cache = new_cache()
    before = cache.pages.clone()
    slots = torch.tensor([9 * 4 + 3, 2 * 4, 2 * 4 + 1])
    key, value = torch.randn(3, 2, 8), torch.randn(3, 2, 8)
    cache.write(1, cache.token_rows(slots), key, value)
    for row, (block, offset) in enumerate([(9, 3), (2, 0), (2, 1)]):
        assert torch.equal(cache.pages[block, 1, 0, offset], key[row])
        assert torch.equal(cache.pages[block, 1, 1, offset], value[row])
        before[block, 1, :, offset] = cache.pages[block, 1, :, offset]
    assert torch.equal(cache.pages, before)  # nothing else has changed


def by_hand(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """The last tokens of one sequence attend causally. [Q, H, D], [K, G, D] -> [Q, H, D]."""
    group = query.shape[1] // keys.shape[1]
    keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
    scores = torch.einsum("qhd,khd->hqk", query, keys) / query.shape[-1] ** 0.5
    last = torch.arange(len(keys) - len(query), len(keys))
    scores.masked_fill_(torch.arange(len(keys)) > last[:, None], float("-inf"))
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), values)


def new_context(
    step: list[tuple[int, int]], slots: torch.Tensor, block_tables: torch.Tensor
) -> ForwardContext:
    none = torch.tensor([], dtype=torch.int64)
    starts = (0, *accumulate(queries for queries, _ in step))
    lengths = tuple(length for _, length in step)
    return ForwardContext(
        token_ids=none,
        positions=none,
        slots=slots,
        block_tables=block_tables,
        starts=starts,
        lengths=lengths,
        sample_rows=none,
        starts_tensor=torch.tensor(starts, dtype=torch.int32),
        lengths_tensor=torch.tensor(lengths, dtype=torch.int32),
    )


# (queries, length) of each chunk: decodes, whole prompts, later chunks, and all of them at once.
STEPS = [
    [(1, 1)],
    [(1, 9)],
    [(1, 8), (1, 8)],
    [(1, 3), (1, 12), (1, 1)],
    [(7, 7)],
    [(5, 11)],
    [(1, 6), (1, 10), (6, 6), (3, 9), (1, 5), (2, 8)],
    # More than the compiled ones take at once: a split of a decode, a tile of queries or of keys.
    [(1, 255), (1, 256), (1, 600), (130, 130), (40, 333)],
]
BACKENDS: dict[str, Callable[[KVCache], AttentionBackend]] = {
    "torch": TorchBackend,
    "compiled": CompiledBackend,
    "compiled decodes": lambda cache: CompiledBackend(cache, TorchBackend(cache)),
}


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Callable[[KVCache], AttentionBackend]:
    if request.param != "torch" and not load_library():
        assert shutil.which("g++") is None or level() is None, "make install has not built it"
        pytest.skip("no compiler, or not an x86 CPU with AVX2")
    return BACKENDS[request.param]


@pytest.mark.parametrize("left", [0.0, float("nan")], ids=["clean", "poisoned"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("heads", [2, 6])
@pytest.mark.parametrize("step", STEPS)
def test_attention_over_pages(
    step: list[tuple[int, int]],
    heads: int,
    dtype: torch.dtype,
    left: float,
    backend: Callable[[KVCache], AttentionBackend],
) -> None:
    """`left`: what stands wherever these sequences have not written."""
    torch.manual_seed(len(step))
    shape = replace(SHAPE, dtype=dtype, head_dim=32)
    cache = KVCache(shape, 420, CPU)
    cache.pages.fill_(left)
    accuracy = 1e-5 if dtype is torch.float32 else 2e-2
    free = random.Random(1).sample(range(420), 420)
    tables = [[free.pop() for _ in range(-(-length // 4))] for _, length in step]
    history = [tuple(torch.randn(2, length, 2, 32).to(dtype)) for _, length in step]
    for table, (keys, values) in zip(tables, history, strict=True):
        slots = torch.tensor([table[i // 4] * 4 + i % 4 for i in range(len(keys))])
        cache.write(2, cache.token_rows(slots), keys, values)

    slots = [
        table[i // 4] * 4 + i % 4
        for table, (queries, length) in zip(tables, step, strict=True)
        for i in range(length - queries, length)
    ]
    context = new_context(
        step,
        torch.tensor(slots),
        torch.tensor([table + table[:1] * (150 - len(table)) for table in tables]).int(),
    )
    starts = context.starts
    query = torch.randn(starts[-1], heads, 32).to(dtype)
    new = [(k[n - q :], v[n - q :]) for (q, n), (k, v) in zip(step, history, strict=True)]
    plan = backend(cache).plan(context)
    got = plan.attend(2, query, torch.cat([k for k, _ in new]), torch.cat([v for _, v in new]))

    for i, (keys, values) in enumerate(history):
        rows = slice(starts[i], starts[i + 1])
        expected = by_hand(query[rows].float(), keys.float(), values.float())
        torch.testing.assert_close(got[rows].float(), expected, rtol=1e-5, atol=accuracy)


def test_rows_that_a_sequence_never_wrote() -> None:
    # two tokens: their page and a copy of it; five: a rest of three; eight: none
    assert foreign_rows([2, 5, 8], pages=2, block_size=4).tolist() == [2, 3, 6, 7, 13, 14, 15]
    # padding repeats a full page
    assert foreign_rows([4, 12], pages=3, block_size=4).tolist() == []


def test_scratch_is_kept_and_grows_by_half_at_least() -> None:
    scratch = Scratch(CPU)
    first = scratch.take("keys", (10, 10), torch.float32)
    assert scratch.take("keys", (5, 3), torch.float32).data_ptr() == first.data_ptr()
    grown = scratch.take("keys", (101,), torch.float32)
    assert scratch.take("keys", (150,), torch.float32).data_ptr() == grown.data_ptr()


@pytest.mark.parametrize(
    ("step", "sizes"),
    [
        ([(1, 10)] * 8, [8]),
        ([(1, 10), (1, 15), (1, 20)], [3]),
        ([(1, 10), (1, 10), (1, 1000)], [2, 1]),  # 3,000 keys read for 1,020
        ([(1, 10), (1, 12), (5, 5), (5, 11), (1, 10)], [2, 1, 1, 1]),
    ],
)
def test_decodes_of_similar_length_attend_together(
    step: list[tuple[int, int]], sizes: list[int]
) -> None:
    none = torch.tensor([], dtype=torch.int64)
    groups = attention_groups(new_context(step, none, none))
    assert [len(group) for group in groups] == sizes
    assert [i for group in groups for i in group] == list(range(len(step)))
