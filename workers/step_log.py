"""Measured steps, for those who learn from them."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from workers.core.batch import Batch

WARMUP_STEPS = 3  # of each kind; allocation and caches make them slow, the latency model skips them
KEPT = 256


@dataclass(frozen=True, slots=True)
class StepRecord:
    """What the latency model learns from: one measured step."""

    prefill_tokens: int
    decode_seqs: int
    context_tokens: int
    seconds: float


class StepLog:
    """`recorded` since start, of which the newest are kept."""

    def __init__(self) -> None:
        self.newest: deque[StepRecord] = deque(maxlen=KEPT)
        self.recorded = 0
        self._warmup = {True: WARMUP_STEPS, False: WARMUP_STEPS}  # with prefill, without

    def record(self, batch: Batch, seconds: float) -> None:
        decodes = sum(chunk.is_decode for chunk in batch.chunks)
        prefill = batch.num_tokens - decodes
        if self._warmup[prefill > 0] > 0:
            self._warmup[prefill > 0] -= 1
            return
        self.newest.append(StepRecord(prefill, decodes, batch.context_tokens, seconds))
        self.recorded += 1
