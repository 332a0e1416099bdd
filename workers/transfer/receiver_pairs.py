"""The receiving side's pairs: one with each sender, made in the background when first wanted, and
made anew when it has failed and its quarantine is over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Protocol

from workers.core.clock import Clock
from workers.core.errors import TicketError, TransferError
from workers.core.lanes import lanes
from workers.transfer.link import RECEIVER, Transport
from workers.transfer.pair import Pair
from workers.transfer.port import Ports
from workers.transfer.quarantine import Quarantine
from workers.wire import common_pb2 as common
from workers.wire import worker_pb2 as worker

FORM_S = 0.25  # what a fetch waits for a pair that is being made, before it goes inline

Key = tuple[str, str, int, int]  # sender id, incarnation, its shard, our shard


class Peer(Protocol):
    """Another worker as fetches see it. Errors come as TicketError or TransferError."""

    async def connect(self, request: worker.ConnectRequest) -> worker.ConnectResponse: ...

    def fetch(
        self, requests: AsyncIterator[worker.FetchRequest]
    ) -> AsyncIterator[worker.FetchResponse]:
        """The end of `requests` is told to the sender, whose responses may go on."""


class ReceiverPairs:
    """`transports`: best first; the first that reaches the sender, and that it has too, is taken.
    At most `max_pairs`, but for those in use: then the least recently used make room."""

    def __init__(
        self,
        ports: Ports,
        transports: Sequence[Transport],
        me: common.ReplicaRef,
        kv_abi: str,
        clock: Clock,
        peer_at: Callable[[str], Peer],
        *,
        slot_bytes: int,
        slots: int,
        max_pairs: int,
        connect_timeout_s: float,
        chunk_timeout_s: float,
    ) -> None:
        self._ports = ports
        self._transports = transports
        self._me = me
        self._kv_abi = kv_abi
        self._peer_at = peer_at
        self._slot_bytes = slot_bytes
        self._slots = slots
        self._max_pairs = max_pairs
        self._connect_timeout_s = connect_timeout_s
        self._chunk_timeout_s = chunk_timeout_s
        self._quarantine = Quarantine(clock)
        self._generation = 0
        self._pairs: dict[Key, Pair] = {}
        self._forming: dict[Key, asyncio.Task[None]] = {}

    async def pair_with(
        self, sender: common.ReplicaRef, sender_shard: int, shard: int
    ) -> Pair | None:
        """A working pair, or None: ask for the blocks inline. One that has to be made first is
        waited for only a moment."""
        key = (sender.id, sender.incarnation, sender_shard, shard)
        if self._usable(key) is None:
            forming = self._form(sender, key)
            if forming is None:
                return None
            await asyncio.wait({forming}, timeout=FORM_S)
        return self._usable(key)

    async def prewarm(self, senders: Iterable[common.ReplicaRef]) -> int:
        """Make pairs with these, if there are none; how many there are at the end, at the latest
        after the connect timeout. Nothing is raised: what cannot be paired is fetched inline."""
        keys = {(sender.id, sender.incarnation, 0, 0): sender for sender in senders}
        missing = [(key, ref) for key, ref in keys.items() if self._usable(key) is None]
        forming = [task for key, ref in missing if (task := self._form(ref, key)) is not None]
        if forming:
            await asyncio.wait(forming, timeout=self._connect_timeout_s)
        return sum(self._usable(key) is not None for key in keys)

    def succeeded(self, sender: common.ReplicaRef) -> None:
        """A chunk has come through."""
        self._quarantine.succeeded(sender.id, sender.incarnation)

    def quarantined(self) -> list[str]:
        """Replicas that it fetches from inline for now."""
        self._drop_failed()
        return sorted({replica for replica, _ in self._quarantine.inside()})

    def report(self) -> list[worker.PairInfo]:
        self._drop_failed()
        infos = []
        for key, pair in self._pairs.items():
            info = pair.report()
            info.failures = self._quarantine.failures(*key[:2])
            infos.append(info)
        for replica, incarnation in self._quarantine.inside():
            infos.append(
                worker.PairInfo(
                    peer=replica,
                    failures=self._quarantine.failures(replica, incarnation),
                    quarantine_left_s=self._quarantine.left_s(replica, incarnation),
                )
            )
        return infos

    def close(self) -> None:
        for task in self._forming.values():
            task.cancel()
        while self._pairs:
            self._pairs.popitem()[1].retire("this worker leaves")

    # -- inside ----------------------------------------------------------------------------------

    def _usable(self, key: Key) -> Pair | None:
        self._drop_failed()
        pair = self._pairs.pop(key, None)
        if pair is not None:
            self._pairs[key] = pair  # most recently used last
        return pair

    def _drop_failed(self) -> None:
        for key in [key for key, pair in self._pairs.items() if pair.failed is not None]:
            del self._pairs[key]

    def _form(self, sender: common.ReplicaRef, key: Key) -> asyncio.Task[None] | None:
        """The task that makes it; None while in quarantine, or where no transport reaches."""
        task = self._forming.get(key)
        if task is not None:
            return task
        self._quarantine.forget_older(*key[:2])
        reaching = [t for t in self._transports if t.reaches(sender.address)]
        if not reaching or self._quarantine.left_s(*key[:2]) > 0:
            return None
        task = asyncio.create_task(self._make(sender, key, reaching))
        self._forming[key] = task
        task.add_done_callback(lambda _: self._forming.pop(key, None))
        return task

    async def _make(
        self, sender: common.ReplicaRef, key: Key, transports: Sequence[Transport]
    ) -> None:
        for transport in transports:
            self._generation += 1
            try:
                pair = await self._connected(sender, key, transport.name)
            except (TicketError, TransferError):
                continue
            self._make_room(key)
            self._pairs[key] = pair
            return
        self._quarantine.failed(sender.id, sender.incarnation)

    async def _connected(self, sender: common.ReplicaRef, key: Key, backend: str) -> Pair:
        pair = self._new(sender, key, backend)
        made = False
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                request = worker.ConnectRequest(
                    receiver=self._me,
                    generation=pair.generation,
                    kv_abi=self._kv_abi,
                    backend=backend,
                    rendezvous=await pair.offer(),
                    slot_bytes=pair.slot_bytes,
                    sender_incarnation=sender.incarnation,
                    slots=pair.slots,
                    sender_shard=key[2],
                    receiver_shard=key[3],
                )
                answer = await self._peer_at(sender.address).connect(request)
                await pair.join(list(answer.rendezvous), answer.slot_bytes, answer.slots)
            made = True
            return pair
        except TimeoutError:
            raise TransferError(f"{backend}: {sender.id} did not answer in time") from None
        finally:
            if not made:
                pair.retire("it could not be made")

    def _new(self, sender: common.ReplicaRef, key: Key, backend: str) -> Pair:
        return Pair(
            sender.id,
            RECEIVER,
            backend,
            self._generation,
            lanes(self._ports.kv_heads, max(1, sender.tensor_ranks), self._ports.ranks),
            self._ports.of(key[3]),
            self._ports.block_bytes,
            name=f"from {sender.id}/{sender.incarnation} {self._generation}",
            shards=key[2:],
            slot_bytes=self._slot_bytes,
            slots=self._slots,
            deadline_s=self._chunk_timeout_s,
            # One that fails while nobody uses it was only closed by the sender.
            broke=lambda: self._quarantine.failed(sender.id, sender.incarnation),
        )

    def _make_room(self, new: Key) -> None:
        """Older incarnations of this sender go; then the least recently used of those that nobody
        uses."""
        for key in [key for key in self._pairs if key[0] == new[0] and key[1] != new[1]]:
            self._pairs.pop(key).retire("a newer incarnation")
        idle = [key for key, pair in self._pairs.items() if not pair.busy]
        for key in idle[: max(0, len(self._pairs) - self._max_pairs + 1)]:
            self._pairs.pop(key).retire("it makes room for another")
