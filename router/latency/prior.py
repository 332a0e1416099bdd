"""What a data sheet says of a step, in the terms that are fitted later: a roofline."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from router.latency.terms import (
    DECODE_KV,
    FIXED,
    KNOTS,
    NUM_TERMS,
    PAIRS,
    PROMPT_KV,
    ROWS,
    SEQS,
    Floats,
)
from workers.core.hardware import HardwareProfile
from workers.models.costs import StepCosts

EFFICIENCY = 0.5  # of the peak that real kernels reach; steps measured later correct it
FAR = 8  # times the last knot: the slope behind it


def prior(costs: StepCosts, hardware: HardwareProfile) -> Floats:
    """Coefficients, [NUM_TERMS]. Weights are read once, or rows computed, whichever takes longer;
    KV is read by decodes and computed with by prompts."""
    flops_s = 1.0 / (hardware.flops * EFFICIENCY)
    byte_s = 1.0 / (hardware.memory_bandwidth * EFFICIENCY)
    sent_s = costs.sent_bytes / (hardware.link_bandwidth * EFFICIENCY)

    def rows_s(rows: int) -> float:
        read_s = costs.read_bytes(rows) * byte_s
        return max(rows * costs.row_flops * flops_s, read_s) + rows * sent_s

    ends = (*KNOTS, FAR * KNOTS[-1])
    least_s = rows_s(1)
    found = np.zeros(NUM_TERMS)
    found[FIXED] = hardware.step_overhead_s + costs.collectives * hardware.link_latency_s + least_s
    found[ROWS] = [
        (max(rows_s(b), least_s) - max(rows_s(a), least_s)) / (b - a) for a, b in pairwise(ends)
    ]
    kv_s, pair_s = costs.kv_bytes * byte_s, costs.pair_flops * flops_s
    found[SEQS] = costs.sampled_flops * flops_s
    found[PROMPT_KV] = kv_s
    found[PAIRS] = pair_s
    found[DECODE_KV] = max(kv_s, pair_s)
    return found
