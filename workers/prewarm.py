"""Pairs are made before anybody asks: a decode worker makes them with prefill replicas, so that no
first request waits for a rendezvous."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from hashlib import blake2b
from typing import Protocol

from workers.transfer.receiver_pairs import ReceiverPairs
from workers.wire import common_pb2 as common
from workers.wire.redis_keys import ReplicaRecord

LOOK_S = 2.0


class Peers(Protocol):
    async def peers(self) -> list[ReplicaRecord] | None:
        """Every replica of the cluster that is up; None where nobody can tell now."""


class Prewarmer:
    """Pairs with `most` of the prefill replicas whose KV is of our kind, while this worker
    `fetches`. `gone(address)` hears of workers that are no longer there."""

    def __init__(
        self,
        registry: Peers,
        pairs: ReceiverPairs,
        me: common.ReplicaRef,
        kv_abi: str,
        *,
        most: int,
        fetches: Callable[[], bool],
        gone: Callable[[str], None],
    ) -> None:
        self._registry = registry
        self._pairs = pairs
        self._me = me
        self._kv_abi = kv_abi
        self._most = most
        self._fetches = fetches
        self._gone = gone
        self._addresses: set[str] = set()

    async def run(self) -> None:
        """Newcomers are paired with as they register. Runs as long as the worker does."""
        while True:
            await asyncio.sleep(LOOK_S)
            await self.look()

    async def look(self) -> None:
        """Once; takes no longer than a pair may. What cannot be made is left to the fallback."""
        records = await self._registry.peers()
        if records is None:
            return
        addresses = {record.address for record in records}
        for address in self._addresses - addresses:
            self._gone(address)
        self._addresses = addresses
        if self._fetches():
            await self._pairs.prewarm(self._chosen(records))

    def _chosen(self, records: Iterable[ReplicaRecord]) -> list[common.ReplicaRef]:
        """Others choose others where there are too many for all, and who comes or goes changes the
        choice of few."""
        fitting = [
            record
            for record in records
            if record.role == "prefill" and record.kv_abi == self._kv_abi
        ]
        fitting.sort(key=lambda record: _rank(self._me.id, record.id))
        return [
            common.ReplicaRef(
                id=record.id,
                incarnation=record.incarnation,
                address=record.address,
                tensor_ranks=record.tensor_ranks,
            )
            for record in fitting[: self._most]
        ]


def _rank(one: str, other: str) -> bytes:
    return blake2b(f"{one}\0{other}".encode(), digest_size=8).digest()
