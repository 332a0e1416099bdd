"""Workers of one machine that slow each other down: each step takes longer while others compute."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from workers.core.step_work import StepWork

# A step of one token multiplies matrices with a vector: it waits for memory, where others compute.
StepKind = Literal["single", "several", "prompt"]
KINDS: tuple[StepKind, ...] = get_args(StepKind)


def kind_of(work: StepWork) -> StepKind:
    if work.prefill_tokens:
        return "prompt"
    return "single" if work.decode_seqs == 1 else "several"


@dataclass(frozen=True, slots=True)
class Contention:
    """`slower`: how many times as long a step of a kind (the row, as in KINDS) takes while another
    worker runs one of a kind (the column). Each further worker adds as much again."""

    slower: tuple[tuple[float, ...], ...]

    @classmethod
    def even(cls, slower: float) -> Contention:
        """Whatever they compute."""
        return cls(((slower,) * len(KINDS),) * len(KINDS))

    def factor(self, kind: StepKind, others: Mapping[StepKind, int]) -> float:
        """Of a step beside so many `others` of each kind."""
        row = self.slower[KINDS.index(kind)]
        more = zip(KINDS, row, strict=True)
        return 1.0 + sum(others.get(beside, 0) * (slower - 1.0) for beside, slower in more)


class SharedCores:
    """Who computes now. With every step that begins or ends, all others are timed anew."""

    def __init__(self, contention: Contention) -> None:
        self._contention = contention
        self._steps: dict[SharedStep, None] = {}
        self._loop = asyncio.get_running_loop()

    def begin(self, work: StepWork, seconds: float, over: Callable[[], None]) -> SharedStep:
        """A step that would take so long alone; `over` is called at its end."""
        step = SharedStep(self, kind_of(work), seconds, over)
        self._steps[step] = None
        self._changed()
        return step

    def leave(self, step: SharedStep) -> None:
        if step in self._steps:
            del self._steps[step]
            self._changed()

    def _changed(self) -> None:
        now = self._loop.time()
        kinds = Counter(step.kind for step in self._steps)
        for step in self._steps:
            others = kinds - Counter((step.kind,))
            step.go_on(now, self._contention.factor(step.kind, others))


class SharedStep:
    """A timer of work, not of time."""

    def __init__(
        self, cores: SharedCores, kind: StepKind, seconds: float, over: Callable[[], None]
    ) -> None:
        self.kind = kind
        self._cores = cores
        self._over = over
        self._left_s = seconds
        self._at = 0.0
        self._factor = 0.0  # 0 = not begun
        self._timer: asyncio.TimerHandle | None = None

    def go_on(self, now: float, factor: float) -> None:
        """From `now` on it takes so many times as long."""
        if factor == self._factor:
            return
        if self._factor:
            self._left_s -= (now - self._at) / self._factor
        self._at, self._factor = now, factor
        if self._timer is not None:
            self._timer.cancel()
        end = now + max(0.0, self._left_s) * factor
        self._timer = asyncio.get_running_loop().call_at(end, self._end)

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._cores.leave(self)

    def _end(self) -> None:
        self._cores.leave(self)
        self._over()
