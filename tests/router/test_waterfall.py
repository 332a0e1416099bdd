"""Where the time went: exact parts of trails made by hand, and sums of any trail."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.explain.trail import Trail
from router.explain.waterfall import Waterfall, first_gap, ttft
from tests.router.trails import Hands, decision, fail, fetch, let_in, new_trail, prefill


def parts_ms(found: Waterfall | None) -> dict[str, float]:
    """Those that are not zero."""
    assert found is not None
    assert sum(seconds for _, seconds in found.parts) == pytest.approx(found.total_s)
    return {name: round(s * 1e3, 6) for name, s in found.parts if s > 1e-9}


def begun(hands: Hands) -> Trail:
    """Let in at 9 ms after 4 ms in line, its first token at 62 ms."""
    trail = new_trail(hands)
    let_in(trail, hands, 0.009, waited_s=0.004)
    prefill(trail, hands, 0.010, 0.011, 0.061, said=(0.005, 0.040))
    return trail


def test_a_ticket_bound_late() -> None:
    hands = Hands()
    trail = begun(hands)
    trail.tokens(0.062, 1)
    hands(0.065)
    trail.bound(decision("decode-1"), 1, moving=False)
    fetch(trail, hands, 0.080, wait_s=0.002, transfer_s=0.010, exposed_s=0.010)
    trail.tokens(0.090, 1)
    assert parts_ms(ttft(trail)) == {
        "tokenise": 5, "admission queue": 4, "placing": 1, "prefill queue": 5,
        "prefill compute": 40, "other": 7,
    }  # fmt: skip
    assert parts_ms(first_gap(trail)) == {
        "ticket hold": 3, "decode admission": 2, "transfer": 10, "first decode step": 10,
        "other": 3,
    }  # fmt: skip


@pytest.mark.parametrize(("wait_s", "admission"), [(0.001, {}), (0.043, {"decode admission": 2})])
def test_of_a_ticket_bound_early_only_what_sticks_out_counts(
    wait_s: float, admission: dict[str, float]
) -> None:
    hands = Hands()
    trail = new_trail(hands)
    let_in(trail, hands, 0.010, waited_s=0.0)
    trail.began()
    trail.placed(decision("prefill-1"))
    hands(0.020)
    trail.bound(decision("decode-1"), 1, moving=False)
    hands(0.061)
    trail.prefilled(0.0, 0.050)
    trail.tokens(0.061, 1)
    fetch(trail, hands, 0.070, wait_s=wait_s, transfer_s=0.048, exposed_s=0.006)
    trail.tokens(0.075, 1)
    assert "ticket hold" not in parts_ms(ttft(trail))
    found = parts_ms(first_gap(trail))
    transfer = 9 - sum(admission.values())
    assert found == admission | {"transfer": transfer, "first decode step": 5}


def test_kv_that_is_there_before_the_first_token_costs_nothing_after_it() -> None:
    hands = Hands()
    trail = new_trail(hands)
    let_in(trail, hands, 0.0, waited_s=0.0)
    trail.began()
    trail.placed(decision("prefill-1"))
    trail.bound(decision("decode-1"), 1, moving=False)
    fetch(trail, hands, 0.050, wait_s=0.001, transfer_s=0.045, exposed_s=0.004)
    hands(0.051)
    trail.prefilled(0.0, 0.050)
    trail.tokens(0.051, 1)
    trail.tokens(0.060, 1)
    assert parts_ms(first_gap(trail)) == {"first decode step": 9}


def test_on_one_worker_the_gap_is_a_decode_step() -> None:
    hands = Hands()
    trail = begun(hands)
    trail.tokens(0.061, 1)
    trail.tokens(0.071, 1)
    assert parts_ms(first_gap(trail)) == {"first decode step": 10}
    assert "failed attempts" not in dict(ttft(trail).parts)


def test_failed_attempts_stand_where_they_fell() -> None:
    hands = Hands()
    trail = new_trail(hands)
    let_in(trail, hands, 0.001, waited_s=0.0)
    prefill(trail, hands, 0.001, 0.002, 0.010, said=(0.0, 0.008))
    fail(trail, hands, 0.012)  # before its token reached anybody
    prefill(trail, hands, 0.050, 0.052, 0.090, said=(0.008, 0.030))
    trail.tokens(0.090, 1)
    fail(trail, hands, 0.095)
    prefill(trail, hands, 0.190, 0.191, 0.200, said=(0.0, 0.009))
    trail.tokens(0.200, 1)
    assert parts_ms(ttft(trail)) == {
        "tokenise": 1, "failed attempts": 49, "placing": 2, "prefill queue": 8,
        "prefill compute": 30,
    }  # fmt: skip
    assert parts_ms(first_gap(trail)) == {
        "failed attempts": 100,
        "placing": 1,
        "prefill compute": 9,
    }


def test_a_rebind_is_time_in_which_the_ticket_is_held() -> None:
    hands = Hands()
    trail = begun(hands)
    trail.tokens(0.061, 1)
    trail.bound(decision("decode-1"), 1, moving=False)
    hands(0.081)
    trail.bound(decision("decode-2"), 2, moving=False)
    fetch(trail, hands, 0.091, wait_s=0.0, transfer_s=0.010, exposed_s=0.010)
    trail.tokens(0.101, 1)
    assert parts_ms(first_gap(trail)) == {
        "ticket hold": 20, "transfer": 10, "first decode step": 10
    }  # fmt: skip


def test_nothing_is_claimed_of_what_has_not_come() -> None:
    hands = Hands()
    trail = begun(hands)
    assert ttft(trail) is None and first_gap(trail) is None
    trail.tokens(0.062, 1)
    assert ttft(trail) is not None and first_gap(trail) is None


MS = st.integers(0, 50).map(lambda n: n / 1000)


@given(st.data())
def test_parts_of_any_trail_are_not_negative_and_sum(data: st.DataObject) -> None:
    """Whatever happened in whatever order, and whatever workers said of it."""
    hands = Hands()
    trail = new_trail(hands)
    let_in(trail, hands, hands.at + data.draw(MS), waited_s=0.0)
    trail.waited_s = min(data.draw(MS), hands.at)
    for _ in range(data.draw(st.integers(1, 3))):
        trail.began()
        hands(hands.at + data.draw(MS))
        trail.placed(decision("prefill-1"))
        for what in data.draw(st.lists(st.sampled_from(["bind", "token", "wait", "move"]))):
            hands(hands.at + data.draw(MS))
            if what == "token":
                trail.prefilled(data.draw(MS), data.draw(MS))
                trail.tokens(hands.at, 1)
            elif what == "bind":
                trail.bound(decision("decode-1"), 1, moving=False)
                fetch(trail, hands, hands.at + data.draw(MS), *(data.draw(MS) for _ in range(3)))
            elif what == "move":
                trail.bound(decision("decode-2"), 1, moving=True)
        hands(hands.at + data.draw(MS))
    trail.tokens(hands.at, 1)
    trail.tokens(hands.at + data.draw(MS), 1)
    for found in (ttft(trail), first_gap(trail)):
        assert found is not None and all(seconds >= 0 for _, seconds in found.parts)
        assert sum(seconds for _, seconds in found.parts) == pytest.approx(found.total_s)
        assert found.parts[-1][0] == "other"
