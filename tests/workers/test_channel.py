"""What a leader says reaches every follower in order, whatever its size; and what happens when one
of them does not read."""

from __future__ import annotations

import os
import random
import threading
from array import array
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.distributed as dist

from workers.core.errors import Unavailable
from workers.parallel.channel import (
    GroupReceiver,
    GroupSender,
    Kind,
    Message,
    QueueSender,
    Receiver,
    Sender,
)
from workers.parallel.ring import RingReceiver, RingSender
from workers.parallel.torch_group import Rendezvous

CAPACITY = 5000  # of the ring: no power of two, no multiple of anything that is sent
WAIT_S = 20.0
CPU = torch.device("cpu")


def ring(followers: int, **options: Any) -> tuple[RingSender, list[RingReceiver]]:
    options = {"capacity": CAPACITY} | options
    sender = RingSender(followers, **options)
    ends = [tuple(map(os.dup, sender.ends(place))) for place in range(followers)]
    return sender, [RingReceiver(e, place, **options) for place, e in enumerate(ends)]


def groups(followers: int) -> tuple[Sender, list[Receiver]]:
    store, members = dist.HashStore(), range(followers + 1)
    with ThreadPoolExecutor(len(members)) as pool:
        meet = [
            pool.submit(Rendezvous(store, "127.0.0.1", rank).group, "steps", members, CPU, WAIT_S)
            for rank in members
        ]
    leader, *others = [each.result() for each in meet]
    return GroupSender(leader), [GroupReceiver(group) for group in others]


@pytest.fixture(params=["ring", "queue", "group"])
def ends(request: pytest.FixtureRequest) -> Iterator[tuple[Sender, list[Receiver]]]:
    """A sender and two receivers."""
    sender: Sender
    receivers: list[Receiver]
    if request.param == "ring":
        sender, receivers = ring(2)
    elif request.param == "queue":
        sender = queue = QueueSender(2)
        receivers = list(queue.receivers)
    else:
        sender, receivers = groups(2)
    yield sender, receivers
    for end in (sender, *receivers):
        end.close()


def read(receiver: Receiver, count: int, *, seed: int | None = None) -> Future[list[Message]]:
    """`count` messages on a thread of its own; with a seed, pausing now and then."""
    done: Future[list[Message]] = Future()
    draw, pause = random.Random(seed), threading.Event()

    def run() -> None:
        got = []
        try:
            while len(got) < count:
                message = receiver.recv(WAIT_S)
                assert message is not None, f"{count - len(got)} messages are missing"
                got.append(message)
                if seed is not None and draw.random() < 0.05:
                    pause.wait(0.002)
        except BaseException as error:
            done.set_exception(error)
        else:
            done.set_result(got)

    threading.Thread(target=run, daemon=True).start()
    return done


def test_parts_arrive_as_one_payload_of_the_same_kind(
    ends: tuple[Sender, list[Receiver]],
) -> None:
    sender, receivers = ends
    got = [read(receiver, 3) for receiver in receivers]
    sender.send(Kind.STEP, array("q", [7, -1]), bytearray(b"abc"))
    sender.send(Kind.GATHER)
    sender.send(Kind.SCATTER, array("i", [5]))
    expected = [
        (Kind.STEP, bytearray(array("q", [7, -1]).tobytes() + b"abc")),
        (Kind.GATHER, bytearray()),
        (Kind.SCATTER, bytearray(array("i", [5]).tobytes())),
    ]
    assert [each.result(WAIT_S) for each in got] == [expected, expected]


def test_all_sizes_arrive_in_order_under_load(ends: tuple[Sender, list[Receiver]]) -> None:
    """Sizes around the ring's, far above it, and many small ones; followers pause on their own."""
    sender, receivers = ends
    draw = random.Random(0)
    edges = [CAPACITY + delta for delta in range(-12, 4)] + [0, 1, 3 * CAPACITY, 50 * CAPACITY]
    sizes = edges + [int(draw.expovariate(1 / 300)) for _ in range(600)]
    draw.shuffle(sizes)
    sent = [draw.randbytes(size) for size in sizes]
    got = [read(receiver, len(sent), seed=n) for n, receiver in enumerate(receivers)]
    for payload in sent:
        sender.send(Kind.STEP, payload)
    for each in got:
        assert [bytes(message.payload) for message in each.result(60)] == sent


def test_what_was_sent_may_change_afterwards() -> None:
    sender, (receiver,) = ring(1)
    payload = bytearray(b"before")
    sender.send(Kind.STEP, payload)
    payload[:] = b"after!"
    assert receiver.recv(WAIT_S) == (Kind.STEP, b"before")
    sender.close()
    receiver.close()


def test_nothing_came_is_none_and_what_comes_later_is_whole() -> None:
    sender, (receiver,) = ring(1)
    assert receiver.recv(0.01) is None
    sender.send(Kind.STEP, b"x")
    assert receiver.recv(WAIT_S) == (Kind.STEP, b"x")
    assert receiver.recv(0.01) is None
    sender.close()
    receiver.close()


def test_a_follower_that_does_not_read_is_named() -> None:
    sender, receivers = ring(3, deadline_s=0.2)
    got = [read(receivers[0], 1), read(receivers[2], 1)]
    with pytest.raises(Unavailable, match="rank 2 has not read"):
        sender.send(Kind.STEP, bytes(2 * CAPACITY))
    for each in got:
        with pytest.raises(Unavailable, match="middle of a message"):
            each.result(WAIT_S)
    for end in (sender, *receivers):
        end.close()


def test_a_ring_that_is_torn_down_leaves_no_descriptor() -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    for _ in range(3):
        sender, receivers = ring(2)
        got = [read(receiver, 1) for receiver in receivers]
        sender.send(Kind.STEP, bytes(3 * CAPACITY))
        for each in got:
            each.result(WAIT_S)
        for end in (sender, *receivers):
            end.close()
    assert sorted(os.listdir("/proc/self/fd")) == before
