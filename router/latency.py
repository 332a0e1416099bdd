"""How long a step or a transfer will take: a roofline as prior, measured steps as correction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from router.transfer_times import MeasuredTransfer, TransferTimes
from workers.core.hardware import HardwareProfile, ModelShape

EFFICIENCY = 0.5  # of the peak that real kernels reach; steps measured later correct it
SMOOTHING = 0.1  # weight of a new measurement
MAX_RATIO = 100.0  # a measurement further off than this is a stall, not a speed


@dataclass(frozen=True, slots=True)
class MeasuredStep:
    """One step as a worker timed it. `context_tokens`: KV tokens that it read."""

    prefill_tokens: int
    decode_seqs: int
    context_tokens: int
    seconds: float


class LatencyModel(Protocol):
    """Seconds on one replica. An unknown replica gets the prior."""

    def prefill_s(self, replica: str, new_tokens: int, context_tokens: int) -> float:
        """Computing `new_tokens` behind `context_tokens` that are cached."""

    def decode_s(self, replica: str, num_seqs: int, kv_tokens: int) -> float:
        """One step of `num_seqs` sequences that hold `kv_tokens` together."""

    def transfer_s(self, num_bytes: int, sender: str, receiver: str) -> float:
        """From the first request for KV to its last byte."""

    def observe(self, replica: str, steps: Sequence[MeasuredStep]) -> None: ...

    def observe_transfers(self, receiver: str, transfers: Sequence[MeasuredTransfer]) -> None: ...

    def forget(self, replica: str) -> None: ...


class RooflineModel:
    """The larger of compute time and memory time, plus a fixed cost for each step.

    The correction is one factor for each replica and kind of step, averaged in log space so that a
    step twice too long weighs as much as one twice too short.
    """

    def __init__(self, shape: ModelShape, hardware: HardwareProfile) -> None:
        flops_per_s = hardware.flops * EFFICIENCY
        bytes_per_s = hardware.memory_bandwidth * EFFICIENCY
        weights = (shape.layer_params + shape.head_params) * shape.dtype_bytes
        self._row_s = 2 * shape.layer_params / flops_per_s
        self._sampled_s = 2 * shape.head_params / flops_per_s
        self._pair_s = shape.attention_flops / flops_per_s
        self._weights_s = weights / bytes_per_s
        self._kv_s = shape.kv_bytes_per_token / bytes_per_s
        self._transfers = TransferTimes(hardware.network_bandwidth * EFFICIENCY)
        self._overhead = hardware.step_overhead_s
        self._log_ratio: dict[tuple[str, bool], float] = {}  # (replica, is prefill)
        self._ratio: dict[tuple[str, bool], float] = {}

    def prefill_s(self, replica: str, new_tokens: int, context_tokens: int) -> float:
        if new_tokens <= 0:
            return 0.0
        read = context_tokens + new_tokens
        # causal: a new token sees the context and, on average, half of the new ones
        pairs = new_tokens * (context_tokens + new_tokens / 2)
        return self._prior(new_tokens, 1, read, pairs) * self._ratio.get((replica, True), 1.0)

    def decode_s(self, replica: str, num_seqs: int, kv_tokens: int) -> float:
        if num_seqs <= 0:
            return 0.0
        prior = self._prior(num_seqs, num_seqs, kv_tokens, kv_tokens)
        return prior * self._ratio.get((replica, False), 1.0)

    def transfer_s(self, num_bytes: int, sender: str, receiver: str) -> float:
        return self._transfers.line(sender, receiver).at(num_bytes) if num_bytes > 0 else 0.0

    def observe(self, replica: str, steps: Sequence[MeasuredStep]) -> None:
        for step in steps:
            if step.prefill_tokens + step.decode_seqs == 0 or step.seconds <= 0:
                continue
            ratio = step.seconds / self._prior_of(step)
            if not 1 / MAX_RATIO < ratio < MAX_RATIO:
                continue
            key = (replica, step.prefill_tokens > 0)
            old = self._log_ratio.get(key, math.log(ratio))
            self._log_ratio[key] = old + SMOOTHING * (math.log(ratio) - old)
            self._ratio[key] = math.exp(self._log_ratio[key])

    def observe_transfers(self, receiver: str, transfers: Sequence[MeasuredTransfer]) -> None:
        self._transfers.observe(receiver, transfers)

    def forget(self, replica: str) -> None:
        self._transfers.forget(replica)
        for prefill in (True, False):
            self._log_ratio.pop((replica, prefill), None)
            self._ratio.pop((replica, prefill), None)

    def _prior_of(self, step: MeasuredStep) -> float:
        """Of a step with prefill all KV read is taken to be its prefill's: decodes read little."""
        new, seqs, read = step.prefill_tokens, step.decode_seqs, step.context_tokens
        if new == 0:
            return self._prior(seqs, seqs, read, read)
        pairs = new * (max(0, read - new) + new / 2)
        return self._prior(new + seqs, seqs + 1, read, pairs)

    def _prior(self, rows: int, sampled: int, kv_read: int, pairs: float) -> float:
        """`rows` tokens through the layers, `sampled` through the head; `pairs` of (query, KV)."""
        compute_s = rows * self._row_s + sampled * self._sampled_s + pairs * self._pair_s
        moved_s = self._weights_s + kv_read * self._kv_s
        return (compute_s if compute_s > moved_s else moved_s) + self._overhead
