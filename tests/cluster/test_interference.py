"""Workload (e)'s timing, on a server that is modelled in virtual time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cluster.bench.client import Sample, Target
from cluster.bench.interference import Interference, Plan, Window
from cluster.bench.report import percentile
from cluster.bench.workload import Job
from tests.cluster.fake_openai import FakeOpenAI
from workers.core.clock import SystemClock, VirtualClock, run_virtual
from workers.core.errors import Unavailable

STEP_S, PREFILL_S = 0.05, 0.8
PLAN = Plan(streams=3, stream_output=100_000, every_s=4.0, quiet_s=5.0, loaded_s=12.0)


class OneEngine(Target):
    """Decodes all streams together every STEP_S; a long prompt stops them for PREFILL_S."""

    def __init__(self, breaks_after: int | None = None) -> None:
        self._engine = asyncio.Lock()
        self._breaks_after = breaks_after
        self.jobs: list[Job] = []

    async def stream(self, job: Job, sample: Sample) -> None:
        now = asyncio.get_running_loop().time
        self.jobs.append(job)
        if job.input_tokens > 1000:
            async with self._engine:
                await asyncio.sleep(PREFILL_S)
        for number in range(job.output_tokens):
            if number == self._breaks_after:
                sample.error = "gone"
                return
            await asyncio.sleep(STEP_S)
            async with self._engine:
                sample.arrivals.append(now())
        sample.output_tokens = job.output_tokens
        sample.ended = now()

    async def send(self, job: Job, *, due: float) -> Sample:
        sample = Sample(due=due, sent=asyncio.get_running_loop().time())
        await self.stream(job, sample)
        return sample


def run(plan: Plan, **engine: Any) -> tuple[Interference, OneEngine, Window, Window]:
    async def inside() -> tuple[Interference, OneEngine, Window, Window]:
        target = OneEngine(**engine)
        interference = Interference(target, VirtualClock(), plan, "seed")
        return interference, target, *await interference.run()

    return run_virtual(inside())


def test_stalls_show_in_the_loaded_window_alone() -> None:
    interference, _, quiet, loaded = run(PLAN)
    calm = quiet.gaps_within(interference.steady)
    busy = loaded.gaps_across(interference.steady)
    assert max(calm) == pytest.approx(STEP_S)
    assert len(calm) == pytest.approx(3 * 5.0 / STEP_S, abs=3)
    assert max(busy) >= PREFILL_S
    assert percentile(busy, 0.5) == pytest.approx(STEP_S)
    assert sum(gap >= PREFILL_S for gap in busy) == 3 * 3  # three prompts, three streams
    assert loaded.tokens_per_s(interference.steady) < 0.9 * quiet.tokens_per_s(interference.steady)


def test_prompts_arrive_at_their_pace_whatever_became_of_the_others() -> None:
    interference, engine, _, loaded = run(Plan(every_s=0.5, loaded_s=3.0))
    due = sorted(sample.due - loaded.began for sample in interference.prompts)
    assert due == pytest.approx([0, 0.5, 1, 1.5, 2, 2.5])
    assert all(s.sent == pytest.approx(s.due) for s in interference.prompts)
    # this engine takes 0.8 s for each, so there is a queue
    assert max(s.ttft for s in interference.prompts) > 2 * PREFILL_S
    long = [job for job in engine.jobs if job.input_tokens == 2048]
    assert len({job.seed for job in engine.jobs}) == len(engine.jobs)  # nothing is cached
    assert {job.output_tokens for job in long} == {16}


def test_a_stall_that_reaches_beyond_the_window_counts_in_full() -> None:
    sample = Sample(due=0, sent=0, arrivals=[1.0, 2.0, 9.0, 9.5])
    assert Window(2.5, 3.0).gaps_across([sample]) == [7.0]
    assert Window(1.5, 3.0).gaps_across([sample]) == [1.0, 7.0]
    assert Window(0.5, 3.0).gaps_within([sample]) == [1.0]
    assert Window(1.5, 3.0).tokens_per_s([sample]) == pytest.approx(1 / 1.5)


def test_streams_that_end_begin_anew_with_another_prompt() -> None:
    interference, engine, quiet, _ = run(Plan(streams=1, stream_output=10, loaded_s=4.0))
    assert len(interference.steady) > 10
    assert len({job.seed for job in engine.jobs}) == len(engine.jobs)
    # the gap between the end of one stream and the first token of the next is nobody's ITL
    assert max(quiet.gaps_within(interference.steady)) == pytest.approx(STEP_S)


def test_a_broken_stream_ends_the_run() -> None:
    with pytest.RaisesGroup(
        pytest.RaisesExc(Unavailable, match="broke: gone"), flatten_subgroups=True
    ):
        run(Plan(streams=1), breaks_after=5)


async def test_a_watched_sample_is_the_one_that_is_filled() -> None:
    async with FakeOpenAI().client() as client:
        target = Target(client, SystemClock(), "fake")
        sample = Sample(due=0.0, sent=0.0)
        await target.stream(Job(0.0, 7, 3, "watched"), sample)
    assert (sample.input_tokens, sample.output_tokens, len(sample.arrivals)) == (7, 3, 3)
    assert sample.ended > 0
