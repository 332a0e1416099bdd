"""The ticket's table, and that any order of events keeps its promises."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.core.errors import TicketError
from workers.core.ticket import ENDED, TRANSITIONS, Ticket, TicketState, TicketTable

T = TicketState


def ticket(ttl: float = 10.0, now: float = 0.0, moving: bool = False) -> Ticket:
    return Ticket("t", "r", num_tokens=9, ttl_s=ttl, opened_at=now, moving=moving)


def test_the_plain_way() -> None:
    made = ticket()
    made.redeem(1, 1.0)
    made.received(1, 2.0)
    assert made.state is T.REDEEMED and not made.pinned
    assert made.release(1, 3.0)
    assert made.state is T.RELEASED
    assert not made.release(1, 4.0), "idempotent"


def test_epochs_only_rise() -> None:
    made = ticket()
    made.redeem(2, 1.0)
    for epoch in (1, 2):
        with pytest.raises(TicketError, match="not above 2"):
            made.redeem(epoch, 1.0)
    with pytest.raises(TicketError, match="is fetching"):
        made.redeem(3, 1.0)
    made.stop(T.OPEN, 1.5, "epoch 3 takes over")
    with pytest.raises(TicketError, match="no longer"):
        made.received(2, 1.6)
    made.stopped(2.0)
    made.redeem(3, 2.0)
    assert made.epoch == 3


def test_a_release_of_an_older_epoch_does_nothing() -> None:
    made = ticket()
    made.redeem(2, 1.0)
    assert not made.release(1, 1.0)
    assert made.state is T.FETCHING
    assert made.release(2, 1.0)
    assert made.state is T.STOPPING and made.pinned, "the running copy ends first"
    made.stopped(1.1)
    assert made.state is T.RELEASED


def test_of_two_reasons_to_stop_the_stronger_stays() -> None:
    made = ticket()
    made.redeem(1, 1.0)
    made.stop(T.OPEN, 1.0, "broke off")
    made.release(None, 1.1)
    made.stop(T.OPEN, 1.2, "broke off again")
    made.stopped(2.0)
    assert made.state is T.RELEASED


def test_lease() -> None:
    made = ticket(ttl=10.0)
    assert not made.expire(9.9)
    made.renew(9.0)
    assert not made.expire(18.9)
    assert made.expire(19.0)
    assert made.state is T.EXPIRED
    assert "lease over" in "; ".join(made.story)


def test_a_moving_sequence_is_pinned_only_while_it_is_fetched() -> None:
    made = ticket(moving=True)
    assert not made.pinned and not made.ended
    made.redeem(1, 1.0)
    assert made.pinned
    made.stop(T.OPEN, 1.5, "broke off")
    assert made.pinned, "the running copy ends first"
    made.stopped(2.0)
    assert not made.pinned and not made.ended, "it goes on here, and may be bound again"
    made.redeem(2, 3.0)
    made.received(2, 4.0)
    assert made.ended and not made.pinned
    assert "moving" in made.story[0]


def test_table_ends_each_once_and_remembers_the_story() -> None:
    ended: list[str] = []
    table = TicketTable(lambda t: ended.append(t.id))
    made = ticket()
    table.add(made)
    table.settle(made)
    assert ended == []
    table.check_integrity(["t"])
    made.release(None, 1.0, "cancelled")
    table.settle(made)
    table.settle(made)
    assert ended == ["t"]
    with pytest.raises(TicketError, match="cancelled"):
        table.get("t")
    with pytest.raises(TicketError, match="never here"):
        table.get("x")
    table.check_integrity([])
    with pytest.raises(AssertionError, match="without a sequence"):
        table.check_integrity(["t"])


def test_an_ended_ticket_that_nobody_settled_is_noticed() -> None:
    table = TicketTable(lambda t: None)
    made = ticket()
    table.add(made)
    made.release(None, 1.0)
    with pytest.raises(AssertionError, match="not filed away"):
        table.check_integrity(["t"])


def test_every_transition_of_the_table_can_happen() -> None:
    """Walk all short event sequences; the pairs seen are exactly TRANSITIONS."""
    events = {
        "redeem": lambda t, n: t.redeem(t.epoch + 1, n),
        "received": lambda t, n: t.received(t.epoch, n),
        "broke": lambda t, n: t.stop(T.OPEN, n, "broke off"),
        "stopped": lambda t, n: t.stopped(n),
        "release": lambda t, n: t.release(None, n),
        "expire": lambda t, n: t.expire(n + 100.0),
    }
    seen = set()
    for names in itertools.product(events, repeat=4):
        made = ticket()
        for step, name in enumerate(names):
            before = made.state
            try:
                events[name](made, float(step))
            except TicketError:
                assert made.state is before
            if made.state is not before:
                seen.add((before, made.state))
    assert seen == TRANSITIONS


OPS = st.lists(
    st.tuples(
        st.sampled_from(["redeem", "received", "stop", "stopped", "release", "expire", "renew"]),
        st.integers(1, 5),
        st.floats(0, 4),
    ),
    max_size=30,
)


@settings(max_examples=300)
@given(OPS, st.booleans())
def test_any_order_of_events_keeps_the_promises(
    ops: list[tuple[str, int, float]], moving: bool
) -> None:
    ended: list[TicketState] = []
    table = TicketTable(lambda t: ended.append(t.state))
    made = ticket(ttl=5.0, moving=moving)
    table.add(made)
    now, highest, over = 0.0, 0, False
    for name, epoch, wait in ops:
        now += wait
        was = made.state
        try:
            match name:
                case "redeem":
                    made.redeem(epoch, now)
                    assert epoch > highest and was is T.OPEN
                    highest = epoch
                case "received":
                    made.received(epoch, now)
                    assert epoch == highest
                case "stop":
                    made.stop(T.OPEN, now, "broke off")
                case "stopped":
                    made.stopped(now)
                case "release":
                    made.release(epoch, now)
                    assert made.state is was or epoch >= highest
                case "expire":
                    made.expire(now)
                case "renew":
                    made.renew(now)
        except TicketError:
            assert made.state is was
        table.settle(made)
        assert made.ended == (made.state in ENDED) == (len(ended) == 1), "ends exactly once"
        assert not (over and not made.ended), "an ended ticket came back"
        over = over or made.ended
        assert made.pinned or made.ended or (moving and made.state is T.OPEN)
        assert not (made.pinned and made.ended)
        reading = made.state in (T.FETCHING, T.STOPPING)
        assert made.pinned or not reading, "pages that may be read are pinned"
    assert not ended or ended == [made.state] or ended == [T.REDEEMED]
