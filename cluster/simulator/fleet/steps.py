"""When the steps of a run end: in closed form where their times are a line, else one by one."""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate, islice
from typing import NamedTuple, Protocol

from workers.core.step_work import StepWork

StepSeconds = Callable[[StepWork], float]

LINE = 1e-10  # relative distance from a line that counts as none
NOISY_RUN = 256  # steps for which noise is drawn ahead


class Ends(Protocol):
    """Of the steps of one run, counted from its beginning."""

    def after(self, count: int) -> float:
        """Seconds that the first `count` steps take together."""

    def done(self, seconds: float) -> int:
        """Steps that are over after so long."""

    def lines(self, before: int, count: int) -> Iterable[Line]:
        """What `count` steps behind the first `before` take."""


class Line(NamedTuple):
    """`num_steps` steps, each `growth_s` longer than the one before it."""

    first_s: float
    growth_s: float
    num_steps: int


class Span(NamedTuple):
    """`num_steps` steps of a run that began at `began`, behind its first `before` ones."""

    began: float
    ends: Ends
    before: int
    num_steps: int

    @property
    def begin(self) -> float:
        return self.began + self.ends.after(self.before)

    def end_of(self, steps: int) -> float:
        """When the first `steps` of these are over."""
        return self.began + self.ends.after(self.before + steps)

    @property
    def end(self) -> float:
        return self.end_of(self.num_steps)

    def lines(self, skipped: int = 0) -> Iterable[Line]:
        """What they take, but for the first `skipped`."""
        return self.ends.lines(self.before + skipped, self.num_steps - skipped)

    def seconds(self, step: int) -> float:
        return self.end_of(step + 1) - self.end_of(step)


class LineEnds:
    """Step i (from 0) takes first_s + i * growth_s."""

    def __init__(self, first_s: float, growth_s: float) -> None:
        self._first_s = first_s
        self._growth_s = growth_s

    def after(self, count: int) -> float:
        return count * self._first_s + self._growth_s * (count * (count - 1) // 2)

    def done(self, seconds: float) -> int:
        half = self._growth_s / 2
        linear = self._first_s - half
        if half:
            root = math.sqrt(max(0.0, linear * linear + 4 * half * seconds))
            guess = int((root - linear) / (2 * half))
        else:
            guess = int(seconds / linear)
        guess = max(0, guess)
        while self.after(guess + 1) <= seconds:
            guess += 1
        while guess and self.after(guess) > seconds:
            guess -= 1
        return guess

    def lines(self, before: int, count: int) -> Iterable[Line]:
        if count:
            yield Line(self._first_s + before * self._growth_s, self._growth_s, count)


class ListedEnds:
    """Each step has a time of its own."""

    def __init__(self, seconds: Sequence[float]) -> None:
        self._seconds = seconds
        self._ends = list(accumulate(seconds))

    def after(self, count: int) -> float:
        return self._ends[count - 1] if count else 0.0

    def done(self, seconds: float) -> int:
        return bisect_right(self._ends, seconds)

    def lines(self, before: int, count: int) -> Iterable[Line]:
        return (Line(seconds, 0.0, 1) for seconds in self._seconds[before : before + count])


class Noise:
    """What real steps are longer than predicted ones, factor after factor, lognormal with mean 1.
    Each step has its own, however steps are taken together."""

    def __init__(self, sigma: float, seed: str) -> None:
        self.sigma = sigma
        self._rng = random.Random(seed)
        self._ahead: deque[float] = deque()

    def peek(self, count: int) -> list[float]:
        """Of the next `count` steps."""
        while len(self._ahead) < count:
            self._ahead.append(self._rng.lognormvariate(-(self.sigma**2) / 2, self.sigma))
        return list(islice(self._ahead, count))

    def drop(self, count: int) -> None:
        """So many steps are over."""
        for _ in range(count):
            self._ahead.popleft()


class StepTimes:
    """Predicts runs. `step_s`: what one step takes, without noise."""

    def __init__(self, step_s: StepSeconds, noise: Noise | None = None) -> None:
        self._step_s = step_s
        self._noise = noise

    def one(self, work: StepWork) -> Ends:
        seconds = self._step_s(work)
        if self._noise is not None:
            seconds *= self._noise.peek(1)[0]
        return LineEnds(seconds, 0.0)

    def run(self, work: StepWork, count: int) -> tuple[Ends, int]:
        """Of at most `count` steps of decodes alone, the first of which is `work` and each of which
        reads one KV token more of each sequence; and how many steps that holds for."""
        if self._noise is not None:
            count = min(count, NOISY_RUN)
            steps = (self._step_s(later(work, place)) for place in range(count))
            factors = self._noise.peek(count)
            return ListedEnds([s * f for s, f in zip(steps, factors, strict=True)]), count
        first_s = self._step_s(work)
        while count > 1:
            last_s = self._step_s(later(work, count - 1))
            growth_s = (last_s - first_s) / (count - 1)
            middle = (count - 1) // 2
            line_s = first_s + middle * growth_s
            # Rooflines are convex: where the middle lies on the chord, everything between does.
            if abs(self._step_s(later(work, middle)) - line_s) <= LINE * line_s:
                return LineEnds(first_s, growth_s), count
            count = (count + 1) // 2
        return LineEnds(first_s, 0.0), 1

    def over(self, count: int) -> None:
        """So many steps have run."""
        if self._noise is not None:
            self._noise.drop(count)


def later(work: StepWork, steps: int) -> StepWork:
    """A step of decodes so many steps on: each sequence has one KV token more for each."""
    tokens, kv, pairs, seqs, decode_kv = work
    return StepWork(tokens, kv, pairs, seqs, decode_kv + steps * seqs)
