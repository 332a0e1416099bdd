"""What is to be carried: the busiest stretch of a trace, and what its requests are like."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cluster.bench.workload import Job
from cluster.planner.lengths import Lengths
from cluster.planner.mix import LEAST_BURSTS, MOST_BURSTS, ClassMix, Mix
from cluster.sizing.question import SLO_CLASS
from router.flow.classes import SloClass
from workers.core.errors import ConfigError

WINDOW_S = 300.0
STAYS = 4  # of an answer: the window is at least so long
WARM_UP_STAYS = 1.5
TYPICAL_ITL_S = 0.05  # where there is no target
BIN_S = 10.0  # in which requests are counted, to see bursts
LEAST_BINS = 6


@dataclass(frozen=True, slots=True)
class Load:
    """`jobs`: what is played, times from 0, which was `starts_s` of the trace; those of the first
    `warm_up_s` are not judged. `rate`: requests a second after that. `hit`: part of their prompt
    tokens that came before. `longest`: tokens of a prompt with its answer. `left_out`: requests of
    the trace that are longer than the model's context."""

    jobs: tuple[Job, ...]
    warm_up_s: float
    window_s: float
    starts_s: float
    rate: float
    hit: float
    longest: int
    left_out: int
    mix: Mix

    @property
    def whole_s(self) -> float:
        return self.warm_up_s + self.window_s


def read_load(
    jobs: Sequence[Job],
    slo: SloClass,
    *,
    context_length: int,
    rate: float | None = None,
    window_s: float = WINDOW_S,
    most_requests: int = 1000,
) -> Load:
    """`rate`: the mean that the whole trace is played at. Raises ConfigError where no rate can be
    told."""
    fitting = [job for job in jobs if job.input_tokens + job.output_tokens <= context_length]
    if not fitting:
        raise ConfigError(
            f"all {len(jobs)} requests of the trace are longer than the model's context of "
            f"{context_length:,} tokens; the shortest has "
            f"{min(job.input_tokens + job.output_tokens for job in jobs):,}"
        )
    span_s = fitting[-1].at_s - fitting[0].at_s
    if span_s <= 0:
        raise ConfigError(
            f"the trace has {len(fitting)} requests at one moment, which makes no rate; give one "
            "with at least two moments"
        )
    if rate is not None:
        speed = rate * span_s / (len(fitting) - 1)
        fitting = [replace(job, at_s=job.at_s / speed) for job in fitting]
        span_s /= speed
    stay_s = _mean([job.output_tokens for job in fitting]) * (slo.itl or TYPICAL_ITL_S)
    window_s = max(min(window_s, most_requests * span_s / len(fitting)), STAYS * stay_s)
    whole_s = min(span_s, WARM_UP_STAYS * stay_s + window_s)
    played = _busiest(fitting, whole_s)
    return _load(
        played, whole_s, min(WARM_UP_STAYS * stay_s, whole_s / 3), len(jobs) - len(fitting)
    )


def _busiest(jobs: Sequence[Job], whole_s: float) -> list[Job]:
    """Of all stretches so long that begin with a request, the one with the most tokens."""
    tokens = [0, *np.cumsum([job.input_tokens + job.output_tokens for job in jobs]).tolist()]
    times = [job.at_s for job in jobs]
    ends = np.searchsorted(times, np.array(times) + whole_s, side="right").tolist()
    last = times[-1] - whole_s  # those that begin later are shorter
    starts = [place for place, at_s in enumerate(times) if at_s <= last + 1e-9] or [0]
    first = max(starts, key=lambda place: tokens[ends[place]] - tokens[place])
    return list(jobs[first : ends[first]])


def _load(played: Sequence[Job], whole_s: float, warm_up_s: float, left_out: int) -> Load:
    starts_s = played[0].at_s
    jobs = tuple(replace(job, at_s=job.at_s - starts_s) for job in played)
    uncached = list(_uncached(jobs))
    judged = [place for place, job in enumerate(jobs) if job.at_s >= warm_up_s]
    if not judged:
        raise ConfigError(
            f"no request of the trace comes in the {whole_s - warm_up_s:,.0f} s that are judged: "
            "it is too short or too slow; a higher --rate makes it denser"
        )
    prompts = [jobs[place].input_tokens for place in judged]
    answers = [jobs[place].output_tokens for place in judged]
    computed = [uncached[place] for place in judged]
    window_s = whole_s - warm_up_s
    of_class = ClassMix(
        SLO_CLASS,
        1.0,
        Lengths.of(prompts),
        Lengths.of(computed),
        Lengths.of(answers),
        sum(p * a for p, a in zip(prompts, answers, strict=True)) / sum(answers),
    )
    times = [jobs[place].at_s - warm_up_s for place in judged]
    return Load(
        jobs,
        warm_up_s,
        window_s,
        starts_s,
        len(judged) / window_s,
        1 - sum(computed) / sum(prompts),
        max(job.input_tokens + job.output_tokens for job in jobs),
        left_out,
        Mix((of_class,), _bursts(times, window_s)),
    )


def _uncached(jobs: Sequence[Job]) -> Iterator[int]:
    """Of each prompt the tokens behind the blocks that came before; the last one always."""
    seen: set[str] = set()
    for job in jobs:
        found = 0
        for name in job.blocks:
            if name not in seen:
                break
            found += job.block_size
        seen.update(job.blocks)
        yield max(1, job.input_tokens - found)


def _bursts(times: Sequence[float], window_s: float) -> float:
    """Index of dispersion of the counts in bins of BIN_S; that of Poisson where bins are few."""
    bins = int(window_s / BIN_S)
    if bins < LEAST_BINS:
        return LEAST_BURSTS
    counts = np.bincount((np.array(times) / BIN_S).astype(int), minlength=bins)[:bins]
    return float(min(MOST_BURSTS, max(LEAST_BURSTS, counts.var() / counts.mean())))


def _mean(values: Sequence[int]) -> float:
    return sum(values) / len(values)
