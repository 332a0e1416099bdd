"""The latency model of a worker for which each token costs the same."""

from __future__ import annotations

from collections.abc import Sequence

from router.latency import HardwareClass, MeasuredTransfer
from workers.core.step_work import MeasuredStep, StepWork


class LinearModel:
    """A LatencyModel of prefill alone: right from the start, so it learns nothing."""

    def __init__(self, tokens_per_s: float) -> None:
        self._tokens_per_s = tokens_per_s

    def prefill_s(self, replica: str, new_tokens: int, context_tokens: int) -> float:
        return new_tokens / self._tokens_per_s

    def decode_s(self, replica: str, num_seqs: int, kv_tokens: int) -> float:
        return 0.0

    def transfer_s(self, num_bytes: int, sender: str, receiver: str) -> float:
        return 0.0

    def step_s(self, replica: str, work: StepWork) -> float:
        return work.prefill_tokens / self._tokens_per_s

    def placed(self, replica: str, hardware_class: HardwareClass, step_tokens: int) -> None: ...

    def observe(self, replica: str, steps: Sequence[MeasuredStep]) -> None: ...

    def observe_transfers(self, receiver: str, transfers: Sequence[MeasuredTransfer]) -> None: ...

    def forget(self, replica: str) -> None: ...
