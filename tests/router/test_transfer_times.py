"""The line through measured transfers, and what stalls do to it: nothing."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.transfer_times import KEPT, Line, MeasuredTransfer, TransferTimes, fit

PRIOR = Line(latency_s=2e-3, s_per_byte=1e-9)
MIB = 1 << 20


def measured(line: Line, sizes: list[int], sender: str = "p") -> list[MeasuredTransfer]:
    return [MeasuredTransfer(sender, size, line.at(size)) for size in sizes]


@given(
    latency_s=st.floats(1e-4, 0.1),
    s_per_byte=st.floats(1e-11, 1e-7),
    stalls=st.lists(st.floats(0.5, 30.0), max_size=4),
    seed=st.integers(0, 99),
)
def test_the_line_is_found_and_stalls_do_not_move_it(
    latency_s: float, s_per_byte: float, stalls: list[float], seed: int
) -> None:
    line = Line(latency_s, s_per_byte)
    seen = [(size, line.at(size)) for size in (MIB << n for n in range(KEPT - len(stalls)))]
    seen += [((3 + n) * MIB, line.at((3 + n) * MIB) + stall) for n, stall in enumerate(stalls)]
    random.Random(seed).shuffle(seen)
    found = fit(seen, PRIOR)
    assert found.s_per_byte == pytest.approx(s_per_byte, rel=0.02)
    assert found.at(MIB << 8) == pytest.approx(line.at(MIB << 8), rel=0.02)


def test_sizes_that_are_all_alike_give_a_bandwidth() -> None:
    slow = fit([(MIB, 0.102)] * 5, PRIOR)
    assert slow.latency_s == PRIOR.latency_s and slow.at(MIB) == pytest.approx(0.102)
    fast = fit([(MIB, 0.001)], PRIOR)
    assert fast.at(MIB) == pytest.approx(0.001) and fast.latency_s < PRIOR.latency_s


def test_each_pair_has_its_own_and_others_take_the_middle() -> None:
    times = TransferTimes(bytes_per_s=1e9)
    assert times.line("p", "d").at(10**9) == pytest.approx(1.0, rel=0.01)
    sizes = [MIB << n for n in range(8)]
    slow, fast = Line(0.01, 1e-8), Line(0.001, 1e-10)
    times.observe("d", [*measured(slow, sizes, "p"), *measured(fast, sizes, "q")])
    assert times.line("p", "d").at(MIB) == pytest.approx(slow.at(MIB))
    assert times.line("q", "d").at(MIB) == pytest.approx(fast.at(MIB))
    middle = times.line("p", "another").at(MIB)
    assert fast.at(MIB) < middle < slow.at(MIB)
    times.observe("d", measured(fast, sizes * 3, "p"))
    assert times.line("p", "d").at(MIB) == pytest.approx(fast.at(MIB)), "the old ones are forgotten"
    times.forget("p")
    assert times.line("p", "d") == times.line("x", "y")


def test_nonsense_is_not_measured() -> None:
    times = TransferTimes(bytes_per_s=1e9)
    before = times.line("p", "d")
    times.observe("d", [MeasuredTransfer("p", 0, 1.0), MeasuredTransfer("p", 5, 0.0)])
    assert times.line("p", "d") == before
