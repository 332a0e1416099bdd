"""One life of one simulated worker: scheduler, pages and tickets as in a real one, steps and copies
that only take time."""

from __future__ import annotations

import asyncio
import math
import random
from collections import deque
from collections.abc import Iterable
from collections.abc import Sequence as Items

from cluster.simulator.fleet.asks import AskedHasher
from cluster.simulator.fleet.calls import AloneCall, DecodeCall, PrefillCall, SimCall
from cluster.simulator.fleet.desk import SimDesk
from cluster.simulator.fleet.engine import SimEngine
from cluster.simulator.fleet.record import Histogram
from cluster.simulator.fleet.report import Reports
from cluster.simulator.fleet.steps import Noise, Span, StepTimes
from cluster.simulator.fleet.stream import TOKEN, SimStream
from cluster.simulator.fleet.world import KV_ABI, WorkerSizes, World
from router.worker_client import WorkerFailed
from workers.core.batch import SequenceUpdate
from workers.core.block_pools import BlockPools
from workers.core.errors import Cancelled, ContextTooLong, KvasirError
from workers.core.request import FinishReason, Request, SampledToken, Sequence
from workers.core.roles import RoleName
from workers.core.scheduler_runs import RunScheduler
from workers.core.step_work import StepWork
from workers.wire import common_pb2 as common


class SimWorker:
    def __init__(
        self, name: str, life: int, role: RoleName, sizes: WorkerSizes, world: World
    ) -> None:
        self.me = common.ReplicaRef(
            id=name, incarnation=f"{life}", address=name, tensor_ranks=sizes.tensor_ranks
        )
        self.name = name
        self.where = f"worker {name}"
        self.role = role
        self.sizes = sizes
        self.alive = True
        self.born_at = asyncio.get_running_loop().time()
        self.died_at = math.inf
        self.draining = False
        self.token_bytes = sizes.token_bytes
        self.tokens = world.tokens
        self._world = world
        self._loop = asyncio.get_running_loop()
        blocks = sizes.kv_tokens // sizes.block_size
        pool = BlockPools(blocks, sizes.block_size, 1, sizes.eviction)
        scheduler = RunScheduler(
            pool, step_tokens=sizes.step_tokens, max_seqs=sizes.max_seqs, finish=_finish
        )
        noise = Noise(world.noise, f"{world.seed} {name} {life}") if world.noise else None
        times = StepTimes(lambda work: world.model.step_s(name, work), noise)
        self.engine = SimEngine(scheduler, times, self, world.cores)
        self.desk = SimDesk(self.me, KV_ABI, self.engine, world.ttl_s, self._freed)
        self.calls: dict[Sequence, SimCall] = {}
        self._reservations: deque[DecodeCall] = deque()
        self._watchers: list[SimStream] = []
        self._reports = Reports(self)
        self._report_timer: asyncio.TimerHandle | None = None

    def now(self) -> float:
        return self._loop.time()

    # -- calls -----------------------------------------------------------------------------------

    def prefill(self, request: Request) -> SimStream:
        return self._compute(request, PrefillCall, hold=True)

    def alone(self, request: Request) -> SimStream:
        return self._compute(request, AloneCall, hold=False)

    def _compute(
        self, request: Request, kind: type[PrefillCall] | type[AloneCall], *, hold: bool
    ) -> SimStream:
        refused = self._refusal(request)
        if refused is not None:
            return self._closed(refused)
        seq = self._sequence(request, hold=hold)
        call = self.calls[seq] = kind(self, seq, request, self._world.line_of(request.id))
        self.engine.interrupt()
        self.engine.scheduler.add(seq)
        self.engine.wake()
        return call.stream

    def decode(self, request: Request, ticket: common.Ticket, epoch: int) -> SimStream:
        refused = self._refusal(request)
        if refused is not None:
            return self._closed(refused)
        early = len(request.token_ids) == ticket.num_tokens
        seq = self._sequence(request, to_come=int(early))
        line = self._world.line_of(request.id)
        call = DecodeCall(self, seq, request, line, ticket, epoch)
        self.calls[seq] = call
        self._reservations.append(call)
        self._grant()
        return call.stream

    def cancel(self, request_id: str) -> None:
        for call in [call for call in self.calls.values() if call.seq.id == request_id]:
            call.end(_failed(self.where, Cancelled(request_id)))
        self.desk.cancel(request_id)

    def set_limits(self, max_seqs: int, step_tokens: int) -> None:
        """0 = as it was started, which is the most."""
        self.engine.interrupt()
        sizes, scheduler = self.sizes, self.engine.scheduler
        scheduler.max_seqs = min(max_seqs or sizes.max_seqs, sizes.max_seqs)
        scheduler.step_tokens = min(step_tokens or sizes.step_tokens, sizes.step_tokens)
        self._freed()

    def set_role(self, role: RoleName) -> None:
        """Of what comes from now on: who is called does what it is called for, in any role."""
        self.role = role
        self._tell()

    def drain(self) -> None:
        self.draining = True
        self._tell()

    def die(self, why: str) -> None:
        """What was sampled by now has been said; everything else is gone."""
        self.engine.settle()
        for call in self.calls.values():
            call.flush(last=True)
        self.alive, self.died_at = False, self.now()
        self.engine.stop()
        if self._report_timer is not None:
            self._report_timer.cancel()
        error = WorkerFailed(f"{self.where}: {why}")
        streams = [call.stream for call in self.calls.values()] + self._watchers
        for call in list(self.calls.values()):
            call.dropped()
        self.calls.clear()
        self._reservations.clear()
        for stream in streams:
            stream.close(error)
        self.desk.stop(error)

    # -- Host ------------------------------------------------------------------------------------

    def forget(self, call: SimCall) -> None:
        if self.calls.get(call.seq) is call:
            del self.calls[call.seq]
        if call in self._reservations:
            self._reservations.remove(call)  # type: ignore[arg-type]
        self._freed()

    def desk_of(self, sender: common.ReplicaRef) -> SimDesk:
        return self._world.desk_of(sender)

    def transfer_s(self, num_bytes: int, sender: str) -> float:
        return self._world.model.transfer_s(num_bytes, sender, self.name)

    def fetched(self, sender: str, num_bytes: int, seconds: float) -> None:
        self._reports.fetched(sender, num_bytes, seconds)

    # -- Follower --------------------------------------------------------------------------------

    def ran(self, sequences: Iterable[Sequence], steps: Span) -> None:
        began, first_s, last, count = steps.begin, steps.end_of(1), steps.end, steps.num_steps
        steady: dict[Histogram, int] = {}  # had a token at `began`
        stalled: dict[Histogram, int] = {}
        for seq in sequences:
            call = self.calls[seq]
            line = call.line
            if not call.speaks:  # all of its prompt but a token was cached
                token = SampledToken(TOKEN, len(seq.tokens) - count)
                call.stepped(SequenceUpdate(seq, (token,)), first_s)
                line.tokens -= 1
                stalled[line.gaps] = stalled.get(line.gaps, 0) + 1
            elif line.last == began:
                steady[line.gaps] = steady.get(line.gaps, 0) + 1
            else:
                line.gaps.add(first_s - line.last)
                stalled[line.gaps] = stalled.get(line.gaps, 0) + 1
            line.last = last
            line.tokens += count
        for shares, skipped in ((steady, 0), (stalled, 1)):
            for gaps, share in shares.items():
                for line_ in steps.lines(skipped):
                    gaps.add_line(line_, share)
        self._tell_events()

    def measured(self, first: StepWork, steps: Span) -> None:
        self._reports.measured(first, steps)

    def stepped(self, updates: Items[SequenceUpdate], end: float) -> None:
        for update in updates:
            call = self.calls.get(update.sequence)
            if call is not None:
                call.stepped(update, end)

    def between(self) -> None:
        self._grant()
        self._tell_events()

    # -- reports ---------------------------------------------------------------------------------

    def watch(self, interval_s: float) -> SimStream:
        stream = SimStream(self.where, lambda: self._watchers.remove(stream))
        self._watchers.append(stream)
        stream.put(self._reports.next())
        if self._report_timer is None:  # workers do not all speak at the same moment
            first_s = interval_s * random.Random(f"{self._world.seed} {self.name}").random()
            self._report_timer = self._loop.call_later(first_s, self._tell_load, interval_s)
        return stream

    def _tell_load(self, interval_s: float) -> None:
        self._report_timer = None
        if not self._watchers:
            return
        if self.calls or self._reports.news:
            self._tell()
        self._report_timer = self._loop.call_later(interval_s, self._tell_load, interval_s)

    def _tell(self) -> None:
        """Everything so far, to all who listen."""
        self.engine.settle()
        for call in self.calls.values():
            call.flush()
        report = self._reports.next()
        for stream in self._watchers:
            stream.put(report)

    def check_integrity(self) -> None:
        self.engine.settle()
        self.engine.scheduler.check_integrity()
        self.desk.check_integrity()

    def leftover(self) -> list[str]:
        """What is held for requests, in words."""
        scheduler = self.engine.scheduler
        counts = {
            "calls": len(self.calls),
            "tickets": len(self.desk.tickets.live()),
            "reservations": self.num_reserving,
            "sequences": len(scheduler.waiting) + len(scheduler.running) + len(scheduler.held),
            "pages": scheduler.pool.num_referenced,
        }
        return [f"{count} {what}" for what, count in counts.items() if count]

    @property
    def num_reserving(self) -> int:
        """Calls that wait for pages for KV from elsewhere."""
        return len(self._reservations)

    # -- inside ----------------------------------------------------------------------------------

    def _sequence(self, request: Request, *, hold: bool = False, to_come: int = 0) -> Sequence:
        ask = self._world.ask_of(request.id)
        assert request.params.max_tokens is not None
        most = min(self._most_tokens, request.prompt_len + request.params.max_tokens)
        hasher = AskedHasher(ask, self.sizes.block_size)
        return Sequence(request, hasher, hold=hold, to_come=to_come, most_tokens=most)

    @property
    def _most_tokens(self) -> int:
        pool = self.engine.scheduler.pool
        return min(self.sizes.context_length, pool.most_blocks * pool.block_size)

    def _refusal(self, request: Request) -> KvasirError | None:
        if not self.alive:
            return WorkerFailed(f"{self.where} is down")
        if self.draining:
            return WorkerFailed(f"{self.where} is draining")
        if len(request.token_ids) >= self._most_tokens:
            return ContextTooLong(len(request.token_ids), self._most_tokens)
        return None

    def _closed(self, error: KvasirError) -> SimStream:
        stream = SimStream(self.where)
        stream.close(error)
        return stream

    def _grant(self) -> None:
        """Pages for those whose KV comes from elsewhere, first come, first served."""
        if self._reservations:
            self.engine.interrupt()
        while self._reservations and self.engine.scheduler.reserve(self._reservations[0].seq):
            self._reservations.popleft().reserved()

    def _freed(self) -> None:
        if self.alive:
            self._grant()
            self.engine.wake()

    def _tell_events(self) -> None:
        events = self.engine.scheduler.pool.events.take()
        if events:
            self._world.events(self.name, events)


def _finish(seq: Sequence, token: int) -> FinishReason | None:
    return FinishReason.LENGTH if len(seq.tokens) >= seq.most_tokens else None


def _failed(where: str, error: KvasirError) -> WorkerFailed:
    return WorkerFailed(f"{where}: {error.code}: {error.message}")
