"""How long steps take on one class of hardware, learnt from all its replicas; and how each of them
differs from the rest."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from statistics import median

import numpy as np

from router.latency.fit import fit
from router.latency.samples import Samples
from router.latency.terms import Coefficients, Floats, terms
from workers.core.step_work import MeasuredStep, StepWork

RECENT = 32  # steps of a kind that tell how a replica differs
LEAST_RECENT = 8
MOST_FACTOR = 4.0  # either way
MOST_ODD = 1000.0  # times the prediction, either way: a clock that jumped, not a speed;
MOST_UNKNOWN = 1e5  # before LEAST_RECENT steps: the data sheet may be that of other hardware
SURE = 64  # samples until which every report is learnt from at once
WORTH = 8  # new steps that are worth a fit


class Deviation:
    """By how much one replica differs from its class, with prompts in its steps and without: the
    median over its recent steps, which few stalls do not move, within MOST_FACTOR."""

    def __init__(self) -> None:
        self._recent: dict[bool, deque[MeasuredStep]] = {}
        self.prompts = 1.0
        self.decodes = 1.0

    def of(self, work: StepWork) -> float:
        return self.prompts if work.prefill_tokens else self.decodes

    def learn(self, steps: Sequence[MeasuredStep], coefficients: Coefficients) -> None:
        for step in steps:
            kind = step.work.prefill_tokens > 0
            self._recent.setdefault(kind, deque(maxlen=RECENT)).append(step)
        factors = {
            kind: _factor([seconds / coefficients.step_s(work) for work, seconds in recent])
            for kind, recent in self._recent.items()
            if len(recent) >= LEAST_RECENT
        }
        if factors:  # of a kind that it never ran, the other one says most
            self.prompts = factors.get(True) or factors[False]
            self.decodes = factors.get(False) or factors[True]


class StepTimes:
    """One class: `coefficients` are those of a replica that does not deviate."""

    def __init__(self, prior: Floats) -> None:
        self._prior = prior
        self._samples = Samples()
        self._new_steps = 0
        self._reports = 0
        self.coefficients = Coefficients(prior)
        self._measured: dict[Deviation, None] = {}  # of replicas that reported

    def observe(self, deviation: Deviation, steps: Sequence[MeasuredStep]) -> None:
        """Learns from what has a size and a time that can be; `deviation` is its replica's."""
        self._measured[deviation] = None
        others = list(self._measured)
        usual = {
            True: median(each.prompts for each in others),
            False: median(each.decodes for each in others),
        }
        fine = [step for step in steps if self._may_be(step)]
        for work, seconds in fine:
            # As the replica in the middle would have taken.
            own = deviation.of(work) / usual[work.prefill_tokens > 0]
            self._samples.add(work, seconds / own)
        self._new_steps += len(fine)
        self._reports += 1
        if self._due():
            self._refit()
        deviation.learn(fine, self.coefficients)

    def forget(self, deviation: Deviation) -> None:
        """What the class learnt from it stays."""
        self._measured.pop(deviation, None)

    def _may_be(self, step: MeasuredStep) -> bool:
        if not step.work.prefill_tokens + step.work.decode_seqs or not step.seconds > 0:
            return False
        most = MOST_ODD if len(self._samples) >= LEAST_RECENT else MOST_UNKNOWN
        odd = step.seconds / self.coefficients.step_s(step.work)
        return 1 / most < odd < most

    def _due(self) -> bool:
        """Once a round of reports, so that it costs the same however many replicas there are."""
        if self._new_steps == 0:
            return False
        if len(self._samples) <= SURE:
            return True
        return self._new_steps >= WORTH and self._reports >= len(self._measured)

    def _refit(self) -> None:
        self._new_steps = self._reports = 0
        work, seconds, weights = self._samples.arrays(len(self._measured))
        last = np.array(self.coefficients.values)
        try:
            found = fit(terms(work), seconds, weights, self._prior, last)
        except np.linalg.LinAlgError:  # sizes that no numbers hold beside each other
            return
        if np.isfinite(found).all():
            self.coefficients = Coefficients(found)


def _factor(ratios: Sequence[float]) -> float:
    return min(MOST_FACTOR, max(1 / MOST_FACTOR, median(ratios)))
