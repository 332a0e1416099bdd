"""Latency and bandwidth from measured transfers: what stalls do to them, what few of them tell."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.latency.transfers import (
    OF_A_SIZE,
    PRIOR_LATENCY_S,
    Line,
    MeasuredTransfer,
    TransferTimes,
)

BYTES_PER_S = 1e9
KIB, MIB = 1 << 10, 1 << 20
SIZES = [MIB << n for n in range(10)]


def measured(
    line: Line, sizes: list[int], sender: str = "p", transport: str = "shm"
) -> list[MeasuredTransfer]:
    return [MeasuredTransfer(sender, size, line.at(size), transport) for size in sizes]


def after(transfers: list[MeasuredTransfer]) -> TransferTimes:
    times = TransferTimes(BYTES_PER_S)
    for start in range(0, len(transfers), 5):
        times.observe("d", transfers[start : start + 5])
    return times


@settings(max_examples=20)
@given(
    latency_s=st.floats(1e-3, 0.05),
    s_per_byte=st.floats(1e-10, 1e-8),
    stalls=st.lists(st.floats(0.5, 30.0), max_size=3),
    seed=st.integers(0, 99),
)
def test_the_line_is_found_and_stalls_hardly_move_it(
    latency_s: float, s_per_byte: float, stalls: list[float], seed: int
) -> None:
    line = Line(latency_s, s_per_byte)
    seen = measured(line, 3 * SIZES)
    for number, stall in enumerate(stalls):
        _, size, seconds, transport = seen[10 * number + 3]
        seen[10 * number + 3] = MeasuredTransfer("p", size, seconds + stall, transport)
    random.Random(seed).shuffle(seen)
    found = after(seen).line("p", "d")
    for size in (SIZES[0], SIZES[5], SIZES[-1]):
        assert found.at(size) == pytest.approx(line.at(size), rel=0.12)


def test_small_transfers_say_nothing_of_large_ones() -> None:
    found = after([MeasuredTransfer("p", 64 * KIB, 0.02)] * 20).line("p", "d")
    assert found.at(64 * KIB) == pytest.approx(0.02, rel=0.05)
    assert found.at(1 << 30) == pytest.approx((1 << 30) / BYTES_PER_S, rel=0.1)


def test_large_transfers_say_nothing_of_the_latency() -> None:
    found = after([MeasuredTransfer("p", 1 << 30, 8.0)] * 20).line("p", "d")
    assert found.at(1 << 30) == pytest.approx(8.0, rel=0.05)
    assert found.latency_s == pytest.approx(PRIOR_LATENCY_S, rel=0.5)


def test_one_transfer_is_believed_until_more_are_there() -> None:
    times = after([MeasuredTransfer("p", 10 * MIB, 1.0)])
    assert times.line("p", "d").at(10 * MIB) == pytest.approx(1.0, rel=0.1)
    for _ in range(10):
        times.observe("d", [MeasuredTransfer("p", 10 * MIB, 0.02)])
    assert times.line("p", "d").at(10 * MIB) == pytest.approx(0.02, rel=0.1)


def test_each_pair_has_its_own_line() -> None:
    times = TransferTimes(BYTES_PER_S)
    slow, fast = Line(0.01, 1e-8), Line(0.001, 1e-10)
    times.observe("d", [*measured(slow, 3 * SIZES, "p"), *measured(fast, 3 * SIZES, "q")])
    assert times.line("p", "d").at(64 * MIB) == pytest.approx(slow.at(64 * MIB), rel=0.1)
    assert times.line("q", "d").at(64 * MIB) == pytest.approx(fast.at(64 * MIB), rel=0.1)


def test_a_pair_never_measured_is_like_others_of_its_transport() -> None:
    times = TransferTimes(BYTES_PER_S)
    assert times.line("p", "d").at(10**9) == pytest.approx(1.0, rel=0.01)
    shm, gloo = Line(0.001, 2e-10), Line(0.005, 1e-8)
    times.observe("near", measured(shm, 3 * SIZES, "p", "shm"))
    times.observe("far", measured(gloo, 3 * SIZES, "p", "gloo"))
    assert times.line("new", "near").at(64 * MIB) == pytest.approx(shm.at(64 * MIB), rel=0.1)
    assert times.line("new", "far").at(64 * MIB) == pytest.approx(gloo.at(64 * MIB), rel=0.1)
    unknown = times.line("new", "newer")
    assert unknown == times.line("other", "newest"), "nobody knows more of one than of the other"


def test_what_changes_is_followed() -> None:
    before, now = Line(0.001, 1e-10), Line(0.001, 1e-9)
    times = after(measured(before, 3 * SIZES))
    for transfer in measured(now, OF_A_SIZE * SIZES):
        times.observe("d", [transfer])
    assert times.line("p", "d").at(64 * MIB) == pytest.approx(now.at(64 * MIB), rel=0.1)


def test_who_is_forgotten_leaves_what_its_transport_learnt() -> None:
    times = after(measured(Line(0.01, 1e-8), 3 * SIZES))
    own = times.line("p", "d").at(64 * MIB)
    times.forget("p")
    assert times.line("p", "d") == times.line("x", "d")
    assert times.line("p", "d").at(64 * MIB) == pytest.approx(own, rel=0.1)


@settings(max_examples=20)
@given(st.lists(st.tuples(st.integers(1, 1 << 40), st.floats(1e-6, 1e3)), min_size=1, max_size=20))
def test_more_bytes_never_take_less(seen: list[tuple[int, float]]) -> None:
    line = after([MeasuredTransfer("p", size, seconds) for size, seconds in seen]).line("p", "d")
    times = [line.at(size) for size in (1, KIB, MIB, 1 << 30, 1 << 40)]
    assert times == sorted(times) and times[0] > 0 and times[-1] < float("inf")


def test_nonsense_is_not_measured() -> None:
    times = TransferTimes(BYTES_PER_S)
    before = times.line("p", "d")
    nonsense = [(0, 1.0), (5, 0.0), (5, -1.0), (5, float("inf")), (5, float("nan"))]
    times.observe("d", [MeasuredTransfer("p", *each) for each in nonsense])
    assert times.line("p", "d") == before
