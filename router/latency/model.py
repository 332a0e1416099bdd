"""What everybody asks who plans ahead: how long will it take there?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from router.latency.transfers import MeasuredTransfer
from workers.core.step_work import MeasuredStep, StepWork


class HardwareClass(NamedTuple):
    """Replicas of one class run the same model on the same devices, split the same way, so they are
    equally fast but for what is particular to one machine. `hardware`: the name of a profile;
    ranks as in workers/models/sizing.Split."""

    hardware: str = "cpu"
    tensor_ranks: int = 1
    kv_abi: str = ""
    expert_ranks: int = 1


class LatencyModel(Protocol):
    """Seconds on one replica. An unknown replica gets the prior. Each call costs microseconds."""

    def prefill_s(self, replica: str, new_tokens: int, context_tokens: int) -> float:
        """Computing `new_tokens` behind `context_tokens` that are cached, in as many chunks as the
        replica takes for it."""

    def decode_s(self, replica: str, num_seqs: int, kv_tokens: int) -> float:
        """One step of `num_seqs` sequences that hold `kv_tokens` together."""

    def step_s(self, replica: str, work: StepWork) -> float:
        """One step, whatever it holds."""

    def transfer_s(self, num_bytes: int, sender: str, receiver: str) -> float:
        """From the first request for KV to its last byte."""

    def placed(self, replica: str, hardware_class: HardwareClass, step_tokens: int) -> None:
        """It runs there, with steps of at most `step_tokens`, decodes included; 0 = not known."""

    def observe(self, replica: str, steps: Sequence[MeasuredStep]) -> None: ...

    def observe_transfers(self, receiver: str, transfers: Sequence[MeasuredTransfer]) -> None: ...

    def forget(self, replica: str) -> None: ...
