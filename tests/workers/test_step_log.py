"""Measured steps on their way to routers."""

from __future__ import annotations

from workers.core.batch import Batch, Chunk
from workers.core.step_work import MeasuredStep, StepWork
from workers.step_log import KEPT, WARMUP_STEPS, StepLog
from workers.wire import worker_pb2 as worker
from workers.wire.codec import step_from_wire, step_to_wire


def batch(start: int, tokens: int, *, sample: bool) -> Batch:
    return Batch((Chunk(None, start, tokens, sample),))  # type: ignore[arg-type]


PROMPT, DECODE = batch(0, 64, sample=True), batch(64, 1, sample=True)


def test_the_first_steps_of_each_kind_are_warm_up() -> None:
    log = StepLog()
    for _ in range(WARMUP_STEPS + 1):
        log.record(DECODE, 0.5)
    assert list(log.newest) == [MeasuredStep(StepWork.decode(1, 65), 0.5)]
    for _ in range(WARMUP_STEPS + 2):
        log.record(PROMPT, 0.7)
    assert list(log.newest)[1:] == [MeasuredStep(StepWork.chunk(64, 0), 0.7)] * 2
    assert log.recorded == 3


def test_only_the_newest_are_kept() -> None:
    log = StepLog()
    for _ in range(2 * KEPT):
        log.record(DECODE, 0.5)
    assert len(log.newest) == KEPT and log.recorded == 2 * KEPT - WARMUP_STEPS


def test_a_step_comes_over_the_wire_as_it_was() -> None:
    step = MeasuredStep(StepWork(512, 1 << 20, 1 << 40, 3, 1 << 33), 0.25)
    sent = step_to_wire(step).SerializeToString()
    assert step_from_wire(worker.StepReport.FromString(sent)) == step
