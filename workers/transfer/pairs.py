"""Who is paired with whom: generations made at run time, bounded, replaced when they fail.

A pair is (sender replica, receiver replica, generation). The receiver asks for one; both ends keep
it until it fails or gives way to a newer one. There is no static world and nobody to lose it to.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from workers.core.clock import Clock
from workers.core.errors import TransferError
from workers.core.runner import PageStore
from workers.transfer.link import Link, Transport
from workers.wire import common_pb2 as common
from workers.wire import worker_pb2 as worker

Connect = Callable[[worker.ConnectRequest], Awaitable[worker.ConnectResponse]]
HOLD_S = 30.0  # how long a pair that nobody completes may stand half made


@dataclass(eq=False)
class Pair:
    """One end of a generation. Whoever holds `lock` owns the staging; chunks go in `seq` order."""

    generation: int
    link: Link
    staging_bytes: int
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    seq: int = 0

    def retire(self) -> None:
        """Something was interrupted half way: nobody can know what the peer has posted."""
        self.link.close()


class SenderPairs:
    """The prefill side: answers Connect, finds the pair that a Redeem names."""

    def __init__(
        self, transport: Transport | None, pages: PageStore, *, staging_bytes: int, max_pairs: int
    ) -> None:
        self._transport = transport
        self._pages = pages
        self._staging_bytes = max(staging_bytes, pages.block_bytes)
        self._max_pairs = max_pairs
        self._pairs: dict[tuple[str, int], asyncio.Task[Pair]] = {}

    async def accept(self, request: worker.ConnectRequest) -> worker.ConnectResponse:
        """Make our end; it completes in the background while the answer travels. Raises
        TransferError when this worker has no transport of that kind."""
        if self._transport is None or self._transport.name != request.backend:
            ours = self._transport.name if self._transport else "inline"
            raise TransferError(f"no {request.backend} transport here, only {ours}")
        size = min(self._staging_bytes, request.staging_bytes)
        size = max(size - size % self._pages.block_bytes, self._pages.block_bytes)
        half = await self._transport.offer(0, self._pages.new_staging(size))

        async def join() -> Pair:
            return Pair(request.generation, await half.join(request.rendezvous), size)

        receiver = receiver_name(request.receiver)
        self._make_room(request.receiver.id)
        task = asyncio.create_task(join())
        task.add_done_callback(_retrieve)
        self._pairs[receiver, request.generation] = task
        return worker.ConnectResponse(rendezvous=half.blob, staging_bytes=size)

    async def find(self, receiver: str, generation: int) -> Pair | None:
        """The pair a Redeem names, or None: then the blocks go inline."""
        task = self._pairs.get((receiver, generation))
        if task is None:
            return None
        await asyncio.wait({task}, timeout=HOLD_S)
        pair = _made(task)
        self._pairs.pop((receiver, generation), None)
        if pair is None or pair.link.failed is not None:
            return None
        self._pairs[receiver, generation] = task  # most recently used last
        return pair

    def _make_room(self, receiver_id: str) -> None:
        """Older generations and older incarnations of this receiver go; then the least recently
        used of those that send nothing now."""
        for key in [key for key in self._pairs if key[0].startswith(f"{receiver_id}/")]:
            _close(self._pairs.pop(key))
        idle = [key for key, task in self._pairs.items() if not _busy(_made(task))]
        for key in idle[: max(0, len(self._pairs) - self._max_pairs + 1)]:
            _close(self._pairs.pop(key))

    def close(self) -> None:
        while self._pairs:
            _close(self._pairs.popitem()[1])


class ReceiverPairs:
    """The decode side: one pair a prefill worker, made when first wanted; one whose pair failed
    sends inline until its quarantine is over."""

    def __init__(
        self,
        transport: Transport | None,
        pages: PageStore,
        me: common.ReplicaRef,
        kv_abi: str,
        clock: Clock,
        *,
        staging_bytes: int,
        max_pairs: int,
        connect_timeout_s: float,
        quarantine_s: float,
    ) -> None:
        self._transport = transport
        self._pages = pages
        self._me = me
        self._kv_abi = kv_abi
        self._clock = clock
        self._staging_bytes = max(staging_bytes, pages.block_bytes)
        self._max_pairs = max_pairs
        self._connect_timeout_s = connect_timeout_s
        self._quarantine_s = quarantine_s
        self._generation = 0
        self._pairs: dict[tuple[str, str], Pair] = {}
        self._quarantined: dict[tuple[str, str], float] = {}
        self._connecting: dict[tuple[str, str], asyncio.Lock] = {}

    async def pair_with(self, sender: common.ReplicaRef, connect: Connect) -> Pair | None:
        """A working pair, or None: ask for the blocks inline."""
        if self._transport is None:
            return None
        key = (sender.id, sender.incarnation)
        async with self._connecting.setdefault(key, asyncio.Lock()):
            pair = self._pairs.get(key)
            if pair is not None and pair.link.failed is None:
                self._pairs[key] = self._pairs.pop(key)  # most recently used last
                return pair
            if self._quarantined.get(key, 0.0) > self._clock.now():
                return None
            try:
                pair = await self._make(sender, self._transport, connect)
            except (TransferError, TimeoutError):
                self.quarantine(sender)
                return None
            self._make_room(key)
            self._pairs[key] = pair
            return pair

    def quarantine(self, sender: common.ReplicaRef) -> None:
        key = (sender.id, sender.incarnation)
        self._quarantined[key] = self._clock.now() + self._quarantine_s
        pair = self._pairs.pop(key, None)
        if pair is not None:
            pair.retire()

    async def _make(
        self, sender: common.ReplicaRef, transport: Transport, connect: Connect
    ) -> Pair:
        self._generation += 1
        staging = self._pages.new_staging(self._staging_bytes)
        async with asyncio.timeout(self._connect_timeout_s):
            half = await transport.offer(1, staging)
            answer = await connect(
                worker.ConnectRequest(
                    receiver=self._me,
                    generation=self._generation,
                    kv_abi=self._kv_abi,
                    backend=transport.name,
                    rendezvous=half.blob,
                    staging_bytes=self._staging_bytes,
                    sender_incarnation=sender.incarnation,
                )
            )
            link = await half.join(answer.rendezvous)
        return Pair(self._generation, link, min(answer.staging_bytes, self._staging_bytes))

    def _make_room(self, new: tuple[str, str]) -> None:
        """Older incarnations of this sender go; then the least recently used of those that receive
        nothing now; and what is remembered of senders long gone."""
        for key in [key for key in self._pairs if key[0] == new[0]]:
            self._pairs.pop(key).retire()
        idle = [key for key, pair in self._pairs.items() if not _busy(pair)]
        for key in idle[: max(0, len(self._pairs) - self._max_pairs + 1)]:
            self._pairs.pop(key).retire()
        for key in [key for key, lock in self._connecting.items() if not lock.locked()]:
            if key not in self._pairs and self._quarantined.get(key, 0.0) <= self._clock.now():
                del self._connecting[key]
                self._quarantined.pop(key, None)

    def close(self) -> None:
        while self._pairs:
            self._pairs.popitem()[1].retire()


def receiver_name(replica: common.ReplicaRef) -> str:
    return f"{replica.id}/{replica.incarnation}"


def _made(task: asyncio.Task[Pair]) -> Pair | None:
    """The pair, if its making has succeeded."""
    if not task.done() or task.cancelled() or task.exception() is not None:
        return None
    return task.result()


def _busy(pair: Pair | None) -> bool:
    return pair is not None and pair.lock.locked()


def _close(task: asyncio.Task[Pair]) -> None:
    pair = _made(task)
    if pair is not None:
        pair.retire()
    task.cancel()


def _retrieve(task: asyncio.Task[Pair]) -> None:
    """A pair nobody asks for again may fail in silence; find() says so to who asks."""
    if not task.cancelled():
        task.exception()
