"""Equal decode steps taken at once leave everything as one after the other does."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.simulator.fleet.steps import LineEnds, ListedEnds, Noise, StepTimes
from workers.core.batch import Batch, StepOutput
from workers.core.block_pools import BlockPools
from workers.core.events import KVEvent
from workers.core.hashing import BlockHasher, namespace
from workers.core.request import (
    FinishReason,
    Request,
    SampledToken,
    SamplingParams,
    Sequence,
    SequenceStatus,
)
from workers.core.scheduler_runs import RunScheduler
from workers.core.step_work import StepWork

BLOCK = 4


@dataclass
class Engine:
    """A scheduler and a count of steps instead of a clock. `most`: steps taken at once."""

    blocks: int
    shards: int
    most: int
    step: int = 0
    said: list[object] = field(default_factory=list)
    longest: int = 0
    under_way: Batch | None = None
    more: int = 0

    def __post_init__(self) -> None:
        self.scheduler = RunScheduler(
            BlockPools(self.blocks * self.shards, BLOCK, self.shards),
            step_tokens=12,
            max_seqs=5,
            finish=lambda seq, _: (
                FinishReason.LENGTH if len(seq.tokens) >= seq.most_tokens else None
            ),
        )

    def until(self, step: int) -> None:
        """Steps up to that one are over, and the one after it is under way, if there is work."""
        self.launch()
        while self.step < step:
            if self.under_way is None:
                self.step = step
                return
            count = min(self.more, self.most, step - self.step)
            if count:
                self.longest = max(self.longest, count)
                self.under_way = self.scheduler.advance(self.under_way, count)
                self.step += count
                self.more -= count
            else:
                self.land()
                self.launch()

    def launch(self) -> None:
        if self.under_way is None:
            self.under_way = self.scheduler.schedule()
            self.more = self.scheduler.repeats(self.under_way) if self.under_way else 0

    def interrupt(self) -> None:
        """Something comes from outside: the step under way is the last of its run."""
        self.more = 0

    def land(self) -> None:
        assert self.under_way is not None
        chunks = self.under_way.chunks
        self.step += 1
        if self.most:
            _, updates = self.scheduler.land(self.under_way)
        else:
            output = StepOutput(tuple(SampledToken(0, c.end) for c in chunks if c.sample))
            updates = self.scheduler.update(self.under_way, output)
        for update in updates:
            if update.finished:
                self.said.append((self.step, "finished", update.sequence.id))
        self.under_way = None

    def state(self) -> object:
        events: list[KVEvent] = self.scheduler.pool.events.take()
        self.said.append([(event.kind, event.blocks) for event in events])
        self.scheduler.check_integrity()
        return (
            self.step,
            self.scheduler.preemptions,
            [(s.id, s.status, len(s.tokens), s.num_computed, s.num_launched, tuple(s.blocks))
             for s in (*self.scheduler.running, *self.scheduler.waiting)],
        )  # fmt: skip


def sequence(name: str, prompt: int, most: int, *, hold: bool = False) -> Sequence:
    """Nobody's prompt begins as another's, nor with what another one generates."""
    tokens = (int(name) + 1,) * prompt
    request = Request(name, tokens, prompt, SamplingParams(ignore_eos=True))
    hasher = BlockHasher(namespace("test", cache_salt=name), BLOCK)
    return Sequence(request, hasher, hold=hold, most_tokens=prompt + most)


ARRIVALS = st.lists(
    st.tuples(
        st.integers(0, 12),  # steps since the one before
        st.integers(1, 30),  # tokens of the prompt
        st.integers(1, 40),  # generated
        st.sampled_from(("run", "run", "run", "hold", "abort")),
    ),
    min_size=1,
    max_size=9,
)


@settings(max_examples=80)
@given(ARRIVALS, st.integers(18, 60), st.sampled_from((1, 2)), st.integers(2, 100))
def test_runs_leave_what_single_steps_leave(
    arrivals: list[tuple[int, int, int, str]], blocks: int, shards: int, most: int
) -> None:
    engines = [Engine(blocks, shards, 0), Engine(blocks, shards, most)]
    at = 0
    everyone: list[list[Sequence]] = [[], []]
    for number, (gap, prompt, generated, what) in enumerate(arrivals):
        at += gap
        for engine, own in zip(engines, everyone, strict=True):
            engine.until(at)
            engine.interrupt()
            if what == "abort" and own:
                engine.scheduler.abort(own[0])
            seq = sequence(f"{number}", prompt, generated, hold=what == "hold")
            own.append(seq)
            engine.scheduler.add(seq)
        assert engines[0].state() == engines[1].state()
    for engine, own in zip(engines, everyone, strict=True):
        for round_ in range(1, len(own) + 2):  # one that is held may be in the way of the next
            engine.until(at + 500 * round_)
            engine.interrupt()
            for seq in own:
                if seq.status is SequenceStatus.HELD:
                    engine.scheduler.abort(seq)
    assert engines[0].state() == engines[1].state()
    assert flat(engines[0].said) == flat(engines[1].said)
    assert all(seq.status is SequenceStatus.FINISHED for own in everyone for seq in own)


def flat(said: list[object]) -> list[object]:
    """Ends in their order; block after block, however they were packed."""
    ends = [what for what in said if isinstance(what, tuple)]
    packed = (events for events in said if isinstance(events, list))
    blocks = [(kind, b) for events in packed for kind, ids in events for b in ids]
    return [ends, blocks]


def test_a_run_is_as_long_as_nobody_ends_and_pages_last() -> None:
    engine = Engine(blocks=10, shards=1, most=1000)
    scheduler = engine.scheduler
    for name, prompt, most in (("0", 4, 30), ("1", 5, 12)):
        scheduler.add(sequence(name, prompt, most))
    batch = scheduler.schedule()
    assert batch is not None and scheduler.repeats(batch) == 0, "prompts are no decodes"
    engine.under_way = batch
    engine.land()
    batch = scheduler.schedule()
    assert batch is not None
    assert scheduler.repeats(batch) == 10, "with its eleventh step the shorter one ends"
    scheduler.pool.shards[0].allocate(3)
    assert scheduler.repeats(batch) == 7, "three pages are there, the next one is missing then"


def test_times_of_a_line_are_summed_as_one_by_one() -> None:
    ends = LineEnds(0.01, 3e-6)
    summed = list(itertools.accumulate(0.01 + 3e-6 * place for place in range(500)))
    for count in (1, 2, 77, 500):
        assert ends.after(count) == pytest.approx(summed[count - 1], rel=1e-12)
        assert ends.done(summed[count - 1] * (1 + 1e-12)) == count
        assert ends.done(summed[count - 1] * (1 - 1e-12)) == count - 1
    assert ends.done(0.0) == 0


def test_where_times_bend_the_run_ends() -> None:
    def step_s(work: StepWork) -> float:
        return max(0.01, work.decode_kv * 1e-6)

    times = StepTimes(step_s)
    ends, count = times.run(StepWork.decode(8, 9000), 600)  # 10,000 tokens after 125 steps
    assert 1 < count <= 126
    assert ends.after(count) == pytest.approx(0.01 * count, rel=1e-12)
    ends, count = times.run(StepWork.decode(8, 11_000), 600)
    assert count == 600
    total = sum(step_s(StepWork.decode(8, 11_000 + 8 * place)) for place in range(600))
    assert ends.after(600) == pytest.approx(total, rel=1e-9)


def test_noise_is_the_same_however_steps_are_taken_together() -> None:
    def step_s(work: StepWork) -> float:
        return 0.01 + work.decode_kv * 1e-7

    work = StepWork.decode(3, 100)
    together, alone = (StepTimes(step_s, Noise(0.2, "seed")) for _ in range(2))
    ends, count = together.run(work, 40)
    assert isinstance(ends, ListedEnds) and count == 40
    single = []
    for place in range(40):
        single.append(alone.one(work._replace(decode_kv=100 + 3 * place)).after(1))
        alone.over(1)
    assert ends.after(40) == pytest.approx(sum(single), rel=1e-12)
    together.over(7)
    alone_again, _ = together.run(work._replace(decode_kv=121), 33)
    assert alone_again.after(33) == pytest.approx(sum(single[7:]), rel=1e-12)


def test_noise_has_mean_one() -> None:
    factors = Noise(0.3, "seed").peek(20_000)
    assert sum(factors) / len(factors) == pytest.approx(1.0, abs=0.01)
    assert min(factors) > 0
