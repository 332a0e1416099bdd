"""A cancelled call to Redis stays cancelled, wherever in it the cancellation comes."""

from __future__ import annotations

import asyncio

from tests.redis_server import redis_server
from workers.wire.redis_client import connect_redis


async def test_no_cancellation_is_lost() -> None:
    async def call(url: str) -> None:
        async with connect_redis(url) as client:
            await client.set("k", b"v")
            await client.get("k")

    with redis_server() as server:
        steps, cancelled = 0, True
        while cancelled:
            task = asyncio.create_task(call(server.url))
            for _ in range(steps):
                await asyncio.sleep(0)
            cancelled = task.cancel()
            await asyncio.wait({task}, timeout=10)
            assert task.cancelled() is cancelled, f"lost when it came after {steps} steps"
            steps += 1


async def test_who_was_cancelled_before_can_still_call() -> None:
    with redis_server() as server:
        async with connect_redis(server.url) as client:

            async def last_words() -> None:
                try:
                    await asyncio.sleep(60)
                finally:
                    await client.set("k", b"v")

            task = asyncio.create_task(last_words())
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait({task}, timeout=10)
            assert task.cancelled()
            assert await client.get("k") == b"v"
