"""Trails made by hand, on a clock that a test sets."""

from __future__ import annotations

from dataclasses import dataclass

from router.explain.trail import Trail
from router.placement.decision import Candidates, Decision, Refusal
from tests.router.test_placement import replica
from workers.core.errors import Unavailable
from workers.wire import worker_pb2 as worker


@dataclass
class Hands:
    """A clock with hands to turn. It can be wound forward only."""

    at: float = 0.0

    def now(self) -> float:
        return self.at

    def __call__(self, at: float) -> None:
        assert at >= self.at
        self.at = at


def decision(*names: str) -> Decision:
    """For the first of them."""
    replicas = [replica(name, "decode") for name in names]
    count = len(replicas)
    among = Candidates(replicas, [0] * count, [0.5] * count, [0.1] * count, [0.2] * count)
    return Decision(among, 0, {"gone": Refusal.NOT_UP})


def new_trail(hands: Hands) -> Trail:
    return Trail(hands.now, hands.at, "mine")


def let_in(trail: Trail, hands: Hands, at: float, waited_s: float) -> None:
    hands(at)
    trail.let_in("standard", waited_s)


def prefill(
    trail: Trail, hands: Hands, began: float, placed: float, done: float, said: tuple[float, float]
) -> None:
    """`said`: seconds of queue and of prefill, as the worker counted them."""
    hands(began)
    trail.began()
    hands(placed)
    trail.placed(decision("prefill-1"))
    hands(done)
    trail.prefilled(*said)


def fetch(
    trail: Trail, hands: Hands, admitted: float, wait_s: float, transfer_s: float, exposed_s: float
) -> None:
    hands(admitted)
    said = worker.Admitted(admit_wait_s=wait_s, transfer_s=transfer_s, exposed_s=exposed_s)
    trail.fetched(said, moving=False)


def fail(trail: Trail, hands: Hands, at: float) -> None:
    hands(at)
    trail.failed(Unavailable("it broke"))
