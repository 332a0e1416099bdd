"""When a ticket is bound: while its prompt is still computed (early), or after the first token.

Late, the whole transfer stands between the first token and the second. Early, it runs beside the
prefill, and what stands there is the last chunk's part, or what the time left was too short for.
The price are decode pages that hold nothing useful until then.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from router.latency import LatencyModel
from router.placement.decision import Decision
from router.replica import Replica

MIN_GAIN_S = 2e-3  # less is lost in the messages that a second open call costs
KEPT_FREE = 1 / 8  # of the decode pages, for those that decode there already


class Timing(StrEnum):
    """How a ticket is bound, and why."""

    EARLY = "early"
    LATE_LITTLE_GAIN = "late: little gain"
    LATE_PAGES = "late: decode pages are short"


@dataclass(frozen=True, slots=True)
class Overlap:
    """What is known when the ticket is opened.

    `transfer_s`: of all bytes that decode does not cache. `last_s`: of those that the last chunk
    computes. `prefill_left_s`: until the first token. Tokens are counted on the decode side:
    `wanted_tokens` of `free_tokens` of `capacity_tokens`.
    """

    transfer_s: float
    last_s: float
    prefill_left_s: float
    wanted_tokens: int
    free_tokens: int
    capacity_tokens: int

    @property
    def early_gap_s(self) -> float:
        """Between the first token and the second, beyond a decode step."""
        return max(self.last_s, self.transfer_s - self.prefill_left_s)

    @property
    def gain_s(self) -> float:
        return self.transfer_s - self.early_gap_s

    def choose(self) -> Timing:
        if self.gain_s < MIN_GAIN_S:
            return Timing.LATE_LITTLE_GAIN
        if self.free_tokens - self.wanted_tokens < KEPT_FREE * self.capacity_tokens:
            return Timing.LATE_PAGES
        return Timing.EARLY

    def explain(self) -> str:
        return (
            f"{self.choose()} (transfer {self.transfer_s * 1e3:.1f} ms beside "
            f"{self.prefill_left_s * 1e3:.1f} ms of prefill hides {self.gain_s * 1e3:.1f} ms; "
            f"{self.wanted_tokens} of {self.free_tokens} free tokens)"
        )


def overlap(
    latency: LatencyModel, prefill: Replica, decode: Decision, num_tokens: int, pending_tokens: int
) -> Overlap:
    """Of a prompt of `num_tokens`, of which `prefill` has `pending_tokens` left to compute."""
    receiver = decode.replica
    wanted = num_tokens - decode.cached_tokens
    chunk = prefill.step_tokens or pending_tokens
    last = (pending_tokens - 1) % chunk + 1 if pending_tokens else 0
    per_token = receiver.kv_bytes_per_token

    def transfer_s(tokens: int) -> float:
        return latency.transfer_s(tokens * per_token, prefill.id, receiver.id)

    return Overlap(
        transfer_s=transfer_s(wanted),
        last_s=transfer_s(min(last, wanted)),
        prefill_left_s=latency.prefill_s(prefill.id, pending_tokens, num_tokens - pending_tokens),
        wanted_tokens=wanted,
        free_tokens=min(receiver.free_tokens, receiver.capacity_tokens - receiver.kv_tokens),
        capacity_tokens=receiver.capacity_tokens,
    )
