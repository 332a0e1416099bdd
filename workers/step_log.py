"""Measured steps, for those who learn from them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from workers.core.batch import Batch
from workers.core.step_work import MeasuredStep, StepWork

WARMUP_STEPS = 3  # of each kind; allocation and caches make them slow, the latency model skips them
KEPT = 256


class StepLog:
    """`recorded` since start, of which the newest are kept. `heard` is told of all, those of the
    warm-up too."""

    def __init__(self) -> None:
        self.heard: Callable[[StepWork, float], object] = lambda work, seconds: None
        self.newest: deque[MeasuredStep] = deque(maxlen=KEPT)
        self.recorded = 0
        self._warmup = {True: WARMUP_STEPS, False: WARMUP_STEPS}  # with prefill, without

    def record(self, batch: Batch, seconds: float) -> None:
        work = StepWork.of(batch)
        self.heard(work, seconds)
        prefill = work.prefill_tokens > 0
        if self._warmup[prefill] > 0:
            self._warmup[prefill] -= 1
            return
        self.newest.append(MeasuredStep(work, seconds))
        self.recorded += 1
