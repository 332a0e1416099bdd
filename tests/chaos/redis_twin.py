"""The few Redis commands that workers and routers use, in virtual time, over the simulated network.

Above execute_command() stands the real library. Leases run out by the loop's clock, which no
ready-made double of Redis knows.
"""

from __future__ import annotations

import asyncio
import fnmatch
from typing import Any

import redis.exceptions

from tests.chaos.hosts import Host
from tests.chaos.network import Network
from workers.wire.redis_client import RedisClient

REDIS = "redis"
TIMEOUT_S = 2.0  # as connect_redis() sets it


class Store:
    """One server's memory. `up` False: connections are refused."""

    def __init__(self) -> None:
        self.up = True
        self._values: dict[bytes, bytes] = {}
        self._streams: dict[bytes, list[tuple[bytes, dict[bytes, bytes]]]] = {}
        self._hashes: dict[bytes, dict[bytes, bytes]] = {}
        self._expires: dict[bytes, float] = {}
        self._last = 0
        self._news = asyncio.Event()

    def flush(self) -> None:
        """As a restart without a file does."""
        self._values.clear()
        self._streams.clear()
        self._hashes.clear()
        self._expires.clear()

    async def run(self, command: str, args: list[bytes], options: dict[str, Any]) -> Any:
        self._expire()
        answer = getattr(self, f"_{command.lower()}")(*args)
        return await answer if asyncio.iscoroutine(answer) else answer

    def _expire(self) -> None:
        now = asyncio.get_running_loop().time()
        for key in [key for key, when in self._expires.items() if when <= now]:
            self._drop(key)

    def _drop(self, key: bytes) -> bool:
        self._expires.pop(key, None)
        kinds = (self._values, self._streams, self._hashes)
        return sum(kind.pop(key, None) is not None for kind in kinds) > 0

    def _set(self, key: bytes, value: bytes, *options: bytes) -> bool:
        self._values[key] = value
        for name, amount in zip(options[::2], options[1::2], strict=True):
            assert name == b"PX", name
            self._expires[key] = asyncio.get_running_loop().time() + int(amount) / 1000
        return True

    def _get(self, key: bytes) -> bytes | None:
        return self._values.get(key)

    def _mget(self, *keys: bytes) -> list[bytes | None]:
        return [self._values.get(key) for key in keys]

    def _expire_key(self, key: bytes, seconds: bytes) -> bool:
        if not self._exists(key):
            return False
        self._expires[key] = asyncio.get_running_loop().time() + int(seconds)
        return True

    def _exists(self, *keys: bytes) -> int:
        kinds = (self._values, self._streams, self._hashes)
        return sum(any(key in kind for kind in kinds) for key in keys)

    def _del(self, *keys: bytes) -> int:
        return sum(self._drop(key) for key in keys)

    def _scan(self, cursor: bytes, *options: bytes) -> tuple[int, list[bytes]]:
        wanted = dict(zip(options[::2], options[1::2], strict=True))
        pattern = wanted.get(b"MATCH", b"*").replace(b"[", b"[[]")
        keys = [*self._values, *self._streams, *self._hashes]
        return 0, sorted(key for key in keys if fnmatch.fnmatchcase(key, pattern))

    def _hset(self, key: bytes, *fields: bytes) -> int:
        stored = self._hashes.setdefault(key, {})
        stored.update(zip(fields[::2], fields[1::2], strict=True))
        return len(fields) // 2

    def _hmget(self, key: bytes, *names: bytes) -> list[bytes | None]:
        return [self._hashes.get(key, {}).get(name) for name in names]

    def _hgetall(self, key: bytes) -> dict[bytes, bytes]:
        return dict(self._hashes.get(key, {}))

    def _xtrim(self, key: bytes, *args: bytes) -> int:
        assert args[0] == b"MINID", args
        least = _number(args[-1])
        stream = self._streams.get(key, [])
        before = len(stream)
        stream[:] = [entry for entry in stream if _number(entry[0]) >= least]
        return before - len(stream)

    def _xadd(self, key: bytes, *args: bytes) -> bytes:
        rest = list(args)
        kept = None
        if rest[0] == b"MAXLEN":
            rest.pop(0)
            if rest[0] in (b"~", b"="):
                rest.pop(0)
            kept = int(rest.pop(0))
        assert rest.pop(0) == b"*"
        self._last += 1
        entry = b"%d-0" % self._last
        stream = self._streams.setdefault(key, [])
        stream.append((entry, dict(zip(rest[::2], rest[1::2], strict=True))))
        if kept is not None:
            del stream[:-kept]
        self._news.set()
        self._news = asyncio.Event()
        return entry

    def _xrevrange(self, key: bytes, last: bytes, first: bytes, *options: bytes) -> list[Any]:
        assert (last, first) == (b"+", b"-")
        stream = self._streams.get(key, [])[::-1]
        return stream[: int(options[1])] if options else stream

    async def _xread(self, *args: bytes) -> list[Any]:
        rest = list(args)
        count, block = None, None
        while rest[0] != b"STREAMS":
            name, amount = rest.pop(0), int(rest.pop(0))
            if name == b"COUNT":
                count = amount
            else:
                assert name == b"BLOCK"
                block = amount
        keys, places = rest[1 : 1 + len(rest) // 2], rest[1 + len(rest) // 2 :]
        after = dict(zip(keys, (_number(place) for place in places), strict=True))
        deadline = asyncio.get_running_loop().time() + (block or 0) / 1000
        while True:
            found = [[key, new] for key, seen in after.items() if (new := self._new(key, seen))]
            left = deadline - asyncio.get_running_loop().time()
            if found or left <= 1e-6:
                return [[key, entries[:count]] for key, entries in found]
            try:
                async with asyncio.timeout(left):
                    await self._news.wait()
            except TimeoutError:
                pass

    def _new(self, key: bytes, seen: int) -> list[Any]:
        return [entry for entry in self._streams.get(key, []) if _number(entry[0]) > seen]


class SimRedis(RedisClient):
    """A client of the store, as one host has it."""

    def __init__(self, network: Network, src: Host, store: Store) -> None:
        super().__init__(driver_info=None)
        self._network = network
        self._src = src
        self._store = store

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        name = {"EXPIRE": "expire_key"}.get(args[0], args[0])
        packed = [_bytes(arg) for arg in args[1:]]
        delay = self._network.delay_s(self._src.name, REDIS)
        if delay >= TIMEOUT_S:
            await asyncio.sleep(TIMEOUT_S)
            raise redis.exceptions.TimeoutError("Timeout reading from redis")
        await asyncio.sleep(delay)
        if not self._store.up:
            raise redis.exceptions.ConnectionError("Connection refused")
        answer = await self._store.run(name, packed, options)
        await asyncio.sleep(self._network.delay_s(self._src.name, REDIS) / 2)
        if self._network.cut_until(self._src.name, REDIS) > asyncio.get_running_loop().time():
            raise redis.exceptions.TimeoutError("Timeout reading from redis")
        return answer


def _bytes(arg: Any) -> bytes:
    return arg if isinstance(arg, bytes) else str(arg).encode()


def _number(entry: bytes) -> int:
    return int(entry.partition(b"-")[0])
