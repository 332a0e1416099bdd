"""A counter-based random generator: the number at (seed, position) depends on nothing else.

So a sequence that moves to another worker, or is prefilled again, continues bit for bit. This is
splitmix64 (Steele, Lea, Flood 2014) in plain integers: equal on every platform.
"""

from __future__ import annotations

_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: steps of it visit every state


def _mix(z: int) -> int:
    """Stafford's variant 13: every input bit reaches every output bit."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def random_bits(seed: int, position: int) -> int:
    """64 random bits. The seed is mixed first, so that neighbouring seeds share no stream."""
    origin = _mix((seed + _GAMMA) & _MASK)
    return _mix((origin + (position + 1) * _GAMMA) & _MASK)


def derived_seed(seed: int, index: int) -> int:
    """The seed of the index-th sample of one request; the first keeps the seed given."""
    return seed & _MASK if index == 0 else random_bits(seed ^ _GAMMA, index)
