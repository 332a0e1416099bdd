"""Whom a decode worker pairs with before anybody asks, and which channels it keeps."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import grpc.aio
import pytest

from workers import peer_client
from workers.core.clock import VirtualClock, run_virtual
from workers.core.errors import TransferError
from workers.peer_client import GrpcPeers
from workers.prewarm import Prewarmer
from workers.wire import common_pb2 as common
from workers.wire import worker_pb2_grpc
from workers.wire.redis_keys import ReplicaRecord


def record(name: str, role: str = "prefill", kv_abi: str = "abi", **more: Any) -> ReplicaRecord:
    fields: dict[str, Any] = {
        "incarnation": "1",
        "address": f"{name}:1",
        "pool": role,
        "model": "m",
        "block_size": 4,
        "context_length": 64,
        "kv_tokens": 64,
    }
    return ReplicaRecord.model_validate(
        {"id": name, "role": role, "kv_abi": kv_abi} | fields | more
    )


class Registry:
    def __init__(self, *records: ReplicaRecord) -> None:
        self.records: list[ReplicaRecord] | None = list(records)

    async def peers(self) -> list[ReplicaRecord] | None:
        return self.records


class Pairs:
    """ReceiverPairs as the prewarmer sees them."""

    def __init__(self) -> None:
        self.asked: list[list[common.ReplicaRef]] = []

    async def prewarm(self, senders: Iterable[common.ReplicaRef]) -> int:
        self.asked.append(list(senders))
        return len(self.asked[-1])


def prewarmer(
    registry: Registry, pairs: Any, gone: list[str], me: str = "d0", most: int = 2, role: str = "d"
) -> Prewarmer:
    return Prewarmer(
        registry,
        pairs,
        common.ReplicaRef(id=me),
        "abi",
        most=most,
        fetches=lambda: role == "d",
        gone=gone.append,
    )


async def chosen(registry: Registry, **how: Any) -> list[str]:
    pairs = Pairs()
    await prewarmer(registry, pairs, [], **how).look()
    return sorted(ref.id for ref in pairs.asked[0]) if pairs.asked else []


async def test_prefill_replicas_of_the_same_kv_at_most_so_many() -> None:
    registry = Registry(
        record("p0", tensor_ranks=2),
        record("other", kv_abi="another"),
        record("d1", role="decode"),
        record("a0", role="aggregated"),
    )
    pairs = Pairs()
    await prewarmer(registry, pairs, []).look()
    [[ref]] = pairs.asked
    assert (ref.id, ref.incarnation, ref.address, ref.tensor_ranks) == ("p0", "1", "p0:1", 2)
    many = Registry(*(record(f"p{i}") for i in range(10)))
    assert len(await chosen(many, most=3)) == 3
    assert await chosen(many, most=0) == []
    assert await chosen(many, role="p") == [], "a prefill worker fetches nothing"


async def test_decode_workers_spread_over_prefill_workers_and_stay_with_them() -> None:
    everyone = [record(f"p{i}") for i in range(8)]
    names = [f"d{i}" for i in range(16)]
    before = {me: await chosen(Registry(*everyone), me=me) for me in names}
    assert {name for group in before.values() for name in group} == {f"p{i}" for i in range(8)}
    after = {me: await chosen(Registry(*everyone[1:]), me=me) for me in names}
    for me in names:
        kept = [name for name in before[me] if name != "p0"]
        assert set(kept) <= set(after[me]), "who leaves changes the choice of nobody else"


def test_newcomers_are_seen_and_who_is_gone_is_told() -> None:
    async def scene() -> None:
        registry, pairs, gone = Registry(record("p0")), Pairs(), list[str]()
        made = prewarmer(registry, pairs, gone)
        await made.look()
        running = asyncio.create_task(made.run())
        registry.records = None  # Redis is away: nobody is gone for that
        await asyncio.sleep(5.0)
        assert len(pairs.asked) == 1 and not gone
        registry.records = [record("p1")]
        await asyncio.sleep(2.5)
        assert [ref.id for ref in pairs.asked[-1]] == ["p1"] and gone == ["p0:1"]
        running.cancel()

    run_virtual(scene())


class Channels:
    """grpc.aio.insecure_channel, counted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open: list[str] = []
        monkeypatch.setattr(grpc.aio, "insecure_channel", self._make)
        monkeypatch.setattr(worker_pb2_grpc, "WorkerStub", lambda channel: channel)

    def _make(self, address: str, options: object) -> Any:
        channels = self

        class Channel:
            async def close(self) -> None:
                channels.open.remove(address)

        self.open.append(address)
        return Channel()


def test_channels_that_nobody_uses_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        channels = Channels(monkeypatch)
        peers = GrpcPeers(VirtualClock())
        tending = asyncio.create_task(peers.tend())
        with peers.stub("busy"):
            for address in ("a", "b", "a"):
                with peers.stub(address):
                    pass
            assert channels.open == ["busy", "a", "b"]
            peers.gone("b")
            peers.gone("busy")
            await asyncio.sleep(3.0)
            assert channels.open == ["busy", "a"], "whoever it is, a call under way is not cut"
            await asyncio.sleep(peer_client.IDLE_S)
            assert channels.open == ["busy"]
        await asyncio.sleep(peer_client.IDLE_S + 3.0)
        assert channels.open == []
        tending.cancel()
        with peers.stub("c"):
            pass
        await peers.close()
        assert channels.open == []

    run_virtual(scene())


def test_tickets_that_name_ever_new_peers_do_not_fill_the_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scene() -> None:
        channels = Channels(monkeypatch)
        peers = GrpcPeers(VirtualClock())
        tending = asyncio.create_task(peers.tend())
        for i in range(1000):
            with peers.stub(str(i)):
                await asyncio.sleep(0.1)
            assert len(channels.open) <= peer_client.MAX_CHANNELS + 30, "some wait to be closed"
        tending.cancel()
        busy = [peers.stub(f"busy {i}") for i in range(peer_client.MAX_CHANNELS)]
        for call in busy:
            call.__enter__()
        with pytest.raises(TransferError, match="no room"), peers.stub("one more"):
            pass
        for call in busy:
            call.__exit__(None, None, None)

    run_virtual(scene())
