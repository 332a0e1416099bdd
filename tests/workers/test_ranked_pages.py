"""Pages of several ranks look like those of one: whole blocks in one layout, whoever holds what."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from tests.ranks import run_ranks
from workers.attention.kv_cache import KVCache, KVShape
from workers.parallel.channel import QueueSender
from workers.parallel.group import Ranks
from workers.parallel.layout import Layout
from workers.parallel.pages import FollowerPages, HeadShares, RankedPages
from workers.parallel.steps import Steps

CPU = torch.device("cpu")
BLOCKS = 7  # of a shard
WAIT_S = 20.0
LAYOUTS = [Layout(2, 1), Layout(4, 1), Layout(2, 4), Layout(4, 2), Layout(1, 4), Layout(8, 1)]
SHAPES = {
    "four heads": KVShape(3, 4, 8, 4, torch.float32),
    "two heads": KVShape(2, 2, 8, 4, torch.bfloat16),
    "one head": KVShape(2, 1, 8, 4, torch.float32),
    "latent": KVShape(3, 1, 24, 4, torch.bfloat16, sides=1),
}
each_layout = pytest.mark.parametrize(
    "layout", LAYOUTS, ids=lambda at: f"tp{at.tensor}-ep{at.experts}"
)
each_shape = pytest.mark.parametrize("name", SHAPES)


def random_caches(layout: Layout, shape: KVShape) -> list[KVCache]:
    """Whole pages of each shard, as a single rank would hold them."""
    caches = [KVCache(shape, BLOCKS, CPU) for _ in range(layout.shards)]
    for seed, cache in enumerate(caches):
        cache.pages.copy_(torch.randn(cache.pages.shape, generator=torch.manual_seed(seed)))
    return caches


def bytes_of(cache: KVCache, blocks: list[int]) -> torch.Tensor:
    staging = cache.new_staging(len(blocks) * cache.block_bytes)
    cache.gather(blocks, staging)
    return staging


def on_ranks(
    layout: Layout,
    shape: KVShape,
    lead: Callable[[RankedPages], None],
    told: int,
    full: list[KVCache] | None = None,
) -> list[KVCache]:
    """`lead` on rank 0 while followers answer `told` messages. Each rank's cache holds its heads of
    its shard's `full` pages, else zeros."""
    shares = HeadShares(layout, shape.kv_heads)
    channel = QueueSender(layout.world - 1)
    steps = [Steps() for _ in range(layout.world)]

    def work(ranks: Ranks) -> KVCache:
        rank = ranks.world.rank
        span = shares.of(rank)
        with torch.inference_mode(False):  # as a worker makes it: any thread may write to it
            own = KVCache(replace(shape, kv_heads=span.size), BLOCKS, CPU)
        if full is not None:
            own.pages.copy_(full[rank // layout.tensor].pages[..., span.part, :])
        if rank == 0:
            lead(RankedPages(own, shares, channel, ranks.world, steps[0]))
            return own
        pages = FollowerPages(own, shares, rank, ranks.world, steps[rank])
        for _ in range(told):
            message = channel.receivers[rank - 1].recv(WAIT_S)
            assert message is not None
            pages.answer(message)
        return own

    return run_ranks(layout.world, work)


@each_shape
@each_layout
def test_a_gather_gives_the_bytes_of_a_single_rank(layout: Layout, name: str) -> None:
    shape, blocks = SHAPES[name], [5, 0, 3]
    full = random_caches(layout, shape)
    shares = HeadShares(layout, shape.kv_heads)
    told = sum(shares.sources(shard) != [0] for shard in range(layout.shards))

    def lead(pages: RankedPages) -> None:
        assert (pages.num_blocks, pages.block_bytes) == (
            BLOCKS * layout.shards,
            full[0].block_bytes,
        )
        for shard, cache in enumerate(full):
            expected = bytes_of(cache, blocks)
            staging = pages.new_staging(len(expected) + 5)  # longer than what is gathered
            staging.fill_(255)
            pages.gather([shard * BLOCKS + block for block in blocks], staging)
            assert torch.equal(staging[: len(expected)], expected), f"shard {shard}"
            assert (staging[len(expected) :] == 255).all()

    on_ranks(layout, shape, lead, told, full)


@each_shape
@each_layout
def test_a_scatter_reaches_the_ranks_of_its_shard_alone(layout: Layout, name: str) -> None:
    shape = SHAPES[name]
    shard = layout.shards - 1
    data = bytes_of(random_caches(layout, shape)[shard], [6, 1])
    written = KVCache(shape, BLOCKS, CPU)
    written.scatter(data, [2, 4])

    blocks = [shard * BLOCKS + block for block in (2, 4)]
    caches = on_ranks(layout, shape, lambda pages: pages.scatter(data, blocks), 1)
    shares = HeadShares(layout, shape.kv_heads)
    for rank, cache in enumerate(caches):
        expected = written.pages[..., shares.of(rank).part, :]
        if rank not in shares.holders(shard):
            expected = torch.zeros_like(expected)
        assert torch.equal(cache.pages, expected), rank


def test_each_head_is_asked_for_once() -> None:
    """Heads that several ranks hold come from the first."""
    assert HeadShares(Layout(4, 1), 2).sources(0) == [0, 2]
    assert HeadShares(Layout(2, 4), 2).sources(1) == [2, 3]
    assert HeadShares(Layout(4, 1), 1).sources(0) == [0]
    assert HeadShares(Layout(1, 4), 8).sources(3) == [3]
    assert HeadShares(Layout(4, 2), 8).sources(0) == [0, 1, 2, 3]


def test_copies_of_many_threads_do_not_mix() -> None:
    layout, shape = Layout(2, 4), SHAPES["four heads"]
    full = random_caches(layout, shape)
    faults: list[str] = []
    rounds, threads = 15, 4

    def copy(pages: RankedPages, own: int) -> None:
        draw, scatters = random.Random(own), own == 0
        for _ in range(rounds):
            shard = draw.randrange(layout.shards)
            blocks = draw.sample(range(BLOCKS), k=draw.randint(1, BLOCKS))
            ids = [shard * BLOCKS + block for block in blocks]
            expected = bytes_of(full[shard], blocks)
            staging = expected.clone()
            if scatters:
                pages.scatter(staging, ids)  # what is there already
            else:
                staging.zero_()
                pages.gather(ids, staging)
            if not torch.equal(staging, expected):
                faults.append(f"{own}: {ids}")

    def lead(pages: RankedPages) -> None:
        running = [threading.Thread(target=copy, args=(pages, own)) for own in range(threads)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()

    on_ranks(layout, shape, lead, rounds * threads, full)
    assert not faults


def test_some_heads_are_copied_as_the_pages_have_them() -> None:
    for shape in SHAPES.values():
        cache = random_caches(Layout(1, 1), shape)[0]
        blocks, part = [5, 0, 3], slice(shape.kv_heads // 2, shape.kv_heads)
        expected = cache.pages[blocks][..., part, :]
        staging = cache.new_staging(expected.numel() * shape.dtype.itemsize)
        cache.gather(blocks, staging, part)
        assert torch.equal(staging.view(shape.dtype), expected.flatten())

        other = KVCache(shape, BLOCKS, CPU)
        other.scatter(staging, [1, 6, 2], part)
        assert torch.equal(other.pages[[1, 6, 2]][..., part, :], expected)
        other.pages[[1, 6, 2], ..., part, :] = 0
        assert not other.pages.any(), "nothing else was written"
