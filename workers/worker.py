"""One replica put together: an engine, its roles, and what it says of itself.

Role is state, not a binary: every worker can do all of them, `role` says what the router sends it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from enum import StrEnum

from workers.aggregated import AggregatedRole
from workers.config import TransportConfig
from workers.core.errors import InvalidRequest
from workers.core.waits import Offload, happens
from workers.decode import DecodeRole
from workers.engine import Engine
from workers.event_log import EventPublisher
from workers.metrics import Meter
from workers.prefill import PrefillRole
from workers.transfer.link import Transport
from workers.transfer.pairs import ReceiverPairs, SenderPairs
from workers.transfer.receiver import Peer, Receiver
from workers.wire import common_pb2 as common
from workers.wire import worker_pb2 as worker
from workers.wire.codec import role_from_wire
from workers.wire.redis_keys import pack_ids

DRAIN_POLL_S = 0.05
STEP_LIMIT_S = 120.0


class WorkerState(StrEnum):
    READY = "ready"
    DRAINING = "draining"


class Worker:
    def __init__(
        self,
        engine: Engine,
        me: common.ReplicaRef,
        role: common.Role,
        *,
        peer_at: Callable[[str], Peer],
        transport: Transport | None,
        config: TransportConfig,
        ttl_s: float,
        offload: Offload,
    ) -> None:
        self.engine = engine
        self.me = me
        self.role = role
        self.leaving = asyncio.Event()
        self.hung = asyncio.Event()  # a step has been running for longer than any step can
        self.meter = Meter()
        self.events = EventPublisher(engine.pool)
        pages = engine.runner.pages
        self.sender_pairs = SenderPairs(
            transport, pages, staging_bytes=config.staging_bytes, max_pairs=config.max_pairs
        )
        self.receiver_pairs = ReceiverPairs(
            transport,
            pages,
            me,
            engine.info.kv_abi,
            engine.clock,
            staging_bytes=config.staging_bytes,
            max_pairs=config.max_pairs,
            connect_timeout_s=config.connect_timeout_s,
            quarantine_s=config.quarantine_s,
        )
        self.prefill = PrefillRole(
            engine,
            self.sender_pairs,
            me,
            self.meter,
            offload=offload,
            ttl_s=ttl_s,
            patience_s=config.chunk_timeout_s,
            checksums=config.checksums,
        )
        transport_name = "inline" if transport is None else transport.name
        receiver = Receiver(peer_at, self.receiver_pairs, pages, me, offload, transport_name)
        self.decode = DecodeRole(engine, receiver, self.meter)
        self.aggregated = AggregatedRole(engine, self.meter)
        self._gauges()

    @property
    def state(self) -> WorkerState:
        return WorkerState.DRAINING if self.prefill.draining else WorkerState.READY

    @property
    def num_busy(self) -> int:
        """Requests and tickets that still need this worker."""
        roles = (self.prefill, self.decode, self.aggregated)
        return sum(role.num_active for role in roles) + len(self.prefill.tickets.live())

    async def run(self) -> None:
        """Steps and expires leases until cancelled. An error of the engine ends the worker."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.engine.serve())
            tasks.create_task(self.prefill.expire_leases())
            tasks.create_task(self._notice_hung_step())

    async def _notice_hung_step(self) -> None:
        while not self.hung.is_set():
            await asyncio.sleep(1.0)
            began = self.engine.step_began
            if began is not None and self.engine.clock.now() - began > STEP_LIMIT_S:
                self.hung.set()

    async def drain(self, budget_s: float) -> int:
        """Take nothing new, wait for what is here; what is left when the budget is over."""
        for role in (self.prefill, self.decode, self.aggregated):
            role.draining = True
        deadline = self.engine.clock.now() + budget_s
        while self.num_busy and self.engine.clock.now() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(DRAIN_POLL_S)
        return self.num_busy

    def set_role(self, role: common.Role) -> None:
        if role_from_wire(role) is None:
            raise InvalidRequest(f"no such role: {role}", param="role")
        self.role = role

    async def watch(self, interval_s: float) -> AsyncIterator[worker.LoadReport]:
        """A report every `interval_s`, each with the steps measured since the one before; ends when
        the worker leaves."""
        seen = self.engine.steps_recorded
        while not self.leaving.is_set():
            fresh = self.engine.steps_recorded - seen
            seen += fresh
            yield self._report(fresh)
            await happens(self.leaving, within_s=interval_s)

    def _report(self, fresh: int) -> worker.LoadReport:
        scheduler, pool = self.engine.scheduler, self.engine.pool
        steps = list(self.engine.steps)[-fresh:] if fresh else []
        prefilling = [*scheduler.waiting, *scheduler.running]
        return worker.LoadReport(
            replica=self.me,
            role=self.role,
            state=self.state,
            kv_abi=self.engine.info.kv_abi,
            running=len(scheduler.running) + len(scheduler.reserved),
            waiting=len(scheduler.waiting) + self.engine.num_waiting_for_pages,
            waiting_tokens=sum(s.num_unlaunched for s in prefilling if s.num_unlaunched > 1),
            kv_tokens=sum(seq.num_computed for seq in scheduler.running),
            blocks_total=pool.num_blocks,
            blocks_used=pool.num_referenced,
            blocks_cached=pool.num_idle,
            tickets_open=len(self.prefill.tickets.live()),
            prefix_hit_tokens=scheduler.hit_tokens,
            prefix_query_tokens=scheduler.query_tokens,
            preemptions=scheduler.preemptions,
            steps=[
                worker.StepReport(
                    prefill_tokens=step.prefill_tokens,
                    decode_seqs=step.decode_seqs,
                    context_tokens=step.context_tokens,
                    seconds=step.seconds,
                )
                for step in steps
            ],
        )

    def snapshot(self) -> worker.SnapshotResponse:
        self.events.collect()
        return worker.SnapshotResponse(
            incarnation=self.me.incarnation,
            event_seq=self.events.last_seq,
            block_ids=pack_ids(self.engine.pool.cached_ids()),
        )

    def tickets(self) -> worker.TicketsResponse:
        now = self.engine.clock.now()
        return worker.TicketsResponse(
            tickets=[
                worker.TicketInfo(
                    id=ticket.id,
                    request_id=ticket.request_id,
                    state=ticket.state,
                    epoch=ticket.epoch,
                    num_blocks=self.engine.pool.blocks_for(ticket.num_tokens),
                    age_s=now - ticket.opened_at,
                    lease_left_s=ticket.expires_at - now,
                    story=ticket.story,
                )
                for ticket in self.prefill.tickets.live()
            ]
        )

    def check_integrity(self) -> None:
        """Raise AssertionError unless pages, sequences and tickets agree."""
        self.engine.check_integrity()
        self.prefill.check_integrity()

    async def close(self) -> None:
        self.sender_pairs.close()
        self.receiver_pairs.close()
        await self.engine.close()

    def _gauges(self) -> None:
        pool, scheduler = self.engine.pool, self.engine.scheduler
        self.meter.gauge("kv_blocks", "Blocks in the pool", lambda: pool.num_blocks)
        self.meter.gauge("kv_blocks_used", "Referenced blocks", lambda: pool.num_referenced)
        self.meter.gauge("kv_blocks_cached", "Idle blocks with a prefix", lambda: pool.num_idle)
        self.meter.gauge("running", "Running sequences", lambda: len(scheduler.running))
        self.meter.gauge("waiting", "Waiting sequences", lambda: len(scheduler.waiting))
        self.meter.gauge(
            "tickets_open", "Tickets that pin pages", lambda: len(self.prefill.tickets.live())
        )
        self.meter.gauge(
            "prefix_hit_tokens", "Prompt tokens found cached", lambda: scheduler.hit_tokens
        )
