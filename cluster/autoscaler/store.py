"""What planners keep in Redis: who leads, the plan, and what one that comes after should know."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pydantic import ValidationError
from redis.exceptions import RedisError

from cluster.autoscaler.published import ByHand, Published, parse_by_hand
from cluster.planner.cold_start import KEPT as STARTS_KEPT
from cluster.planner.forecast import COARSE
from workers.core.errors import Unavailable
from workers.wire.redis_client import RedisClient
from workers.wire.redis_keys import plan_key, planner_key, scale_key

LEASE_S = 10.0

_RENEW = """
local holder = redis.call('get', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('set', KEYS[1], ARGV[1], 'px', ARGV[2])
return 1
"""
_RESIGN = """
if redis.call('get', KEYS[1]) == ARGV[1] then redis.call('del', KEYS[1]) end
"""
_PUBLISH = """
if redis.call('get', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('set', KEYS[2], ARGV[2])
if ARGV[3] == 'apply' then redis.call('del', KEYS[3]) end
return 1
"""


class Store:
    """`me`: one name for each planner that ever ran; `metrics`: where its own are. All calls raise
    Unavailable."""

    def __init__(self, client: RedisClient, cluster: str, me: str, metrics: str = "") -> None:
        self.me = me
        self.metrics = metrics
        self._client: Any = client  # its stubs know no scripts
        self._plan = plan_key(cluster)
        self._scale = scale_key(cluster)
        self._lease = planner_key(cluster, "lease")
        self._past = planner_key(cluster, "past")
        self._starts = planner_key(cluster, "starts")

    async def lead(self) -> bool:
        """Takes or renews the lease; False while another planner has it."""
        with _asked():
            lease_ms = int(LEASE_S * 1000)
            return bool(await self._client.eval(_RENEW, 1, self._lease, self.me, lease_ms))

    async def resign(self) -> None:
        with _asked():
            await self._client.eval(_RESIGN, 1, self._lease, self.me)

    async def publish(self, plan: Published) -> bool:
        """False where the lease is another's: then nothing is written. What was asked for by hand
        is over with a plan that is to be applied."""
        keys, text = (self._lease, self._plan, self._scale), plan.model_dump_json()
        with _asked():
            return bool(await self._client.eval(_PUBLISH, 3, *keys, self.me, text, plan.mode))

    async def read(self) -> tuple[Published | None, dict[str, ByHand]]:
        """The plan that stands there, and what people asked for."""
        with _asked():
            text = await self._client.get(self._plan)
            by_hand = await self._client.hgetall(self._scale)
            plan = None if text is None else Published.model_validate_json(text)
            return plan, parse_by_hand(by_hand)

    async def remember_rate(self, at: float, rate: float) -> None:
        """The newest of those that past() gives, as many as forecasts look back on."""
        with _asked():
            await self._client.rpush(self._past, f"{at:.0f} {rate:.6g}")
            await self._client.ltrim(self._past, -COARSE, -1)

    async def past(self) -> list[tuple[float, float]]:
        """(seconds since 1970, requests a second), oldest first."""
        with _asked():
            rows = await self._client.lrange(self._past, 0, -1)
            pairs = [row.split() for row in rows]
            return sorted((float(at), float(rate)) for at, rate in pairs)

    async def remember_starts(self, pool: str, took_s: Sequence[float]) -> None:
        with _asked():
            known = json.loads(await self._client.hget(self._starts, pool) or "[]")
            kept = [*known, *took_s][-STARTS_KEPT:]
            await self._client.hset(self._starts, pool, json.dumps(kept))

    async def starts(self) -> dict[str, list[float]]:
        """How long replicas took to be there, by pool, the newest last."""
        with _asked():
            found = await self._client.hgetall(self._starts)
            return {pool.decode(): json.loads(text) for pool, text in found.items()}


@contextmanager
def _asked() -> Iterator[None]:
    """What cannot be read is as good as away: somebody else writes under our keys."""
    try:
        yield
    except (RedisError, OSError, ValidationError, ValueError) as error:
        raise Unavailable(f"Redis is away: {error}") from None
