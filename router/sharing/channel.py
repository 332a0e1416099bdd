"""A Redis channel that all routers of a cluster speak and listen on.

Pub/sub and not a stream: what was said a second ago is worth nothing, so nothing is to be kept,
trimmed or read again. Plain and not sharded: a Redis Cluster carries it to every node, so it does
not matter which one a router is connected to; a few dozen small messages a second are not worth a
shard, and servers before 7.0 have none.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from redis.exceptions import RedisError

from workers.core.errors import Unavailable
from workers.wire.redis_client import RedisClient
from workers.wire.redis_keys import loads_channel


class ChannelLost(Unavailable):
    """Redis is away, or does not answer in time."""


class Channel:
    """Both ways at once. What is said comes back to who said it, too."""

    def __init__(self, client: RedisClient, cluster: str) -> None:
        self._client = client
        self._name = loads_channel(cluster)

    async def say(self, message: bytes) -> None:
        """To all who listen now. Raises ChannelLost: nobody knows whether they heard it."""
        try:
            await self._client.publish(self._name, message)
        except (RedisError, OSError) as error:
            raise ChannelLost(str(error)) from None

    async def listen(self, silence_s: float) -> AsyncGenerator[bytes]:
        """What is said from a moment after the first step on. Raises ChannelLost when the line
        breaks, or nothing came for `silence_s`."""
        task = asyncio.current_task()
        asked = task.cancelling() if task else 0
        try:
            async with aclosing(self._client.pubsub(ignore_subscribe_messages=True)) as line:
                await line.subscribe(self._name)
                if task and task.cancelling() > asked:
                    raise asyncio.CancelledError  # which the library may drop: see RedisClient
                while True:
                    async with asyncio.timeout(silence_s):
                        while (message := await line.get_message(timeout=None)) is None:
                            pass
                    yield message["data"]
        except (RedisError, OSError) as error:
            raise ChannelLost(str(error) or f"silent for {silence_s:g} s") from None
