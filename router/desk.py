"""What every phase of a request needs: a replica for it, a word about failures, a last one at the
end of the router."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from router.calls import Calls
from router.flight import Binding, BlockIds, Flight
from router.index.prefix import PrefixIndex
from router.latency import LatencyModel
from router.metrics import RouterMetrics
from router.placement.decision import Decision, Need, Phase
from router.placement.placement import Placement
from router.pool import Pool
from router.replica import Replica
from router.worker_client import WorkerFailed
from workers.core.errors import KvasirError, Unavailable
from workers.core.hashing import BlockId

log = logging.getLogger(__name__)

STOPPING = "the router is stopping"


class Desk:
    """Shared by all requests; knows none of them."""

    def __init__(
        self,
        pool: Pool,
        placement: Placement,
        index: PrefixIndex,
        latency: LatencyModel,
        metrics: RouterMetrics,
    ) -> None:
        self.pool = pool
        self.index = index
        self.latency = latency
        self.metrics = metrics
        self.calls = Calls(on_lost=pool.wake)
        self._placement = placement
        self._decoding: dict[str, Replica] = {}  # by request id
        self._stopping = False

    def stop(self) -> None:
        """From now on every request ends with Unavailable, also those under way."""
        self._stopping = True
        for replica in self.pool:
            replica.abort_calls(STOPPING)
        self.pool.wake()

    def check_stopping(self) -> None:
        if self._stopping:
            raise Unavailable(STOPPING, retry_after_s=1.0)

    @contextmanager
    def decoding(self, request_id: str, replica: Replica) -> Iterator[None]:
        """The request decodes there while the block runs."""
        self._decoding[request_id] = replica
        try:
            yield
        finally:
            if self._decoding.get(request_id) is replica:
                del self._decoding[request_id]

    def decodes(self, request_id: str) -> Replica | None:
        """Where the request decodes at this moment."""
        return self._decoding.get(request_id)

    def last_decoding(self, replica: Replica) -> str | None:
        """The request that began to decode there last."""
        found = (name for name, at in reversed(self._decoding.items()) if at is replica)
        return next(found, None)

    async def find(self, flight: Flight, phase: Phase, binding: Binding | None = None) -> Decision:
        """Chooses a replica, waiting for one as long as the budget says. Raises Unavailable; for a
        ticket that is lost meanwhile, WorkerFailed."""
        self.check_stopping()
        if binding is None and (decision := self.find_now(flight, phase)) is not None:
            return decision  # nearly always
        try:
            async with asyncio.timeout(flight.budget.left_s()):
                return await self.find_patiently(flight, phase, binding)
        except TimeoutError:
            need = self._need(flight, phase, binding)
            reasons = ((replica.id, self._placement.refuse(need, replica)) for replica in self.pool)
            flight.trail.nobody(phase, {name: why for name, why in reasons if why is not None})
            raise Unavailable(
                f"no worker is ready to {phase} this request", retry_after_s=1.0
            ) from None

    async def find_patiently(
        self, flight: Flight, phase: Phase, binding: Binding | None = None
    ) -> Decision:
        """Like find(), without an end to its patience."""
        while True:
            self.check_stopping()
            if binding is not None and not binding.alive:
                raise WorkerFailed(f"its KV is gone: {binding.tell()}")
            decision = self.find_now(flight, phase, binding)
            if decision is not None:
                return decision
            if binding is not None and not binding.moving and self._goes_on_alone(flight):
                raise WorkerFailed(f"nobody is there to decode it: {binding.tell()}")
            await self.pool.wait_changed()

    def find_now(
        self, flight: Flight, phase: Phase, binding: Binding | None = None
    ) -> Decision | None:
        """None: nobody can take it at this moment, or of a running sequence only where it is."""
        decision = self._placement.place(self._need(flight, phase, binding), self.pool)
        if decision is None:
            return None
        if binding is not None and binding.moving and decision.replica is binding.replica:
            return None
        if log.isEnabledFor(logging.DEBUG):
            log.debug("%s: %s on %s", flight.id, phase, decision.explain())
        return decision

    def _goes_on_alone(self, flight: Flight) -> bool:
        """Whether a replica is up that may prefill and decode it, in whatever role."""
        need = self._need(flight, "prefill", None)
        return self._placement.any_alone and any(
            self._placement.refuse(need, replica) is None for replica in self.pool
        )

    def _need(self, flight: Flight, phase: Phase, binding: Binding | None) -> Need:
        cached, ids = self._look_up(flight.blocks)
        kv_abi = sender = None
        avoid = flight.avoid
        if binding is not None:
            kv_abi, sender = binding.ticket.kv_abi, binding.replica.id
            if binding.moving:
                avoid = {*avoid, binding.incarnation}
        return Need(
            phase, len(flight.tokens), cached, kv_abi, avoid, sender, ids, targets=flight.targets
        )

    def expected_s(self, blocks: BlockIds) -> float:
        """Predicted seconds of prefill where the least of it is left to compute; 0 without anybody
        who could."""
        cached, _ = self._look_up(blocks)
        count, best = len(blocks.tokens), dict[str, tuple[int, str]]()  # of each pool, the deepest
        for replica in self._able("prefill"):
            hit, pool = cached.get(replica.id, 0), replica.record.pool
            known = best.get(pool)
            if known is None or hit > known[0]:
                best[pool] = hit, replica.id
        work_s = (self.latency.prefill_s(name, count - hit, hit) for hit, name in best.values())
        return min(work_s, default=0.0)

    def _able(self, phase: Phase) -> list[Replica]:
        serves = self._placement.serves
        return [replica for replica in self.pool if replica.up and serves(replica, phase)]

    def _look_up(self, blocks: BlockIds) -> tuple[Mapping[str, int], Sequence[BlockId]]:
        """Leading tokens that each replica holds, and the ids asked for. Admission and placement
        ask one after the other: the index is asked again only where it has changed."""
        kinds = sorted({(r.kv_abi, r.record.block_size) for r in self.pool if r.up})
        ids = [blocks.of(*kind) for kind in kinds]
        asked = self.index.changes, len(blocks.tokens), kinds
        if blocks.found is None or blocks.found[0] != asked:
            cached: dict[str, int] = {}
            for (_, size), of_kind in zip(kinds, ids, strict=True):
                depths = self.index.match(of_kind)
                cached.update((name, depth * size) for name, depth in depths.items())
            blocks.found = asked, cached
        return blocks.found[1], ids[-1] if ids else ()

    async def recover(
        self, flight: Flight, error: KvasirError, again: str, story: str = ""
    ) -> None:
        """Counts the failure and pauses before the next try. Raises when there is none."""
        self.check_stopping()
        pause = flight.budget.failed(error)
        self.metrics.retried(again)
        log.warning("%s: %s again: %s", flight.id, again, story or error.message)
        await asyncio.sleep(pause)
