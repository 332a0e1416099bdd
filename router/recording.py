"""Requests that ended and steps that workers measured, for whoever records them.

What leaves here says nothing of any text: blocks and tenants are hashes keyed with the recorder's
salt, equal where what they stand for is equal, and only within one recording. Who reads too slowly
loses the oldest, and is told how many.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import suppress
from hashlib import blake2b
from typing import NamedTuple

from router.api import Call
from router.explain.trail import Opened, Trail
from router.flight import BlockIds
from router.replica import Replica
from workers.core.clock import Clock, unix_time
from workers.core.errors import Code, InvalidRequest
from workers.core.hashing import BlockId
from workers.wire import admin_pb2 as admin
from workers.wire import worker_pb2 as worker

MOST_REQUESTS = 4096  # that wait for one reader
MOST_BLOCKS = 1 << 18  # of these together
MOST_STEPS = 1 << 15
BATCH_BLOCKS = 1 << 11  # hashed at once: 4 to 6 ms of the event loop
BATCH_S = 0.2  # what comes meanwhile is one message
BEAT_S = 5.0  # an empty one, where nothing came
SALT_BYTES = (16, 64)
HASH_BITS = 52  # a JSON number holds them exactly

# Refused before its prompt was looked at: load that was offered, of a size that nobody knows.
_UNREAD = (Code.RESOURCE_EXHAUSTED.lower(), Code.UNAVAILABLE.lower())


class _Ended(NamedTuple):
    """Both are filled in when it is read."""

    row: admin.RecordedRequest
    tenant: str
    ids: list[BlockId]


class Recording:
    """A PoolListener. Costs nothing while nobody records."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._spaces: dict[str, tuple[str, int]] = {}  # KV ABI and block size of each replica
        self._readers: set[_Reader] = set()
        self._over = False

    def close(self) -> None:
        """Readers get what is left, and their streams end: a router that goes waits for none."""
        self._over = True
        for reader in self._readers:
            reader.news.set()

    def came(self, slo_class: str, prompt_tokens: int) -> None:
        """One request, before anything became of it."""
        row = admin.RecordedArrival(slo_class=slo_class, prompt_tokens=prompt_tokens)
        for reader in self._readers:
            reader.add_arrival(row)

    def ended(
        self,
        call: Call,
        slo_class: str,
        trail: Trail,
        blocks: BlockIds | None,
        ttft_s: float | None,
        itl_s: float | None,
    ) -> None:
        """One request, whatever became of it. `blocks` None: its prompt was never read."""
        if not self._readers or (not trail.prompt_tokens and trail.outcome not in _UNREAD):
            return
        row = admin.RecordedRequest(
            arrived=self._unix(trail.started),
            prompt_tokens=trail.prompt_tokens,
            output_tokens=trail.output_tokens,
            max_tokens=call.params.max_tokens or 0,
            slo_class=slo_class,
            let_in=trail.let_in_at is not None,
            ttft_s=ttft_s,
            itl_s=itl_s,
            outcome=trail.outcome,
            cached_tokens=next((e.cached_tokens for e in trail.events if isinstance(e, Opened)), 0),
        )
        ids: list[BlockId] = []
        hashed = any(reader.blocks for reader in self._readers)
        if blocks is not None and self._spaces and hashed:
            kv_abi, row.block_size = min(self._spaces.values())  # the same one in all routers
            ids = blocks.of(kv_abi, row.block_size)[: trail.prompt_tokens // row.block_size]
        for reader in self._readers:
            reader.add_request(_Ended(row, call.terms.tenant, ids if reader.blocks else []))

    async def follow(
        self, salt: bytes, *, steps: bool, blocks: bool = True, arrivals: bool = False
    ) -> AsyncGenerator[admin.RecordedBatch]:
        """An empty batch, then all that ends from now on; `blocks`: with hashes, `arrivals`: also
        what comes. Raises InvalidRequest."""
        least, most = SALT_BYTES
        if not least <= len(salt) <= most:
            raise InvalidRequest(f"salt must have {least} to {most} bytes", param="salt")
        reader = _Reader(salt, steps=steps, blocks=blocks, arrivals=arrivals)
        self._readers.add(reader)
        try:
            yield admin.RecordedBatch()
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(BEAT_S):
                        await reader.news.wait()
                        await asyncio.sleep(BATCH_S)
                yield reader.take()
                while reader.behind:
                    await asyncio.sleep(0)  # others first
                    yield reader.take()
                if self._over:
                    return
        finally:
            self._readers.discard(reader)

    # as a PoolListener

    def reported(self, replica: Replica, load: worker.LoadReport) -> None:
        self._spaces[replica.id] = (replica.kv_abi, replica.record.block_size)
        if not any(reader.steps_too for reader in self._readers):
            return
        record, now = replica.record, self._unix(self._clock.now())
        for step in load.steps:
            row = admin.RecordedStep(
                reported=now, replica=replica.id, role=replica.role_on_wire, kv_abi=replica.kv_abi,
                hardware=record.hardware, tensor_ranks=record.tensor_ranks,
                expert_ranks=record.expert_ranks, step=step,
            )  # fmt: skip
            for reader in self._readers:
                reader.add_step(row)

    def lost(self, replica: Replica) -> None: ...

    def forgotten(self, replica: Replica) -> None:
        self._spaces.pop(replica.id, None)

    def _unix(self, at: float) -> float:
        return unix_time() - (self._clock.now() - at)


class _Reader:
    """What one of them has yet to read."""

    def __init__(self, salt: bytes, *, steps: bool, blocks: bool, arrivals: bool) -> None:
        self.news = asyncio.Event()
        self.steps_too = steps
        self.blocks = blocks
        self._arrivals_too = arrivals
        self._salt = salt
        self._requests: deque[_Ended] = deque()
        self._num_blocks = 0
        self._steps: deque[admin.RecordedStep] = deque()
        self._arrivals: deque[admin.RecordedArrival] = deque()
        self._lost = 0

    @property
    def behind(self) -> bool:
        """More waits than one batch holds."""
        return bool(self._requests)

    def add_request(self, ended: _Ended) -> None:
        self._requests.append(ended)
        self._num_blocks += len(ended.ids)
        while len(self._requests) > MOST_REQUESTS or self._num_blocks > MOST_BLOCKS:
            self._num_blocks -= len(self._requests.popleft().ids)
            self._lost += 1
        self.news.set()

    def add_step(self, row: admin.RecordedStep) -> None:
        if not self.steps_too:
            return
        self._steps.append(row)
        if len(self._steps) > MOST_STEPS:
            self._steps.popleft()
            self._lost += 1
        self.news.set()

    def add_arrival(self, row: admin.RecordedArrival) -> None:
        if not self._arrivals_too:
            return
        self._arrivals.append(row)
        if len(self._arrivals) > MOST_REQUESTS:
            self._arrivals.popleft()
            self._lost += 1
        self.news.set()

    def take(self) -> admin.RecordedBatch:
        """The oldest, as many as may be hashed at once."""
        batch = admin.RecordedBatch(lost=self._lost, steps=self._steps, arrivals=self._arrivals)
        self._steps.clear()
        self._arrivals.clear()
        hashed = 0
        while self._requests and hashed < BATCH_BLOCKS:
            row, tenant, ids = self._requests.popleft()
            self._num_blocks -= len(ids)
            hashed += len(ids)
            told = batch.requests.add()
            told.CopyFrom(row)
            told.tenant = f"{self._hash(tenant.encode()):x}" if tenant else ""
            told.hashes.extend(map(self._hash, ids))
        if not self._requests:
            self.news.clear()
        return batch

    def _hash(self, what: bytes) -> int:
        digest = blake2b(what, digest_size=8, key=self._salt).digest()
        return int.from_bytes(digest, "little") >> (64 - HASH_BITS)
