"""The steps of one simulated worker: a real scheduler, and a timer where the model would be.

Nothing happens between the ends of steps but what comes from outside. So a run of equal decode
steps is one timer; whoever looks at the worker, or gives it something to do, first has it catch up
with the clock.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Protocol

from cluster.simulator.fleet.cores import SharedCores, SharedStep
from cluster.simulator.fleet.steps import Ends, LineEnds, Span, StepTimes, later
from cluster.simulator.fleet.stream import TOKEN
from workers.core.batch import Batch, SequenceUpdate
from workers.core.request import Sequence
from workers.core.scheduler_runs import RunScheduler
from workers.core.step_work import StepWork


class Follower(Protocol):
    """Hears what steps did."""

    def ran(self, sequences: Iterable[Sequence], steps: Span) -> None:
        """In each of these steps these sequences sampled a token, none of them their last."""

    def stepped(self, updates: Items[SequenceUpdate], end: float) -> None:
        """What else a step did that ended then."""

    def measured(self, first: StepWork, steps: Span) -> None:
        """The same steps as a worker would measure them; the first one computed `first`, each of
        the others one KV token more of each of its sequences."""

    def between(self) -> None:
        """After each step, before the next one begins: who waits for pages may get some."""


@dataclass(slots=True)
class _Run:
    """A batch under way that is to run `count` times; `done` of them are over."""

    batch: Batch
    work: StepWork
    began: float
    ends: Ends
    count: int
    done: int = 0

    def end_of(self, step: int) -> float:
        """When the first `step` are over."""
        return self.began + self.ends.after(step)

    def span(self, end: int) -> Span:
        """From what is done up to step `end`."""
        return Span(self.began, self.ends, self.done, end - self.done)


class SimEngine:
    """`busy_s`: time in steps so far, as far as they are settled. On `cores` that others compute
    on, too, nobody knows when a run will end, so steps are taken one by one."""

    def __init__(
        self,
        scheduler: RunScheduler,
        times: StepTimes,
        follower: Follower,
        cores: SharedCores | None = None,
    ) -> None:
        self.scheduler = scheduler
        self.busy_s = 0.0
        self.steps = 0
        self._times = times
        self._follower = follower
        self._cores = cores
        self._loop = asyncio.get_running_loop()
        self._run: _Run | None = None
        self._timer: asyncio.TimerHandle | SharedStep | None = None
        self._waking: asyncio.Handle | None = None

    def settle(self) -> None:
        """Whatever is over by now has happened."""
        run = self._run
        if run is None:
            return
        done = min(run.ends.done(self._loop.time() - run.began), run.count - 1)
        if done > run.done:
            self._advance(run, done)

    def interrupt(self) -> None:
        """Something is about to change: settled, and the run ends with the step under way."""
        self.settle()
        run = self._run
        if run is not None and run.count > run.done + 1:
            run.count = run.done + 1
            self._set_timer(run)

    def wake(self) -> None:
        """There may be something to do."""
        if self._run is None and self._waking is None:
            self._waking = self._loop.call_soon(self._woken)

    def stop(self) -> None:
        """For ever; the step under way is lost."""
        self.settle()
        for handle in (self._timer, self._waking):
            if handle is not None:
                handle.cancel()
        if self._run is not None:
            self.busy_s += self._loop.time() - self._run.end_of(self._run.done)
        self._run = None

    def busy_until_now(self) -> float:
        run = self._run
        return self.busy_s + (self._loop.time() - run.end_of(run.done) if run is not None else 0.0)

    # -- inside ----------------------------------------------------------------------------------

    def _woken(self) -> None:
        self._waking = None
        if self._run is None:
            self._begin(self._loop.time())

    def _begin(self, now: float) -> None:
        batch = self.scheduler.schedule()
        if batch is None:
            return
        work = StepWork.of(batch)
        for chunk in batch.chunks:
            if chunk.sequence.admitted_at is None:
                chunk.sequence.admitted_at = now
        more = 0 if self._cores is not None else self.scheduler.repeats(batch)
        if more:
            ends, count = self._times.run(work, 1 + more)
        else:
            ends, count = self._times.one(work), 1
        self._run = _Run(batch, work, now, ends, count)
        self._set_timer(self._run)

    def _set_timer(self, run: _Run) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._cores is None:
            self._timer = self._loop.call_at(run.end_of(run.count), self._end)
        else:
            self._timer = self._cores.begin(run.work, run.ends.after(1), self._end)

    def _advance(self, run: _Run, done: int) -> None:
        """`done` steps of it are over, not the last one."""
        steps = run.span(done)
        run.batch = self.scheduler.advance(run.batch, steps.num_steps, TOKEN)
        first, run.work, run.done = run.work, later(run.work, steps.num_steps), done
        self._count(steps)
        self._follower.measured(first, steps)
        self._follower.ran((chunk.sequence for chunk in run.batch.chunks), steps)

    def _end(self) -> None:
        run = self._run
        assert run is not None
        if run.count - 1 > run.done:
            self._advance(run, run.count - 1)
        if self._cores is not None:
            run.ends = LineEnds(self._loop.time() - run.began, 0.0)
        steps, now = run.span(run.count), run.end_of(run.count)
        self._timer = self._run = None
        self._count(steps)
        self._follower.measured(run.work, steps)
        longer, updates = self.scheduler.land(run.batch, TOKEN)
        self._follower.ran(longer, steps)
        self._follower.stepped(updates, now)
        self._follower.between()
        self._begin(now)

    def _count(self, steps: Span) -> None:
        self.steps += steps.num_steps
        self.busy_s += steps.end - steps.begin
        self._times.over(steps.num_steps)
