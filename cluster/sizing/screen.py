"""Candidates by arithmetic: the planner's queueing models, in milliseconds each.

A prefill and a decode pool are sized as the planner does it. An aggregated replica is taken as both
at once: its decodes leave a part of every step to prompts, which is what the router's tuner gives
them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from cluster.planner.decode_model import KV_SHARE, MARGIN, MOST_BUSY, DecodeModel
from cluster.planner.needs import Rates, Servers, Sizer, least
from cluster.planner.prefill_model import PrefillModel
from cluster.simulator.linear import LinearModel
from cluster.sizing.candidate import Candidate, PoolName, Sized
from cluster.sizing.engines import MOST_REPLICAS, Engine
from cluster.sizing.load import Load
from cluster.sizing.question import SLO_CLASS, Question
from router.flow.classes import SloConfig
from router.flow.tuning import DECODE_PART, chunk_budget, decode_cap
from router.latency import LatencyModel
from workers.core.step_work import StepWork

PARTS = 12  # halvings of the load, to find what part of it can be held


class Screened(NamedTuple):
    """`attainment`: as the models expect it."""

    candidate: Candidate
    attainment: float


class AggregatedModel:
    """Replicas that prefill and decode in the same steps. `places`: sequences of one that leave
    prompts their part of the ITL target."""

    def __init__(self, load: Load, latency: LatencyModel, engine: Engine, slo: SloConfig) -> None:
        self._load, self._latency, self._engine, self._slo = load, latency, engine, slo
        self._output = load.mix.classes[0].outputs.mean
        itl_s = slo.classes[SLO_CLASS].itl
        self._step_s = None if itl_s is None else itl_s * (1 - MARGIN)
        self.context = DecodeModel(load.mix, latency, engine.spec("aggregated"), slo).context
        context = math.ceil(self.context)
        self.places = min(engine.sizes.max_seqs, int(KV_SHARE * engine.sizes.kv_tokens / context))
        self.keeps_target = self.places > 0
        if self._step_s is not None:
            part_s = self._step_s * DECODE_PART
            self.keeps_target &= latency.decode_s(engine.name, 1, context) <= part_s
            self.places = decode_cap(latency, engine.name, part_s, context, max(1, self.places))

    def attainment(self, replicas: int, rate: float) -> float:
        """Of both targets; it falls with the rate and rises with the replicas."""
        if not self.keeps_target or not replicas:
            return 0.0
        name, most = self._engine.name, self._engine.sizes.step_tokens
        seqs, chunk, step_s = 1, most - 1, 0.0
        for _ in range(4):  # more sequences, longer steps, more sequences
            kv_tokens = math.ceil(seqs * self.context)
            if self._step_s is not None:
                chunk = (
                    chunk_budget(self._latency, name, self._step_s, seqs, kv_tokens, most) - seqs
                )
            work = StepWork.chunk(max(1, chunk), 0)
            step_s = self._latency.step_s(
                name, work._replace(decode_seqs=seqs, decode_kv=kv_tokens)
            )
            there = rate * self._output * step_s / replicas
            if there >= MOST_BUSY * self.places:
                return 0.0
            seqs = max(1, math.ceil(there))
        speed = LinearModel(max(1, chunk) / step_s)
        return PrefillModel(self._load.mix, speed, name, self._slo).attainment(replicas, rate)


class Screen:
    """All that could be, at some part of the load."""

    def __init__(
        self, question: Question, load: Load, latency: LatencyModel, engines: Sequence[Engine]
    ) -> None:
        self._question = question
        self._rate = load.rate
        self.engines = engines
        slo = SloConfig(classes={SLO_CLASS: question.slo}, default=SLO_CLASS)
        self.prefill = {e.name: PrefillModel(load.mix, latency, e.name, slo) for e in engines}
        self.decode = {
            e.name: DecodeModel(load.mix, latency, e.spec("decode"), slo) for e in engines
        }
        self._shared = {e.name: AggregatedModel(load, latency, e, slo) for e in engines}

    def apart(self, part: float = 1.0) -> list[Screened]:
        """Of each pair of engines the cheapest that holds that part of the load, cheapest first."""
        pairs = ((p, d) for p in self.engines for d in self.engines)
        return _ranked(found for p, d in pairs if (found := self._pair(p, d, part)))

    def together(self, part: float = 1.0) -> list[Screened]:
        """Of each engine the fewest aggregated replicas that do."""
        return _ranked(found for e in self.engines if (found := self._alone(e, part)))

    def busier(self, candidate: Candidate) -> PoolName:
        """Of a prefill and a decode pool under the whole load."""
        prefill, decode = candidate.pools
        prefills = self.prefill[prefill.engine.name].busy(prefill.replicas, self._rate)
        decodes = self.decode[decode.engine.name].busy(decode.replicas, self._rate)
        return "prefill" if prefills > decodes else "decode"

    def best_part(self) -> tuple[float, Screened | None]:
        """The largest part of the load that something within the GPUs holds, and what does."""
        low, high, best = 0.0, 1.0, None
        for _ in range(PARTS):
            middle = (low + high) / 2
            found = _ranked([*self.apart(middle)[:1], *self.together(middle)[:1]])
            low, high = (middle, high) if found else (low, middle)
            best = found[0] if found else best
        return low, best

    def _pair(self, prefill: Engine, decode: Engine, part: float) -> Screened | None:
        rate, goal = part * self._rate, self._question.goal
        sizer = Sizer(
            self.prefill[prefill.name],
            self.decode[decode.name],
            Servers(MOST_REPLICAS, MOST_REPLICAS),
            (prefill.cost, decode.cost),
            lambda servers: self._within(
                servers.prefill * prefill.gpus + servers.decode * decode.gpus
            ),
        )
        need = sizer.need(Rates(rate, rate), goal)
        if not need.feasible:
            return None
        pools = (
            Sized("prefill", prefill, need.servers.prefill),
            Sized("decode", decode, need.servers.decode),
        )
        return Screened(Candidate(pools), need.attainment)

    def _alone(self, engine: Engine, part: float) -> Screened | None:
        rate, model = part * self._rate, self._shared[engine.name]
        ceiling = self.prefill[engine.name].ceiling
        if ceiling < self._question.goal:
            return None
        count = least(
            lambda replicas: model.attainment(replicas, rate) >= self._question.goal, MOST_REPLICAS
        )
        if count is None or not self._within(count * engine.gpus):
            return None
        found = Candidate((Sized("aggregated", engine, max(1, count)),))
        return Screened(found, model.attainment(count, rate) * ceiling)

    def _within(self, gpus: int) -> bool:
        return self._question.gpus is None or gpus <= self._question.gpus


def _ranked(found: Iterable[Screened]) -> list[Screened]:
    return sorted(found, key=lambda each: (each.candidate.cost, -each.attainment))
