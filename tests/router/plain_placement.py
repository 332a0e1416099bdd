"""What router/placement predicts, said as plainly as can be: one replica after the other, nothing
kept, nothing shared. The formulas are those of ways.py."""

from __future__ import annotations

from router.latency import LatencyModel
from router.placement.decision import Need
from router.placement.duty import Duty
from router.placement.joint import LEAST_GAIN, LEAST_GAIN_S
from router.placement.moment import CHUNK, LEAST_CHUNK, MARGIN, STEPS_UNTIL_FREE, TOKENS, price
from router.placement.ways import LATE, QUEUED, risk_s
from router.replica import Replica
from workers.core.clock import Clock
from workers.core.step_work import StepWork

Gap = tuple[float, float, float]  # first gap, mean time between tokens, what is counted


class Plain:
    """`duty`: whoever chooses says what was given."""

    def __init__(self, latency: LatencyModel, clock: Clock) -> None:
        self.duty = Duty(clock)
        self._latency = latency

    def queue_s(self, replica: Replica) -> float:
        return replica.pending_tokens * (self._latency.prefill_s(replica.id, QUEUED, 0) / QUEUED)

    def prefill(self, need: Need, replica: Replica) -> tuple[float, float]:
        cached = need.cached.get(replica.id, 0)
        step_s = self._latency.decode_s(replica.id, replica.decoding, replica.decoding_kv)
        work_s = self._latency.prefill_s(replica.id, need.num_tokens - cached, cached)
        return self.queue_s(replica) + step_s, work_s

    def decode(self, need: Need, replica: Replica) -> tuple[float, float]:
        kv_tokens = replica.decoding_kv + need.num_tokens
        step_s = self._latency.decode_s(replica.id, replica.decoding + 1, kv_tokens)
        return self._short(need, replica) * STEPS_UNTIL_FREE * step_s, step_s

    def alone(self, need: Need, replica: Replica) -> tuple[float, float, Gap]:
        """Waiting, work, and what follows."""
        latency, name, seqs = self._latency, replica.id, replica.decoding
        cached = need.cached.get(name, 0)
        new = need.num_tokens - cached
        wait_s, work_s = self.queue_s(replica), latency.prefill_s(name, new, cached)
        if seqs:
            kv_tokens = replica.decoding_kv
            chunk, mixed_s = self._mixed(replica, seqs, kv_tokens, cached + new // 2)
            wait_s = latency.decode_s(name, seqs, kv_tokens) / 2
            wait_s += replica.pending_tokens / chunk * mixed_s
            work_s = max(work_s, new / chunk * mixed_s)
        step_s = latency.decode_s(name, seqs + 1, replica.decoding_kv)
        wait_s += self._short(need, replica) * STEPS_UNTIL_FREE * step_s
        gap_s, itl_s, after_s = self._after(need, replica, work_s)
        after_s += max(0.0, gap_s - need.targets.itl_s) + self._late_s(need, wait_s + work_s)
        after_s += risk_s(itl_s, gap_s, work_s, need.targets.itl_s)
        if replica.role != "aggregated":
            after_s += LEAST_GAIN_S + LEAST_GAIN * work_s
        return wait_s, work_s, (gap_s, itl_s, after_s)

    def split(self, need: Need, prefill: Replica, decode: Replica) -> Gap:
        wait_s, work_s = self.prefill(need, prefill)
        new = need.num_tokens - need.cached.get(prefill.id, 0)
        fetched = need.num_tokens - need.cached.get(decode.id, 0)
        num_bytes = fetched * decode.kv_bytes_per_token
        transfer_s = self._latency.transfer_s(num_bytes, prefill.id, decode.id)
        if prefill.id in decode.quarantined:
            transfer_s *= 2
        last = min(1.0, (prefill.step_tokens or new) / new)
        room_s, step_s = self.decode(need, decode)
        gap_s = room_s + step_s + max(last * transfer_s, transfer_s - work_s)
        itl_s, after_s = self._after(need, decode, 0.0)[1:]
        after_s += max(0.0, gap_s - need.targets.itl_s)
        other_s = self._latency.prefill_s(decode.id, fetched, need.num_tokens - fetched)
        after_s += risk_s(itl_s, step_s, other_s, need.targets.itl_s)
        return gap_s, itl_s, after_s + self._late_s(need, wait_s + work_s)

    def _after(self, need: Need, replica: Replica, work_s: float) -> Gap:
        seqs, kv_tokens, targets = replica.decoding, replica.decoding_kv, need.targets
        with_it = kv_tokens + need.num_tokens
        itl_s = self._between_s(replica, seqs + 1, with_it, work_s)
        after_s = price(1, itl_s, (1 - MARGIN) * targets.itl_s)
        if seqs:
            before_s = self._between_s(replica, seqs, kv_tokens, 0.0)
            after_s += price(seqs, itl_s, (1 - MARGIN) * targets.others_itl_s)
            after_s -= price(seqs, before_s, (1 - MARGIN) * targets.others_itl_s)
        step_s = self._latency.decode_s(replica.id, seqs + 1, with_it)
        return step_s, itl_s, max(0.0, after_s)

    def _between_s(self, replica: Replica, seqs: int, kv_tokens: int, more_s: float) -> float:
        step_s = self._latency.decode_s(replica.id, seqs, kv_tokens)
        soon = (self.queue_s(replica) + more_s) / (TOKENS * step_s)
        duty = max(self.duty.part(replica.id, more_s), min(0.95, soon))
        _, mixed_s = self._mixed(replica, seqs, kv_tokens, 0)
        return 1 / (duty / mixed_s + (1 - duty) / step_s)

    def _mixed(
        self, replica: Replica, seqs: int, kv_tokens: int, context: int
    ) -> tuple[int, float]:
        chunk = max(LEAST_CHUNK, (replica.step_tokens or CHUNK) - seqs)
        work = StepWork.chunk(chunk, context)._replace(decode_seqs=seqs, decode_kv=kv_tokens)
        return chunk, self._latency.step_s(replica.id, work)

    def _short(self, need: Need, replica: Replica) -> float:
        cached, limit = need.cached.get(replica.id, 0), replica.seqs_limit
        pages = max(0, need.num_tokens - cached - replica.free_tokens) / need.num_tokens
        places = max(0, replica.decoding - limit + 1) / limit if limit else 0.0
        return pages + places

    def _late_s(self, need: Need, ttft_s: float) -> float:
        return LATE * max(0.0, ttft_s - need.targets.ttft_s)
