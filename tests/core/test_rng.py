"""The counter-based generator: known numbers, no pattern between neighbours."""

from __future__ import annotations

from workers.core.rng import derived_seed, random_bits


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) with 53 random bits."""
    return (random_bits(seed, position) >> 11) * 2.0**-53


def test_vectors() -> None:
    """Changing these numbers changes every seeded answer."""
    assert [random_bits(0, p) for p in (0, 1)] == [0xA706DD2F4D197E6F, 0xB382A305F4414F5E]
    assert random_bits(2**64 - 1, 2**20) == 0xA4DBE1EF9BD67840


def test_uniform_fills_the_unit_interval_evenly() -> None:
    for vary in (lambda i: uniform(i, 7), lambda i: uniform(7, i), lambda i: uniform(i, i)):
        numbers = [vary(i) for i in range(4000)]
        assert all(0.0 <= x < 1.0 for x in numbers)
        counts = [sum(1 for x in numbers if int(x * 10) == bucket) for bucket in range(10)]
        assert all(330 < count < 470 for count in counts)  # mean 400, sigma 19


def test_neighbouring_seeds_share_no_stream() -> None:
    streams = [{random_bits(seed, p) for p in range(500)} for seed in range(20)]
    assert len(set.union(*streams)) == 20 * 500


def test_derived_seeds_differ_and_the_first_is_the_seed() -> None:
    assert derived_seed(42, 0) == 42
    assert derived_seed(-1, 0) == 2**64 - 1
    assert len({derived_seed(seed, i) for seed in range(50) for i in range(16)}) == 50 * 16
