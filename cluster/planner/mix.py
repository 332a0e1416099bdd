"""What requests are like of late: lengths by class, how many of each, how bursty."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cluster.planner.lengths import Lengths
from cluster.planner.signals import ClassSignals, Signals

OVER_S = 600.0  # how far back
LEAST_BURSTS, MOST_BURSTS = 1.0, 50.0
TYPICAL_PROMPT, TYPICAL_OUTPUT = 1024, 256  # tokens, until requests say


@dataclass(frozen=True, slots=True)
class ClassMix:
    """`share` of arrivals. `cached`: mean tokens of a prompt that are not computed."""

    slo_class: str
    share: float
    prompts: Lengths
    uncached: Lengths
    outputs: Lengths

    @property
    def cached(self) -> float:
        return max(0.0, self.prompts.mean - self.uncached.mean)


@dataclass(frozen=True, slots=True)
class Mix:
    """`bursts`: index of dispersion of arrivals, 1 = Poisson."""

    classes: tuple[ClassMix, ...]
    bursts: float = 1.0


class Recent:
    """Exponential averages over OVER_S."""

    def __init__(self) -> None:
        self._classes: dict[str, ClassSignals] = {}
        self._arrivals: dict[str, float] = {}
        self._squares, self._expected = 1.0, 1.0

    def note(self, signals: Signals, expected: float) -> None:
        """`expected`: arrivals that were foreseen for this interval."""
        keep = math.exp(-signals.interval_s / OVER_S)
        for name in self._arrivals:
            self._arrivals[name] *= keep
        for each in signals.classes:
            old = self._classes.get(each.slo_class) or ClassSignals(each.slo_class, 0)
            self._classes[each.slo_class] = ClassSignals(
                each.slo_class,
                each.arrivals,
                each.queued,
                old.prompts.plus(each.prompts, keep),
                old.uncached.plus(each.uncached, keep),
                old.outputs.plus(each.outputs, keep),
            )
            name = each.slo_class
            self._arrivals[name] = self._arrivals.get(name, 0.0) + each.arrivals
        if expected > 0:
            self._squares = self._squares * keep + (signals.arrivals - expected) ** 2
            self._expected = self._expected * keep + expected

    @property
    def mix(self) -> Mix:
        total = sum(self._arrivals.values())
        classes = tuple(
            ClassMix(
                name,
                self._arrivals[name] / total if total else 1.0 / len(self._classes),
                each.prompts if each.prompts.weight else Lengths.of([TYPICAL_PROMPT]),
                each.uncached if each.uncached.weight else Lengths.of([TYPICAL_PROMPT]),
                each.outputs if each.outputs.weight else Lengths.of([TYPICAL_OUTPUT]),
            )
            for name, each in self._classes.items()
        )
        bursts = self._squares / self._expected
        return Mix(classes, min(MOST_BURSTS, max(LEAST_BURSTS, bursts)))
