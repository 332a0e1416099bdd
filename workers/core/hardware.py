"""What a device can do at its best: the numbers behind every roofline.

Profiles are peak values of the vendors' data sheets (dense bf16, no sparsity, one direction of a
link); `cpu` is a small server of two cores. How much of a peak is reached is the latency model's
affair, not the profile's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from workers.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class HardwareProfile:
    """`flops`: dense bf16 operations a second. Bandwidths are bytes a second of one device:
    `memory_bandwidth` to its memory, `link_bandwidth` to its neighbours in the same machine,
    `network_bandwidth` to other machines. `link_latency_s`: of one collective between neighbours.
    `step_overhead_s`: what a step costs before any work."""

    name: str
    flops: float
    memory_bandwidth: float
    link_bandwidth: float
    network_bandwidth: float
    memory_bytes: float
    link_latency_s: float
    step_overhead_s: float


_GIB = float(1 << 30)
PROFILES: Mapping[str, HardwareProfile] = {
    profile.name: profile
    for profile in (
        HardwareProfile("cpu", 0.2e12, 10e9, 5e9, 1e9, 16 * _GIB, 50e-6, 2e-3),
        HardwareProfile("a100", 312e12, 2.04e12, 300e9, 25e9, 80 * _GIB, 10e-6, 1e-3),
        HardwareProfile("l40s", 362e12, 0.864e12, 32e9, 25e9, 48 * _GIB, 20e-6, 1e-3),
        HardwareProfile("h100", 989e12, 3.35e12, 450e9, 50e9, 80 * _GIB, 10e-6, 1e-3),
        HardwareProfile("h200", 989e12, 4.8e12, 450e9, 50e9, 141 * _GIB, 10e-6, 1e-3),
        HardwareProfile("b200", 2250e12, 8e12, 900e9, 50e9, 180 * _GIB, 10e-6, 1e-3),
    )
}


def hardware(name: str) -> HardwareProfile:
    """The profile called `name`. Raises ConfigError that lists what there is."""
    try:
        return PROFILES[name.lower()]
    except KeyError:
        raise ConfigError(
            f"unknown hardware {name!r}; known: {', '.join(sorted(PROFILES))}"
        ) from None
