"""One replica put together: an engine, its roles, and what it says of itself.

Role is state, not a binary: every worker can do all of them, `role` says what the router sends it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from collections.abc import Sequence as Many
from enum import StrEnum
from typing import TypeVar

from workers.aggregated import AggregatedRole
from workers.config import TransportConfig
from workers.core.errors import InvalidRequest, Unavailable
from workers.core.request import Sequence
from workers.core.roles import RoleName
from workers.core.waits import Offload, happens
from workers.decode import DecodeRole
from workers.engine import Engine
from workers.event_log import EventPublisher
from workers.flip import OFFER_AGAIN_S, Flip
from workers.live import LiveSequences
from workers.metrics import Meter
from workers.prefill import PrefillRole
from workers.tickets import TicketDesk
from workers.transfer.link import Transport
from workers.transfer.port import Ports
from workers.transfer.receiver import Receiver
from workers.transfer.receiver_pairs import Peer, ReceiverPairs
from workers.transfer.sender_pairs import SenderPairs
from workers.wire import common_pb2 as common
from workers.wire import worker_pb2 as worker
from workers.wire.codec import role_from_wire, step_to_wire
from workers.wire.redis_keys import pack_ids

T = TypeVar("T")
DRAIN_POLL_S = 0.05
STEP_LIMIT_S = 120.0
ASK_S = 1.0  # for a receiver whose chunk is late to ask for its blocks again


class WorkerState(StrEnum):
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"


class Worker:
    """`ready`: it may get requests. Until it is set others see it STARTING."""

    def __init__(
        self,
        engine: Engine,
        me: common.ReplicaRef,
        role: common.Role,
        *,
        peer_at: Callable[[str], Peer],
        ports: Ports,
        transports: Many[Transport],
        config: TransportConfig,
        ttl_s: float,
        offload: Offload,
    ) -> None:
        self.engine = engine
        self.me = me
        self.me.tensor_ranks = ports.ranks
        self.role = role
        self.ready = True
        self.leaving = asyncio.Event()
        self.hung = asyncio.Event()  # a step has been running for longer than any step can
        self.on_role: Callable[[RoleName], object] = lambda role: None  # hears of each change
        self.meter = Meter()
        engine.steps.heard = self.meter.stepped
        self.events = EventPublisher(engine.pool)
        pages = engine.runner.pages
        slot_bytes = max(1, config.staging_bytes // config.slots)
        self.sender_pairs = SenderPairs(
            ports,
            slot_bytes=slot_bytes,
            slots=config.slots,
            max_pairs=config.max_pairs,
            connect_timeout_s=config.connect_timeout_s,
            chunk_timeout_s=config.chunk_timeout_s,
        )
        self.receiver_pairs = ReceiverPairs(
            ports,
            transports,
            me,
            engine.info.kv_abi,
            engine.clock,
            peer_at,
            slot_bytes=slot_bytes,
            slots=config.slots,
            max_pairs=config.max_pairs,
            connect_timeout_s=config.connect_timeout_s,
            chunk_timeout_s=config.chunk_timeout_s,
        )
        self.desk = TicketDesk(
            engine,
            self.sender_pairs,
            me,
            self.meter,
            offload=offload,
            ttl_s=ttl_s,
            patience_s=config.chunk_timeout_s + ASK_S,
            checksums=config.checksums,
            inline_bytes=config.inline_bytes,
        )
        self.receiver = Receiver(
            peer_at,
            self.receiver_pairs,
            pages,
            me,
            offload,
            block_size=engine.block_size,
            inline_bytes=config.inline_bytes,
        )
        self._most_seqs = engine.scheduler.max_seqs
        self._most_step_tokens = engine.scheduler.step_tokens
        self.live = LiveSequences(engine, self.desk, self.meter)
        self.prefill = PrefillRole(engine, self.desk, self.meter)
        self.decode = DecodeRole(engine, self.receiver, self.live, self.meter)
        self.aggregated = AggregatedRole(engine, self.live, self.meter)
        self._flip = Flip(self.live, self._unfit, engine.clock, self.meter)
        self._gauges()

    @property
    def state(self) -> WorkerState:
        if self.live.draining:
            return WorkerState.DRAINING
        return WorkerState.READY if self.ready else WorkerState.STARTING

    @property
    def num_busy(self) -> int:
        """Requests, and tickets that outlive theirs, which still need this worker."""
        roles = (self.prefill, self.decode, self.aggregated)
        tickets = sum(not ticket.moving for ticket in self.desk.tickets.live())
        return sum(role.num_active for role in roles) + tickets

    async def run(self) -> None:
        """Steps and expires leases until cancelled. An error of the engine ends the worker."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.engine.serve())
            tasks.create_task(self.desk.expire_leases())
            tasks.create_task(self._notice_hung_step())
            tasks.create_task(self._flip.run())

    async def _notice_hung_step(self) -> None:
        while not self.hung.is_set():
            await asyncio.sleep(1.0)
            began = self.engine.step_began
            if began is not None and self.engine.clock.now() - began > STEP_LIMIT_S:
                self.hung.set()

    async def drain(self, budget_s: float) -> int:
        """Take nothing new; offer what decodes here to others, and wait for it and for open
        tickets. What is left when the budget is over."""
        if not self.live.draining:
            self.meter.drain_begun()
        for role in (self.prefill, self.decode, self.aggregated, self.live):
            role.draining = True
        clock = self.engine.clock
        offer_at = clock.now()
        deadline = offer_at + budget_s
        while True:
            if clock.now() >= offer_at:
                self.live.move_all()
                offer_at = clock.now() + OFFER_AGAIN_S
            if not self.num_busy or clock.now() >= deadline:
                return self.num_busy
            await asyncio.sleep(DRAIN_POLL_S)

    def end(self) -> None:
        """Whoever is still served hears that it has to go elsewhere."""
        for role in (self.prefill, self.decode, self.aggregated):
            role.end(Unavailable(f"replica {self.me.id} is leaving"))

    def set_role(self, role: common.Role) -> None:
        """For new work at once; decodes of one that prefills from now on are offered to others.
        Raises InvalidRequest."""
        name = role_from_wire(role)
        if name is None:
            raise InvalidRequest(f"no such role: {role}", param="role")
        if role != self.role:
            self.role = role
            self._flip.to(name)
            self.on_role(name)

    def _unfit(self, role: RoleName) -> set[Sequence]:
        if role == "prefill":
            return self.decode.sequences | self.aggregated.sequences
        return self.prefill.sequences if role == "decode" else set()

    def set_limits(self, max_seqs: int, step_tokens: int) -> worker.SetLimitsResponse:
        """Sizes from the next step on, 0 = as started, which is also the most. Who runs stays:
        above a new `max_seqs` nobody is added until enough have ended."""
        scheduler = self.engine.scheduler
        scheduler.max_seqs = min(max_seqs or self._most_seqs, self._most_seqs)
        scheduler.step_tokens = min(step_tokens or self._most_step_tokens, self._most_step_tokens)
        return worker.SetLimitsResponse(
            max_seqs=scheduler.max_seqs, step_tokens=scheduler.step_tokens
        )

    async def watch(self, interval_s: float) -> AsyncIterator[worker.LoadReport]:
        """A report every `interval_s`, each with the steps and transfers measured since the one
        before; ends when the worker leaves."""
        steps, transfers = self.engine.steps.recorded, self.decode.transfers_recorded
        while not self.leaving.is_set():
            report = self._report(
                self.engine.steps.recorded - steps, self.decode.transfers_recorded - transfers
            )
            steps, transfers = self.engine.steps.recorded, self.decode.transfers_recorded
            yield report
            await happens(self.leaving, within_s=interval_s)

    def _report(self, new_steps: int, new_transfers: int) -> worker.LoadReport:
        scheduler, pool = self.engine.scheduler, self.engine.pool
        ongoing = [*scheduler.waiting, *scheduler.running]
        return worker.LoadReport(
            replica=self.me,
            role=self.role,
            state=self.state,
            kv_abi=self.engine.info.kv_abi,
            running=len(scheduler.running) + len(scheduler.reserved),
            waiting=len(scheduler.waiting) + self.engine.num_waiting_for_pages,
            waiting_tokens=sum(s.num_unlaunched for s in ongoing if s.num_unlaunched > 1),
            kv_tokens=sum(seq.num_computed for seq in scheduler.running),
            blocks_total=pool.num_blocks,
            blocks_used=pool.num_referenced,
            blocks_cached=pool.num_idle,
            tickets_open=len(self.desk.tickets.live()),
            prefix_hit_tokens=scheduler.hit_tokens,
            prefix_query_tokens=scheduler.query_tokens,
            preemptions=scheduler.preemptions,
            steps=map(step_to_wire, _newest(self.engine.steps.newest, new_steps)),
            step_tokens=scheduler.step_tokens,
            kv_bytes_per_token=self.engine.info.kv_bytes_per_token,
            transfers=_newest(self.decode.transfers, new_transfers),
            quarantined=self.receiver_pairs.quarantined(),
            max_seqs=self._most_seqs,
            most_step_tokens=self._most_step_tokens,
            seqs_limit=scheduler.max_seqs,
            made_tokens=sum(seq.num_output for seq in ongoing),
        )

    def snapshot(self) -> worker.SnapshotResponse:
        seq, blocks = self.events.snapshot()
        return worker.SnapshotResponse(
            incarnation=self.me.incarnation, event_seq=seq, block_ids=pack_ids(blocks)
        )

    def tickets(self) -> worker.TicketsResponse:
        return worker.TicketsResponse(tickets=self.desk.report(), pairs=self._pairs())

    def _pairs(self) -> list[worker.PairInfo]:
        return [*self.sender_pairs.report(), *self.receiver_pairs.report()]

    def check_integrity(self) -> None:
        """Raise AssertionError unless pages, sequences and tickets agree."""
        self.engine.check_integrity()
        self.desk.check_integrity()

    async def close(self) -> None:
        await self.receiver.close()
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
            "tickets_open", "Tickets that are not over", lambda: len(self.desk.tickets.live())
        )
        self.meter.total(
            "prefix_hit_tokens", "Prompt tokens found cached", lambda: scheduler.hit_tokens
        )
        self.meter.total(
            "prefix_query_tokens", "Prompt tokens looked for", lambda: scheduler.query_tokens
        )
        self.meter.total(
            "preemptions", "Sequences that gave their pages back", lambda: scheduler.preemptions
        )
        counts = self.receiver.counts
        self.meter.gauge("pairs", "Ends of pairs", lambda: len(self._pairs()))
        self.meter.gauge(
            "pairs_failed",
            "Of these, not usable",
            lambda: sum(bool(p.failed) for p in self._pairs()),
        )
        self.meter.gauge(
            "pair_staging_bytes",
            "Staging of all pairs",
            lambda: sum(p.staging_bytes for p in self._pairs()),
        )
        self.meter.gauge(
            "peers_quarantined",
            "Replicas whose blocks come inside gRPC for now",
            lambda: len(self.receiver_pairs.quarantined()),
        )
        self.meter.total(
            "checksum_mismatches", "Blocks that came changed", lambda: counts.mismatched
        )
        self.meter.total(
            "blocks_refetched", "Blocks that came well at last", lambda: counts.refetched
        )
        self.meter.total(
            "checksum_gave_up", "Blocks that came changed every time", lambda: counts.gave_up
        )


def _newest(kept: Iterable[T], count: int) -> list[T]:
    return list(kept)[-count:] if count else []
