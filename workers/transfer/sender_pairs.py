"""The sending side's pairs: answers Connect, finds the pair that a Redeem names."""

from __future__ import annotations

import asyncio

from workers.core.errors import TransferError
from workers.core.lanes import lanes
from workers.transfer.link import SENDER
from workers.transfer.pair import Pair
from workers.transfer.port import Ports
from workers.wire import common_pb2 as common
from workers.wire import worker_pb2 as worker


class SenderPairs:
    """At most `max_pairs`, but for those in use: then the least recently used make room."""

    def __init__(
        self,
        ports: Ports,
        *,
        slot_bytes: int,
        slots: int,
        max_pairs: int,
        connect_timeout_s: float,
        chunk_timeout_s: float,
    ) -> None:
        self._ports = ports
        self._slot_bytes = slot_bytes
        self._slots = slots
        self._max_pairs = max_pairs
        self._connect_timeout_s = connect_timeout_s
        self._chunk_timeout_s = chunk_timeout_s
        self._pairs: dict[tuple[str, int], Pair] = {}  # by (receiver, generation)
        self._joining: dict[Pair, asyncio.Task[None]] = {}

    async def accept(self, request: worker.ConnectRequest) -> worker.ConnectResponse:
        """Make our end; it completes in the background while the answer travels. Raises
        TransferError when this worker has no transport of that kind, or no such shard."""
        pair = self._new(request)
        name = receiver_name(request.receiver)
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                blobs = await pair.offer()
        except TimeoutError:
            raise TransferError(f"{request.backend}: no rendezvous in time") from None
        self._make_room(request)  # now: many may have asked meanwhile
        self._pairs[name, request.generation] = pair
        joining = asyncio.create_task(self._join(pair, list(request.rendezvous)))
        self._joining[pair] = joining
        joining.add_done_callback(lambda _: self._joining.pop(pair, None))
        return worker.ConnectResponse(
            rendezvous=blobs, slot_bytes=pair.slot_bytes, slots=pair.slots
        )

    def _new(self, request: worker.ConnectRequest) -> Pair:
        receiver = request.receiver
        return Pair(
            receiver.id,
            SENDER,
            request.backend,
            request.generation,
            lanes(self._ports.kv_heads, self._ports.ranks, max(1, receiver.tensor_ranks)),
            self._ports.of(request.sender_shard),
            self._ports.block_bytes,
            name=f"to {receiver_name(receiver)} {request.generation}",
            shards=_shards(request),
            slot_bytes=min(self._slot_bytes, request.slot_bytes),
            slots=max(1, min(self._slots, request.slots)),
            deadline_s=self._chunk_timeout_s,
        )

    async def _join(self, pair: Pair, blobs: list[bytes]) -> None:
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                await pair.join(blobs, pair.slot_bytes, pair.slots)
        except TransferError as error:
            pair.retire(error.message)  # find() says so to who asks
        except TimeoutError:
            pair.retire("the receiver did not join in time")

    async def find(self, receiver: str, generation: int) -> Pair | None:
        """The pair a Redeem names, or None: then the blocks go inline."""
        pair = self._pairs.get((receiver, generation))
        if pair is None:
            return None
        joining = self._joining.get(pair)
        if joining is not None:
            await asyncio.wait({joining})  # it has a deadline
        if self._pairs.get((receiver, generation)) is not pair:
            return None
        del self._pairs[receiver, generation]
        if pair.failed is not None:
            return None
        self._pairs[receiver, generation] = pair  # most recently used last
        return pair

    def _make_room(self, request: worker.ConnectRequest) -> None:
        """Older incarnations of this receiver go, and its older generation between these shards;
        then the least recently used of those that nobody uses."""
        name, lane = receiver_name(request.receiver), _shards(request)
        for key, pair in list(self._pairs.items()):
            stale = pair.peer == request.receiver.id and key[0] != name
            if stale or pair.failed is not None or (key[0] == name and pair.shards == lane):
                self._drop(key, "a newer one takes its place")
        idle = [key for key, pair in self._pairs.items() if not pair.busy]
        for key in idle[: max(0, len(self._pairs) - self._max_pairs + 1)]:
            self._drop(key, "it makes room for another")

    def _drop(self, key: tuple[str, int], why: str) -> None:
        pair = self._pairs.pop(key)
        joining = self._joining.get(pair)
        if joining is not None:
            joining.cancel()
        pair.retire(why)

    def report(self) -> list[worker.PairInfo]:
        return [pair.report() for pair in self._pairs.values()]

    def close(self) -> None:
        for key in list(self._pairs):
            self._drop(key, "this worker leaves")


def receiver_name(replica: common.ReplicaRef) -> str:
    return f"{replica.id}/{replica.incarnation}"


def _shards(request: worker.ConnectRequest) -> tuple[int, int]:
    return request.sender_shard, request.receiver_shard
