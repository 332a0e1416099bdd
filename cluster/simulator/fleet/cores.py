"""Workers of one machine that slow each other down: each step takes longer while others compute."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from workers.core.step_work import StepWork


@dataclass(frozen=True, slots=True)
class Contention:
    """How many times as long a step takes while another worker computes: one of decodes alone or
    one that holds a prompt, beside one of either kind. Each further worker adds as much again."""

    decode_by_decode: float = 1.0
    decode_by_prompt: float = 1.0
    prompt_by_decode: float = 1.0
    prompt_by_prompt: float = 1.0

    def factor(self, prompt: bool, decodes: int, prompts: int) -> float:
        """Of a step that holds a `prompt` or not, beside so many others."""
        if prompt:
            by_decode, by_prompt = self.prompt_by_decode, self.prompt_by_prompt
        else:
            by_decode, by_prompt = self.decode_by_decode, self.decode_by_prompt
        return 1.0 + decodes * (by_decode - 1.0) + prompts * (by_prompt - 1.0)


class SharedCores:
    """Who computes now. With every step that begins or ends, all others are timed anew."""

    def __init__(self, contention: Contention) -> None:
        self._contention = contention
        self._steps: dict[SharedStep, None] = {}
        self._loop = asyncio.get_running_loop()

    def begin(self, work: StepWork, seconds: float, over: Callable[[], None]) -> SharedStep:
        """A step that would take so long alone; `over` is called at its end."""
        step = SharedStep(self, work.prefill_tokens > 0, seconds, over)
        self._steps[step] = None
        self._changed()
        return step

    def leave(self, step: SharedStep) -> None:
        if step in self._steps:
            del self._steps[step]
            self._changed()

    def _changed(self) -> None:
        now = self._loop.time()
        prompts = sum(step.prompt for step in self._steps)
        decodes = len(self._steps) - prompts
        for step in self._steps:
            beside = (decodes, prompts - 1) if step.prompt else (decodes - 1, prompts)
            step.go_on(now, self._contention.factor(step.prompt, *beside))


class SharedStep:
    """A timer of work, not of time."""

    def __init__(
        self, cores: SharedCores, prompt: bool, seconds: float, over: Callable[[], None]
    ) -> None:
        self.prompt = prompt
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
