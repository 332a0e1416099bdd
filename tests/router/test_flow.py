"""The line in front of the cluster, in virtual time; replicas serve one request after another."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.flow.book import Outcome
from router.flow.classes import FlowKey, SloClass, SloConfig
from router.flow.control import FlowControl, Wish
from router.flow.queues import FairQueues
from router.flow.waiting import Waiting
from workers.core.clock import VirtualClock, run_virtual
from workers.core.errors import InvalidRequest, KvasirError, Overloaded, Unavailable


@dataclass
class Replicas:
    """Room over `count` replicas; each works off what it was given."""

    count: int
    free_at: list[float] = field(init=False)

    def __post_init__(self) -> None:
        self.free_at = [0.0] * self.count

    @property
    def servers(self) -> int:
        return self.count

    def backlog_s(self, unplaced_s: float, *, background: bool, itl_s: float | None) -> float:
        now = asyncio.get_running_loop().time()
        return unplaced_s / self.count + min(max(0.0, at - now) for at in self.free_at)

    async def serve(self, work_s: float) -> None:
        now = asyncio.get_running_loop().time()
        which = min(range(self.count), key=lambda i: self.free_at[i])
        self.free_at[which] = max(now, self.free_at[which]) + work_s
        await asyncio.sleep(self.free_at[which] - now)


@dataclass
class Seen:
    """What became of the requests of one kind."""

    ttft: list[float] = field(default_factory=list)
    refused: list[Overloaded | Unavailable] = field(default_factory=list)


class Scene:
    def __init__(self, slo: SloConfig, count: int) -> None:
        self.replicas = Replicas(count)
        self.control = FlowControl(slo, self.replicas, VirtualClock())
        self.seen: dict[str, Seen] = {}

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Scene]:
        running = asyncio.create_task(self.control.run())
        yield self
        assert self.control.in_flight == 0 and self.control.queued == 0
        running.cancel()

    async def one(self, kind: str, wish: Wish) -> None:
        seen = self.seen.setdefault(kind, Seen())
        began = asyncio.get_running_loop().time()
        try:
            async with self.control.admit(wish) as turn:
                served = asyncio.ensure_future(self.replicas.serve(wish.work_s))
                await asyncio.sleep(0)
                turn.placed()
                await served
                seen.ttft.append(asyncio.get_running_loop().time() - began)
        except (Overloaded, Unavailable) as error:
            seen.refused.append(error)

    async def poisson(
        self, kind: str, rate: float, until_s: float, wish: Callable[[], Wish], seed: int
    ) -> None:
        rng = random.Random(seed)
        async with asyncio.TaskGroup() as group:
            while asyncio.get_running_loop().time() < until_s:
                group.create_task(self.one(kind, wish()))
                await asyncio.sleep(rng.expovariate(rate))


def play(scene: Scene, *parts: Coroutine[Any, Any, None]) -> dict[str, Seen]:
    async def main() -> None:
        async with scene.open(), asyncio.TaskGroup() as group:
            for part in parts:
                group.create_task(part)

    run_virtual(main())
    return scene.seen


def scene_of(count: int = 2, **classes: SloClass) -> Scene:
    async def make() -> Scene:
        return Scene(SloConfig(classes=classes, default=next(iter(classes))), count)

    return run_virtual(make())


CHAT = SloClass(ttft=1.0, max_wait=10.0)


def test_weights_share_the_work_where_classes_compete() -> None:
    big = SloClass(ttft=1.0, weight=3.0, max_wait=2.0)
    small = SloClass(ttft=1.0, weight=1.0, max_wait=2.0)
    scene = scene_of(1, big=big, small=small)
    seen = play(
        scene,
        scene.poisson("big", 40, 30, lambda: Wish(0.1, slo_class="big"), seed=1),
        scene.poisson("small", 40, 30, lambda: Wish(0.1, slo_class="small"), seed=2),
    )
    assert 2.4 < len(seen["big"].ttft) / len(seen["small"].ttft) < 3.6


def test_what_cannot_meet_its_deadline_is_refused_at_once_and_nobody_else() -> None:
    async def scene() -> None:
        line = Scene(SloConfig(classes={"chat": CHAT}, default="chat"), 1)
        async with line.open(), asyncio.TaskGroup() as group:
            for _ in range(30):
                group.create_task(line.one("before", Wish(0.1)))
            await asyncio.sleep(0.01)
            began = asyncio.get_running_loop().time()
            with pytest.raises(Overloaded, match="deadline") as caught:
                async with line.control.admit(Wish(0.1, deadline_s=0.5)):
                    raise AssertionError("it got in")
            assert asyncio.get_running_loop().time() == began
            assert (caught.value.retry_after_s or 0) > 1.0
            async with line.control.admit(Wish(0.1, deadline_s=9.0)):
                pass
        assert len(line.seen["before"].ttft) == 30

    run_virtual(scene())


def test_predictions_that_are_too_short_are_seen_through() -> None:
    """Each takes three times as long as predicted; 60 of them are an honest 18 s."""

    async def scene() -> None:
        line = Scene(SloConfig(classes={"chat": SloClass(max_wait=60)}, default="chat"), 1)

        async def slow() -> None:
            async with line.control.admit(Wish(0.1)) as turn:
                turn.placed()
                await line.replicas.serve(0.3)

        async with line.open(), asyncio.TaskGroup() as group:
            for _ in range(60):
                group.create_task(slow())
            await asyncio.sleep(6)
            left_s = 12
            with pytest.raises(Overloaded) as caught:
                async with line.control.admit(Wish(0.1, deadline_s=0.6 * left_s)):
                    raise AssertionError("it got in")
            assert 0.6 * left_s < (caught.value.retry_after_s or 0) < 2.5 * left_s

    run_virtual(scene())


@pytest.mark.parametrize(
    ("count", "work_s", "every_s", "replicas"),
    [
        pytest.param(15, 3.0, 0.0, 1, id="one-burst"),
        pytest.param(36, 6.0, 0.0, 4, id="no-prompt-can-be-on-time"),
        pytest.param(30, 6.0, 5.0, 1, id="each-takes-longer-than-the-target"),
        pytest.param(5, 10.0, 0.0, 1, id="few-of-many-seconds"),
    ],
)
def test_long_prompts_that_end_within_the_longest_wait_are_all_served(
    count: int, work_s: float, every_s: float, replicas: int
) -> None:
    """A target that is missed refuses nobody, and a burst is no lasting overload."""
    scene = scene_of(replicas, standard=SloClass(ttft=5.0, max_wait=60.0))

    async def arrive() -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(scene.one("long", Wish(work_s)))
                await asyncio.sleep(every_s)

    seen = play(scene, arrive())["long"]
    assert not seen.refused and len(seen.ttft) == count
    assert 5.0 < max(seen.ttft) <= 60.0


def test_what_cannot_be_served_within_the_longest_wait_is_refused_at_once() -> None:
    """Of 100 prompts of 6 s four replicas serve 40 in 60 s; the others are told when to return."""
    scene = scene_of(4, standard=SloClass(ttft=5.0, max_wait=60.0))
    seen = play(scene, *(scene.one("long", Wish(6.0)) for _ in range(100)))["long"]
    assert 38 <= len(seen.ttft) <= 44
    told = [error.retry_after_s or 0.0 for error in seen.refused]
    assert 50 < min(told) < 200 and max(told) < 1200


def test_who_leaves_the_line_leaves_nothing() -> None:
    async def scene() -> None:
        line = Scene(SloConfig(classes={"chat": SloClass(max_wait=3600)}, default="chat"), 1)
        async with line.open(), asyncio.TaskGroup() as group:
            group.create_task(line.one("first", Wish(1.0)))
            await asyncio.sleep(0.01)
            leaving = [group.create_task(line.one("leaves", Wish(1.0))) for _ in range(200)]
            await asyncio.sleep(0.01)
            assert line.control.queued == line.control.book.queued["chat"] == 200
            for task in leaving:
                task.cancel()
            await asyncio.wait(leaving)
            assert line.control.queued == line.control.book.queued["chat"] == 0
            line.control._queues.check_integrity()
        assert line.control.book.outcomes("chat") == {Outcome.ADMITTED: 1, Outcome.LEFT: 200}

    run_virtual(scene())


def test_higher_priority_goes_first_within_a_flow() -> None:
    async def scene() -> None:
        line = Scene(SloConfig(classes={"chat": CHAT}, default="chat"), 1)
        async with line.open(), asyncio.TaskGroup() as group:
            for kind, priority in [("first", 0)] * 5 + [("low", 0), ("high", 1)]:
                group.create_task(line.one(kind, Wish(0.2, priority=priority)))
        assert line.seen["high"].ttft[0] < line.seen["low"].ttft[0]

    run_virtual(scene())


def test_full_queues_unknown_classes_and_stopping_are_said_at_once() -> None:
    async def scene() -> None:
        tight = SloClass(max_queue=2, max_wait=60)
        line = Scene(SloConfig(classes={"tight": tight}, default="tight"), 1)
        async with line.open(), asyncio.TaskGroup() as group:
            for _ in range(5):
                group.create_task(line.one("tight", Wish(1.0)))
            await asyncio.sleep(0.1)
            with pytest.raises(InvalidRequest, match="no service class 'gold'; there are: tight"):
                async with line.control.admit(Wish(0.1, slo_class="gold")):
                    pass
            with pytest.raises(Overloaded, match="full"), line.control.arriving("tight", ""):
                pass
            line.control.drain()
            with pytest.raises(Unavailable):
                async with line.control.admit(Wish(0.1)):
                    pass
        seen = line.seen["tight"]
        kinds = [type(error) for error in seen.refused]
        assert kinds.count(Overloaded) == 2 and "full" in seen.refused[0].message
        assert kinds.count(Unavailable) == 2, "who waited when it stopped was told"
        assert len(seen.ttft) == 1, "who was let in was served"
        assert line.control.book.outcomes("tight") == {
            Outcome.ADMITTED: 1,
            Outcome.QUEUE_FULL: 3,
            Outcome.STOPPING: 3,
        }

    run_virtual(scene())


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["chat", "batch"]),
            st.sampled_from(["a", "b"]),
            st.floats(0.01, 0.5),  # work
            st.floats(0.0, 2.0),  # comes at
            st.none() | st.floats(0.0, 2.0),  # leaves after
        ),
        max_size=25,
    )
)
def test_everybody_is_served_refused_or_gone_and_nothing_is_left(
    arrivals: list[tuple[str, str, float, float, float | None]],
) -> None:
    async def scene() -> None:
        classes = {"chat": CHAT, "batch": SloClass(background=True)}
        line = Scene(SloConfig(classes=classes, default="chat"), 1)
        ended: list[str] = []

        async def one(slo: str, tenant: str, work: float, at: float, leaves: float | None) -> None:
            await asyncio.sleep(at)
            wish = Wish(work, slo_class=slo, tenant=tenant)
            try:
                async with asyncio.timeout(leaves), line.control.admit(wish) as turn:
                    turn.placed()
                    await line.replicas.serve(work)
            except (TimeoutError, KvasirError):
                pass
            ended.append(slo)

        async with line.open():
            async with asyncio.timeout(600), asyncio.TaskGroup() as group:
                for arrival in arrivals:
                    group.create_task(one(*arrival))
            assert len(ended) == len(arrivals)
            line.control._queues.check_integrity()

    run_virtual(scene())


def waiting(slo_class: str, tenant: str, *, work_s: float = 1.0, **more: Any) -> Waiting:
    return Waiting(FlowKey(slo_class, tenant), work_s, arrived=0.0, **more)


def granted(queues: FairQueues) -> Waiting:
    turn = queues.next(background=False)
    assert turn is not None
    queues.grant(turn, now=0.0)
    queues.check_integrity()
    return turn


def test_tenants_who_come_once_do_not_keep_out_one_who_comes_again() -> None:
    """Whatever they are called, and however many they are."""
    queues = FairQueues()
    queues.add(waiting("chat", "z"))
    for number in range(50):
        queues.add(waiting("chat", f"a{number}"))
    order = []
    for number in range(50, 450):
        turn = granted(queues).flow.tenant
        order.append(turn)
        queues.add(waiting("chat", f"a{number}"))
        if turn == "z":
            queues.add(waiting("chat", "z"))
    again = [place for place, tenant in enumerate(order) if tenant == "z"]
    assert len(again) >= 4, f"z had its turn at {again}"


def test_a_class_has_its_share_however_many_tenants_another_has() -> None:
    queues = FairQueues()
    for _ in range(100):
        queues.add(waiting("interactive", "one", weight=4.0))
    for number in range(100):
        queues.add(waiting("standard", str(number), weight=2.0))
    first = [granted(queues).flow.slo_class for _ in range(60)]
    assert 36 <= first.count("interactive") <= 44


def test_late_ones_are_seen_behind_higher_priorities_too() -> None:
    queues = FairQueues()
    queues.add(waiting("chat", "a", priority=1, start_by=9.0))
    late = waiting("chat", "a", start_by=1.0)
    queues.add(late)
    assert queues.demote(2.0) == [late]
    queues.check_integrity()


def test_tenants_who_have_paid_are_forgotten_also_while_others_wait() -> None:
    queues = FairQueues()
    for _ in range(1000):
        queues.add(waiting("chat", "stays"))
    for number in range(1000):
        queues.add(waiting("chat", str(number)))
        granted(queues)
    tenants = queues._classes["chat"].tenants.values()
    assert len(tenants) < 100, "those that wait, and a few that have not paid"


def test_durations_are_written_with_units_or_in_seconds() -> None:
    slo = SloClass(ttft="200ms", itl=0.05, max_wait="2m")  # type: ignore[arg-type]
    assert (slo.ttft, slo.itl, slo.max_wait) == (0.2, 0.05, 120.0)
    with pytest.raises(ValueError, match="is no duration"):
        SloClass(ttft="soon")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="none of the classes"):
        SloConfig(default="gold")
