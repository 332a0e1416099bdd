"""What a simulated worker says of itself."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from cluster.simulator.fleet.steps import Span, later
from cluster.simulator.fleet.world import KV_ABI
from workers.core.step_work import MeasuredStep, StepWork
from workers.wire import worker_pb2 as worker
from workers.wire.codec import role_to_wire, step_to_wire

if TYPE_CHECKING:
    from cluster.simulator.fleet.worker import SimWorker

# Of its steps and fetches the newest are reported, in every so manieth report once there were some:
# the others say the same.
STEPS_REPORTED, FETCHES_REPORTED = 8, 1
EVERY, EVERY_AT_FIRST, FIRST_REPORTS = 16, 4, 64


class Reports:
    """Of one worker."""

    def __init__(self, of: SimWorker) -> None:
        self._of = of
        self._measured: deque[tuple[StepWork, Span]] = deque(maxlen=STEPS_REPORTED)
        self._fetches: deque[worker.TransferReport] = deque(maxlen=FETCHES_REPORTED)
        self._count = 0
        self._last: tuple[object, ...] = ()

    def measured(self, first: StepWork, steps: Span) -> None:
        """Each of them had one KV token of each sequence more than the one before."""
        self._measured.append((first, steps))

    def fetched(self, sender: str, num_bytes: int, seconds: float) -> None:
        self._fetches.append(
            worker.TransferReport(
                sender=sender, transport="simulated", num_bytes=num_bytes, seconds=seconds
            )
        )

    @property
    def news(self) -> bool:
        """Whether the next report would differ from the last one. A worker without work, and with
        nothing to tell of it, says nothing."""
        return self._now() != self._last

    def _now(self) -> tuple[object, ...]:
        of, scheduler = self._of, self._of.engine.scheduler
        used, limits = scheduler.pool.num_referenced, (scheduler.max_seqs, scheduler.step_tokens)
        return of.engine.steps, used, limits

    def next(self) -> worker.LoadReport:
        of, scheduler, sizes = self._of, self._of.engine.scheduler, self._of.sizes
        pool = scheduler.pool
        waiting_tokens = sum(seq.num_unlaunched for seq in scheduler.waiting)
        kv_tokens = 0
        for seq in scheduler.running:
            kv_tokens += seq.num_computed
            if seq.num_unlaunched > 1:
                waiting_tokens += seq.num_unlaunched
        steps: list[MeasuredStep] = []
        fetches: list[worker.TransferReport] = []
        if self._count % (EVERY_AT_FIRST if self._count < FIRST_REPORTS else EVERY) == 0:
            steps, fetches = self._newest_steps(), list(self._fetches)
            self._measured.clear()
            self._fetches.clear()
        self._count += 1
        self._last = self._now()
        return worker.LoadReport(
            replica=of.me,
            role=role_to_wire(of.role),
            state="draining" if of.draining else "ready",
            kv_abi=KV_ABI,
            running=len(scheduler.running) + len(scheduler.reserved),
            waiting=len(scheduler.waiting) + of.num_reserving,
            waiting_tokens=waiting_tokens,
            kv_tokens=kv_tokens,
            blocks_total=pool.num_blocks,
            blocks_used=pool.num_referenced,
            blocks_cached=pool.num_idle,
            tickets_open=len(of.desk.tickets.live()),
            prefix_hit_tokens=scheduler.hit_tokens,
            prefix_query_tokens=scheduler.query_tokens,
            preemptions=scheduler.preemptions,
            steps=[step_to_wire(step) for step in steps],
            step_tokens=scheduler.step_tokens,
            kv_bytes_per_token=sizes.token_bytes,
            transfers=fetches,
            max_seqs=sizes.max_seqs,
            most_step_tokens=sizes.step_tokens,
            seqs_limit=scheduler.max_seqs,
        )

    def _newest_steps(self) -> list[MeasuredStep]:
        found: list[MeasuredStep] = []
        for first, steps in reversed(self._measured):
            least = max(0, steps.num_steps - (STEPS_REPORTED - len(found)))
            for place in range(steps.num_steps - 1, least - 1, -1):
                found.append(MeasuredStep(later(first, place), steps.seconds(place)))
        return found[::-1]
