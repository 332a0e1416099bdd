"""Routers that tell each other what they gave to whom, over a real Redis that breaks."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace

from router.dispatch import Dispatcher
from router.latency import FittedLatency
from router.metrics import RouterMetrics
from router.placement.placement import Placement
from router.pool import Pool
from router.sharing.blocks import ToldIndex
from router.sharing.channel import Channel
from router.sharing.peers import SILENT_S
from router.sharing.sharing import Sharing
from tests.redis_server import RedisServer
from tests.router.caching import Proxy
from tests.router.fleet import LIMITS, SHAPE, Fleet, request, until
from workers.core.clock import SystemClock
from workers.wire.redis_client import connect_redis


@dataclass
class Side:
    """One router's inside, with or without Sharing."""

    pool: Pool
    dispatcher: Dispatcher
    sharing: Sharing | None

    def told(self, name: str) -> int:
        """Sequences that other routers say they gave to it."""
        return self.pool.get(name).foreign.told.seqs

    async def answer(self, number: int = 0) -> int:
        """Tokens of one request, from its start to its end; no two numbers share a prefix."""
        tokens = tuple(range(1 + number, 201 + number))
        asked = replace(request(), token_ids=tokens, prompt_len=len(tokens))
        emissions = [emission async for emission in self.dispatcher.run(asked)]
        return sum(len(emission.tokens) for emission in emissions)


@asynccontextmanager
async def sides(fleet: Fleet, *urls: str | None) -> AsyncIterator[list[Side]]:
    """Routers that know the same workers; each with a way to Redis of its own, or none."""
    async with AsyncExitStack() as parts:
        made = []
        for seed, url in enumerate(urls):
            metrics, clock = RouterMetrics(), SystemClock()
            index, latency = ToldIndex(clock), FittedLatency(SHAPE)
            placement = Placement(latency, random.Random(seed))
            sharing = None
            if url is not None:
                client = await parts.enter_async_context(connect_redis(url, timeout_s=0.5))
                sharing = Sharing(Channel(client, "test"), clock, index)
            listeners = [sharing] if sharing is not None else []
            pool = await parts.enter_async_context(Pool(LIMITS.worker_silence_s, listeners))
            dispatcher = Dispatcher(pool, placement, index, latency, LIMITS, clock, metrics)
            await parts.enter_async_context(dispatcher)
            if sharing is not None:
                task = asyncio.create_task(sharing.run())
                parts.push_async_callback(asyncio.wait, [task])
                parts.callback(task.cancel)
            pool.sync(fleet.records())
            made.append(Side(pool, dispatcher, sharing))
        for side in made:
            await until(lambda side=side: all(one.up for one in side.pool))
        yield made


@asynccontextmanager
async def workers(prefill: int) -> AsyncIterator[Fleet]:
    fleet = Fleet()
    try:
        for number in range(prefill):
            await fleet.add(f"prefill-{number}", "prefill")
        await fleet.add("decode-0", "decode")
        yield fleet
    finally:
        await fleet.close()


async def _burst(fleet: Fleet, pair: list[Side]) -> int:
    """As many requests as prefill workers, to both routers in turn, each as soon as the router
    knows the one before. Returns the most that one worker got."""
    fakes = [one for one in fleet.workers.values() if one.role == "prefill"]
    for one in fakes:
        one.gate.clear()
        one.script.extend(["gate before"] * len(fakes))
        one.calls.clear()
    tasks = []
    for number in range(len(fakes)):
        side, other = pair[number % 2], pair[1 - number % 2]
        tasks.append(asyncio.create_task(side.answer(number)))
        await until(lambda number=number: sum(len(one.calls) for one in fakes) == number + 1)
        if other.sharing is not None:
            given = sum(one.assignments.seqs for one in side.pool)
            await until(
                lambda other=other, given=given: (
                    sum(other.told(one.id) for one in other.pool) == given
                )
            )
    most = max(len(one.calls) for one in fakes)
    for one in fakes:
        one.script.clear()
        one.gate.set()
    assert all(await asyncio.gather(*tasks))
    await fleet.quiet()
    return most


async def test_two_routers_spread_a_burst_only_if_they_tell(redis: RedisServer) -> None:
    async with workers(8) as fleet:
        async with sides(fleet, redis.url, redis.url) as pair:
            assert await _burst(fleet, pair) == 1
        async with sides(fleet, None, None) as pair:
            assert await _burst(fleet, pair) > 1


async def test_redis_flushed_killed_and_back(redis: RedisServer) -> None:
    async with workers(2) as fleet, sides(fleet, redis.url, redis.url) as (one, other):
        await until(lambda: len(one.sharing.peers) == len(other.sharing.peers) == 1)
        async with connect_redis(redis.url) as client:
            await client.flushall()
        with one.pool.get("prefill-0").assigned(100, 100):
            await until(lambda: other.told("prefill-0") == 1)
            [found] = other.sharing.others()
            assert (found.id, found.seqs) == (one.sharing.id, 1) and found.heard_s < SILENT_S
            redis.stop()
            assert await one.answer() and await other.answer()
            await until(lambda: not len(other.sharing.peers))
            assert other.told("prefill-0") == 0
            assert other.pool.get("prefill-0").num_seqs == 0, "as its worker reports"
            assert await one.answer() and await other.answer()
            redis.start()
            await until(lambda: other.told("prefill-0") == 1)
        await until(lambda: other.told("prefill-0") == 0)


async def test_a_slow_or_cut_way_to_redis_delays_no_request(redis: RedisServer) -> None:
    async with (
        workers(2) as fleet,
        Proxy(redis.port) as proxy,
        sides(fleet, redis.url, proxy.url) as (one, other),
    ):
        await until(lambda: len(one.sharing.peers) == len(other.sharing.peers) == 1)
        proxy.delay_s = 0.3
        with one.pool.get("prefill-0").assigned(100, 100):
            assert await one.answer() and await other.answer()
            await until(lambda: other.told("prefill-0") == 1)  # late, but so it is
        proxy.cut()
        assert await one.answer() and await other.answer()
        await until(lambda: not len(one.sharing.peers) and not len(other.sharing.peers))
        assert await one.answer() and await other.answer()
        proxy.delay_s = 0.0
        proxy.join()
        await until(lambda: len(one.sharing.peers) == len(other.sharing.peers) == 1)
