"""What requests are like of late: lengths by class, how many of each, how bursty."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cluster.planner.lengths import Lengths
from cluster.planner.signals import ClassSignals, Signals

OVER_S = 600.0  # how far back
LEAST_BURSTS, MOST_BURSTS = 1.0, 50.0
MOST_LONGER = 3.0
TYPICAL_PROMPT, TYPICAL_OUTPUT = 1024, 256  # tokens, until requests say


@dataclass(frozen=True, slots=True)
class ClassMix:
    """`share` of arrivals. `held`: mean prompt of a sequence at a random moment of its decoding,
    None = as any prompt. `cached`: mean tokens of a prompt that are not computed."""

    slo_class: str
    share: float
    prompts: Lengths
    uncached: Lengths
    outputs: Lengths
    held: float | None = None

    @property
    def token_steps(self) -> float:
        """Tokens of KV held, summed over the steps of one answer."""
        prompt = self.prompts.mean if self.held is None else self.held
        return self.outputs.mean * prompt + self.outputs.mean_square / 2

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
        self.told_s = 0.0  # for how long
        self._under_way = 0.0  # tokens of answers that did not end yet
        self._made, self._ended = 0.0, 0.0  # tokens: of all steps, of answers that ended

    def note(self, signals: Signals, expected: float) -> None:
        """`expected`: arrivals that were foreseen for this interval."""
        self.told_s += signals.interval_s
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
                old.held * keep + each.held,
            )
            name = each.slo_class
            self._arrivals[name] = self._arrivals.get(name, 0.0) + each.arrivals
        ended = sum(each.outputs.mean * each.outputs.weight for each in signals.classes)
        under_way = self._under_way if signals.made is None else signals.made
        self._made = self._made * keep + ended + under_way - self._under_way
        self._ended = self._ended * keep + ended
        self._under_way = under_way
        if expected > 0:
            self._squares = self._squares * keep + (signals.arrivals - expected) ** 2
            self._expected = self._expected * keep + expected

    @property
    def answers(self) -> float:
        """That ended of late."""
        return sum(each.outputs.weight for each in self._classes.values())

    @property
    def _longer(self) -> float:
        """Answers are so much longer than those that ended: all tokens that were made, over as many
        ends, which is what is most likely where ends come by chance."""
        if not self._ended:
            return 1.0
        return min(MOST_LONGER, max(1.0 / MOST_LONGER, self._made / self._ended))

    @property
    def mix(self) -> Mix:
        total = sum(self._arrivals.values())
        longer = self._longer
        classes = tuple(
            ClassMix(
                name,
                self._arrivals[name] / total if total else 1.0 / len(self._classes),
                each.prompts if each.prompts.weight else Lengths.of([TYPICAL_PROMPT]),
                each.uncached if each.uncached.weight else Lengths.of([TYPICAL_PROMPT]),
                each.outputs.times(longer) if each.outputs.weight else Lengths.of([TYPICAL_OUTPUT]),
                each.held / (each.outputs.mean * each.outputs.weight) if each.held else None,
            )
            for name, each in self._classes.items()
        )
        bursts = self._squares / self._expected
        return Mix(classes, min(MOST_BURSTS, max(LEAST_BURSTS, bursts)))
