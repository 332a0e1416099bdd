"""The one way we connect to Redis: fails fast, and can be cancelled."""

from __future__ import annotations

import asyncio
from typing import Any

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from workers.core.errors import ConfigError
from workers.wire.redis_keys import without_password


class RedisClient(redis.asyncio.Redis):
    """The library sends inside asyncio.wait_for, which on Python 3.11 drops a cancellation that
    comes as the send completes (CPython #86296); who cancelled us would then wait for ever."""

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        task = asyncio.current_task()
        asked = task.cancelling() if task else 0
        reply = await super().execute_command(*args, **options)
        if task and task.cancelling() > asked:
            raise asyncio.CancelledError
        return reply


def connect_redis(url: str, timeout_s: float = 2.0) -> RedisClient:
    """A client with a deadline on every answer that never retries by itself: its callers' loops do
    that. Replies are bytes. Raises ConfigError for what is no Redis URL."""
    try:
        return RedisClient.from_url(  # type: ignore[return-value]
            url,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
            protocol=2,  # one shape of replies, whatever the server's age
        )
    except ValueError:  # its text may hold a part of the password
        raise ConfigError(
            f"{without_password(url)!r} is not a Redis URL; in a password, what is not a letter or "
            "a digit must be written as %XX"
        ) from None
