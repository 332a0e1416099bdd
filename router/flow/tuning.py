"""SLO targets made into engine sizes: the largest decode batch and prefill chunk that keep them.

Solved with the latency model and sent to the workers whenever the answer changes. A worker never
takes more than it was started with, so a model that knows too little can only be too generous.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from router.latency import LatencyModel
from router.placement.moment import MARGIN
from router.replica import Replica
from workers.core.errors import KvasirError
from workers.core.step_work import StepWork

log = logging.getLogger(__name__)

LOOK_EVERY_S = 2.0
CHANGED = 0.1  # a smaller part of a size is not worth a message
TYPICAL_CONTEXT = 1024  # tokens of a sequence, until one decodes
LEAST_CHUNK = 16  # tokens; a smaller one costs a step and computes nothing
DECODE_PART = 0.5  # of the target, where prompts are computed in the same steps


@dataclass(frozen=True, slots=True)
class Sizes:
    max_seqs: int
    step_tokens: int


def largest(fits: Callable[[int], bool], least: int, most: int) -> int:
    """The largest of least..most that fits, where smaller ones fit too; `least` if none does."""
    while least < most:
        middle = (least + most + 1) // 2
        if fits(middle):
            least = middle
        else:
            most = middle - 1
    return least


def decode_cap(
    latency: LatencyModel, replica: str, itl_s: float, context_tokens: int, most: int
) -> int:
    """Sequences of `context_tokens` each whose step takes no longer than `itl_s`."""
    return largest(
        lambda count: latency.decode_s(replica, count, count * context_tokens) <= itl_s, 1, most
    )


def chunk_budget(
    latency: LatencyModel, replica: str, itl_s: float, num_seqs: int, kv_tokens: int, most: int
) -> int:
    """Tokens of a step that decodes `num_seqs` sequences and prefills with the rest of `itl_s`. It
    is predicted as one step, whatever chunks the replica takes now."""

    def fits(tokens: int) -> bool:
        chunk = StepWork.chunk(tokens, 0)
        step = chunk._replace(decode_seqs=num_seqs, decode_kv=kv_tokens)
        return latency.step_s(replica, step) <= itl_s

    return min(largest(fits, LEAST_CHUNK, most) + num_seqs, most)


class EngineTuner:
    """run() until cancelled. `itl_s()`: the tightest target of what is served now, if any."""

    def __init__(
        self, replicas: Iterable[Replica], latency: LatencyModel, itl_s: Callable[[], float | None]
    ) -> None:
        self._replicas = replicas
        self._latency = latency
        self._itl_s = itl_s

    async def run(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(LOOK_EVERY_S)

    async def look(self) -> None:
        """Tell those whose sizes, as they last reported them, should be others."""
        for replica in list(self._replicas):
            load = replica.load
            if not replica.up or not load.max_seqs:
                continue
            sizes, now = self.sizes(replica), Sizes(load.seqs_limit, load.step_tokens)
            if not _differ(sizes, now):
                continue
            try:
                await replica.client.set_limits(sizes.max_seqs, sizes.step_tokens)
            except KvasirError as error:
                log.debug("%s keeps its sizes: %s", replica.id, error.message)
                continue
            log.info("%s: %s instead of %s", replica.id, sizes, now)

    def sizes(self, replica: Replica) -> Sizes:
        """What keeps the target on this replica. As it was started where there is none to keep: it
        prefills and nobody stayed, or not even one sequence alone would be in time."""
        load = replica.load
        most = Sizes(load.max_seqs, load.most_step_tokens)
        itl_s = self._itl_s()
        if itl_s is not None:
            itl_s *= 1 - MARGIN
        prefills = replica.role == "prefill"
        if itl_s is None or (prefills and not replica.decoding):
            return most
        latency, name = self._latency, replica.id
        seqs, tokens = replica.num_seqs, replica.kv_tokens
        context = tokens // seqs if tokens and seqs else TYPICAL_CONTEXT
        decode_itl_s = itl_s * DECODE_PART if replica.role == "aggregated" else itl_s
        if latency.decode_s(name, 1, context) > decode_itl_s:
            return most
        cap = decode_cap(latency, name, decode_itl_s, context, most.max_seqs)
        if prefills:  # sequences that stay with it are few, and prompts need places as well
            seqs, cap = replica.decoding, most.max_seqs
        count = min(seqs, cap)
        budget = chunk_budget(latency, name, itl_s, count, count * context, most.step_tokens)
        return Sizes(cap, budget)


def _differ(new: Sizes, old: Sizes) -> bool:
    pairs = ((new.max_seqs, old.max_seqs), (new.step_tokens, old.step_tokens))
    return any(abs(a - b) > CHANGED * max(a, b) for a, b in pairs)
