"""One decision's view of the replicas: what several ways ask of one is worked out once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from router.latency import LatencyModel
from router.placement.decision import Need
from router.placement.duty import MOST, Duty
from router.replica import Replica
from workers.core.step_work import StepWork

TOKENS = 100  # of an answer that are still to come: nobody knows
NEAR = 0.1
MARGIN = 0.1  # of an ITL target: a mean that is predicted to just keep it is missed by half of all
STEPS_UNTIL_FREE = 100  # decode steps until pages, or a place in the batch, come free
CHUNK = 2048  # tokens of a step, where a replica has not said
LEAST_CHUNK = 16


class Look:
    """A replica at that moment. `cached`: leading tokens of the prompt that it holds; `seqs`,
    `kv_tokens`: what it decodes. The others are seconds, None until somebody asks: of its queue, of
    the prompt there, of a decode step with it, of work given of late, and between tokens without
    it."""

    __slots__ = (
        "bare_s", "before_s", "cached", "given_s", "kv_tokens", "name", "queue_s", "replica",
        "seqs", "step_s",
    )  # fmt: skip

    def __init__(self, replica: Replica, cached: int) -> None:
        self.replica = replica
        self.name = replica.id
        self.cached = cached
        self.seqs = replica.decoding
        self.kv_tokens = replica.decoding_kv
        self.queue_s: float | None = None
        self.bare_s: float | None = None
        self.step_s: float | None = None
        self.given_s: float | None = None
        self.before_s: float | None = None


class Moment:
    """Asks the latency model. `pending_s(replica, now)`: seconds of prompts that wait there."""

    __slots__ = (
        "_duty", "_latency", "_limit_s", "_looks", "_need", "_now", "_others_limit_s", "_pending_s",
        "_window_s",
    )  # fmt: skip

    def __init__(
        self,
        latency: LatencyModel,
        duty: Duty,
        pending_s: Callable[[Replica, float], float],
        need: Need,
        now: float,
    ) -> None:
        self._latency = latency
        self._duty = duty
        self._pending_s = pending_s
        self._need = need
        self._now = now
        self._window_s = 0.0  # until somebody asks
        targets = need.targets
        self._limit_s = (1 - MARGIN) * targets.itl_s
        self._others_limit_s = (1 - MARGIN) * targets.others_itl_s
        self._looks: dict[str, Look] = {}

    def look(self, replica: Replica) -> Look:
        name = replica.id
        look = self._looks.get(name)
        if look is None:
            look = self._looks[name] = Look(replica, self._need.cached.get(name, 0))
        return look

    def queue_s(self, look: Look) -> float:
        """Of prompts that wait there, computed one after the other."""
        seconds = look.queue_s
        if seconds is None:
            seconds = look.queue_s = self._pending_s(look.replica, self._now)
        return seconds

    def bare_s(self, look: Look) -> float:
        """Computing the prompt there, beside nothing."""
        seconds = look.bare_s
        if seconds is None:
            new = self._need.num_tokens - look.cached
            seconds = look.bare_s = self._latency.prefill_s(look.name, new, look.cached)
        return seconds

    def step_s(self, look: Look) -> float:
        """A decode step there with it."""
        seconds = look.step_s
        if seconds is None:
            kv_tokens = look.kv_tokens + self._need.num_tokens
            seconds = look.step_s = self._latency.decode_s(look.name, look.seqs + 1, kv_tokens)
        return seconds

    def prefills(self, replicas: Sequence[Replica]) -> tuple[list[int], list[float], list[float]]:
        """Cached tokens, waiting and work of each: the queue of uncached tokens, then its own.
        Where it decodes too the step under way comes before both. No looks: there are many."""
        latency, tokens, now = self._latency, self._need.num_tokens, self._now
        hit_of, pending_s, prefill_s = self._need.cached.get, self._pending_s, latency.prefill_s
        cached, waits, works = [], [], []
        for replica in replicas:
            name, wait_s, seqs = replica.id, pending_s(replica, now), replica.decoding
            if seqs:
                wait_s += latency.decode_s(name, seqs, replica.decoding_kv)
            hit = hit_of(name, 0)
            cached.append(hit)
            waits.append(wait_s)
            works.append(prefill_s(name, tokens - hit, hit))
        return cached, waits, works

    def alone(self, look: Look) -> tuple[float, float]:
        """Waiting and work where the replica computes its prompt beside its own decodes, a chunk in
        each step."""
        cached, seqs = look.cached, look.seqs
        if not seqs:
            return self.queue_s(look), self.bare_s(look)
        new, pending = self._need.num_tokens - cached, look.replica.pending_tokens
        step_s = self._latency.decode_s(look.name, seqs, look.kv_tokens)
        chunk, mixed_s = self._mixed(look, seqs, look.kv_tokens, cached + new // 2)
        queue_s = step_s / 2 + pending / chunk * mixed_s
        return queue_s, max(self.bare_s(look), new / chunk * mixed_s)

    def room_s(self, look: Look) -> float:
        """Until there are pages and a place for what is computed there."""
        short = self._short(look.replica, look.cached, look.seqs)
        if not short:
            return 0.0
        step_s = self._latency.decode_s(look.name, look.seqs + 1, look.kv_tokens)
        return short * STEPS_UNTIL_FREE * step_s

    def decodes(self, replicas: Sequence[Replica]) -> tuple[list[int], list[float], list[float]]:
        """Cached tokens of each, waiting for pages and a place, a step with one sequence more."""
        tokens, decode_s, hit_of = (
            self._need.num_tokens,
            self._latency.decode_s,
            self._need.cached.get,
        )
        cached, waits, steps = [], [], []
        for replica in replicas:
            hit, seqs = hit_of(replica.id, 0), replica.decoding
            step_s = decode_s(replica.id, seqs + 1, replica.decoding_kv + tokens)
            cached.append(hit)
            waits.append(self._short(replica, hit, seqs) * STEPS_UNTIL_FREE * step_s)
            steps.append(step_s)
        return cached, waits, steps

    def _short(self, replica: Replica, cached: int, seqs: int) -> float:
        """The part of its pages, and of all places, that must come free before it can decode
        there."""
        tokens, limit = self._need.num_tokens, replica.seqs_limit
        missing = tokens - cached - replica.free_tokens
        share = missing / tokens if missing > 0 else 0.0
        if limit and seqs >= limit:
            share += (seqs - limit + 1) / limit
        return share

    def after(self, look: Look, work_s: float) -> tuple[float, float, float]:
        """Its first gap, its ITL and what is counted, where the replica decodes it; `work_s`: of
        its prompt, there."""
        seqs, with_it, step_s = look.seqs, look.kv_tokens + self._need.num_tokens, self.step_s(look)
        itl_s = self.between_s(look, seqs + 1, with_it, step_s, work_s)
        after_s = price(1, itl_s, self._limit_s)
        if seqs:
            before_s, limit_s = look.before_s, self._others_limit_s
            if before_s is None:
                alone_s = self._latency.decode_s(look.name, seqs, look.kv_tokens)
                before_s = self.between_s(look, seqs, look.kv_tokens, alone_s, 0.0)
                look.before_s = before_s
            after_s += price(seqs, itl_s, limit_s) - price(seqs, before_s, limit_s)
        return step_s, itl_s, after_s if after_s > 0.0 else 0.0

    def between_s(
        self, look: Look, seqs: int, kv_tokens: int, step_s: float, more_s: float
    ) -> float:
        """Mean time between the tokens of decodes whose steps take `step_s`: of the last while, or
        of the next, as a queue of prompts and `more_s` keep it busy, whatever was before."""
        given_s = look.given_s
        if given_s is None:
            given_s = look.given_s = self._duty.left_s(look.name, self._now)
        if not self._window_s:
            self._window_s = self._duty.window_s(self._now)
        duty = (given_s + more_s) / self._window_s
        soon = (self.queue_s(look) + more_s) / (TOKENS * step_s)
        if soon > duty:
            duty = soon
        if duty > MOST:
            duty = MOST
        if duty <= 0:
            return step_s
        _, mixed_s = self._mixed(look, seqs, kv_tokens, 0)
        return 1 / (duty / mixed_s + (1 - duty) / step_s)

    def _mixed(self, look: Look, seqs: int, kv_tokens: int, context: int) -> tuple[int, float]:
        """Prompt tokens in a step that holds a chunk too, and how long it takes. `context`: tokens
        that the chunk stands behind."""
        chunk = (look.replica.step_tokens or CHUNK) - seqs
        if chunk < LEAST_CHUNK:
            chunk = LEAST_CHUNK
        pairs = chunk * context + chunk * (chunk + 1) // 2
        work = StepWork(chunk, context + chunk, pairs, seqs, kv_tokens)
        return chunk, self._latency.step_s(look.name, work)


def price(seqs: int, itl_s: float, limit_s: float) -> float:
    """Seconds that `seqs` sequences wait for tokens, as placement counts them. `limit_s`: their ITL
    target less the margin."""
    over_s = itl_s - limit_s
    return seqs * TOKENS * (NEAR * itl_s + (over_s if over_s > 0.0 else 0.0))
