"""Running sequences that go from one worker to another, and a failure at every step."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from router.config import Limits
from router.flight import Emission
from tests.router.fleet import HASTY, LIMITS, FakeWorker, House, house, request, until
from tests.router.test_dispatch import check_output
from workers.core.request import Request

NAMES = ("prefill-1", "decode-1", "decode-2")
HELD = 20  # position: ten tokens after the prompt


@dataclass
class Scene:
    """A request that decodes on `old` and stands still at HELD, while `new` is there to take it."""

    inside: House
    asked: Request
    seen: list[Emission]
    asking: asyncio.Task[None]
    old: FakeWorker
    new: FakeWorker

    @property
    def prefills(self) -> list:
        return self.inside.fleet["prefill-1"].calls

    async def told(self, position: int) -> None:
        """Until every token before `position` has come out of the router."""
        num_tokens = position - self.asked.prompt_len
        await until(lambda: sum(len(each.tokens) for each in self.seen) == num_tokens)

    async def end(self) -> None:
        self.old.hold_at = None
        await self.asking
        check_output(self.asked, self.seen)
        await self.inside.fleet.quiet()

    async def down(self, name: str) -> None:
        self.inside.fleet[name].state = "draining"
        await until(lambda: not self.inside.pool.get(name).up)


@asynccontextmanager
async def decoding(
    *words: str, names: tuple[str, ...] = NAMES, limits: Limits = LIMITS
) -> AsyncIterator[Scene]:
    """On the second to last of `names`, whose calls get `words`."""
    async with house(*names, limits=limits) as inside:
        old, new = (inside.fleet[name] for name in names[-2:])
        new.state = "draining"
        await until(lambda: not inside.pool.get(names[-1]).up)
        old.hold_at = HELD
        old.script.extend(words)
        asked, seen = request(max_tokens=30), []
        asking = asyncio.create_task(collect(inside, asked, seen))
        scene = Scene(inside, asked, seen, asking, old, new)
        await scene.told(HELD)
        new.state = "ready"
        await until(lambda: inside.pool.get(names[-1]).up)
        yield scene
        await scene.end()


async def collect(inside: House, asked: Request, seen: list[Emission]) -> None:
    async for emission in inside.dispatcher.run(asked):
        seen.append(emission)


def moves(inside: House, outcome: str) -> bool:
    return f'kvasir_moves_total{{outcome="{outcome}"}} 1.0' in inside.metrics.render().decode()


async def test_a_worker_that_drains_gives_its_sequences_away() -> None:
    async with decoding() as scene:
        scene.old.state = "draining"
        await scene.asking
        (call,) = scene.new.calls
        assert call.epoch == 1 and call.ticket.prefill.id == "decode-1"
        assert len(call.sequence.token_ids) == HELD
        assert call.sequence.attempt > scene.old.calls[0].sequence.attempt
        assert len(scene.prefills) == len(scene.old.calls) == 1
        assert not scene.old.cancelled and not scene.old.released
        assert moves(scene.inside, "moved")


async def test_it_moves_when_it_is_asked_to_and_back_again() -> None:
    async with decoding() as scene:
        dispatcher, old, new = scene.inside.dispatcher, scene.old, scene.new
        new.hold_at = HELD + 5
        assert not await dispatcher.move("nobody")
        assert await dispatcher.move(scene.asked.id)
        await until(lambda: moves(scene.inside, "moved"))
        old.hold_at = None
        assert await dispatcher.move(scene.asked.id)
        await scene.asking
        assert (len(old.calls), len(new.calls), len(scene.prefills)) == (2, 1, 1)
        tickets = [call.ticket.id for call in (*old.calls, *new.calls)]
        assert len(set(tickets)) == 3
        assert not await dispatcher.move(scene.asked.id)


async def test_an_aggregated_worker_gives_its_sequences_away_too() -> None:
    async with decoding(names=("aggregated-1", "aggregated-2")) as scene:
        scene.old.state = "draining"
        await scene.asking
        (call,) = scene.new.calls
        assert call.ticket.prefill.id == "aggregated-1" and call.epoch == 1
        assert len(call.sequence.token_ids) == HELD and call.sequence.prompt_len == 10


async def test_one_that_drains_alone_waits_for_somebody() -> None:
    async with decoding() as scene:
        await scene.down("decode-2")
        scene.old.state = "draining"
        await until(lambda: scene.inside.dispatcher.tickets_held == 1)
        assert not scene.new.calls
        scene.new.state = "ready"
        await scene.asking
        assert len(scene.new.calls) == 1 and not scene.old.released


@pytest.mark.parametrize("word", ["UNAVAILABLE", "RESOURCE_EXHAUSTED", "die before"])
async def test_who_should_take_it_fails_and_the_next_one_takes_it(word: str) -> None:
    async with decoding() as scene:
        new = scene.new
        new.script.append(word)
        scene.old.state = "draining"
        await until(lambda: bool(new.calls) and not new.active)
        if not new.running:
            await new.start()
        await scene.asking
        assert [call.epoch for call in new.calls] == [1, 2]
        assert len({call.ticket.id for call in new.calls}) == len(scene.prefills) == 1


@pytest.mark.parametrize("words", [["UNAVAILABLE"] * 4, ["FAILED_PRECONDITION"]])
async def test_nobody_can_take_it_and_the_old_one_goes_on(words: list[str]) -> None:
    async with decoding() as scene:
        old, new = scene.old, scene.new
        new.script.extend(words)
        old.state = "draining"
        await until(lambda: bool(old.released))
        assert [call.epoch for call in new.calls] == list(range(1, len(words) + 1))
        assert old.released == [(new.calls[0].ticket.id, len(words))]
        assert moves(scene.inside, "stayed")
        await scene.end()
        assert len(scene.prefills) == len(old.calls) == 1


async def test_what_is_said_while_nobody_takes_it_is_known_to_the_next_one() -> None:
    async with decoding() as scene:
        old, new = scene.old, scene.new
        new.script.append("gate before")
        old.state = "draining"
        await until(lambda: new.active == 1)
        old.hold_at = HELD + 5
        await scene.told(HELD + 5)
        new.script.append("ok")
        await new.kill()
        await new.start()
        await scene.asking
        assert [len(call.sequence.token_ids) for call in new.calls] == [HELD, HELD + 5]
        assert len(scene.prefills) == 1


async def test_who_took_it_dies_at_once_and_it_is_computed_again() -> None:
    async with decoding() as scene:
        scene.new.script.append("UNAVAILABLE redeemed")
        scene.old.state = "draining"
        await scene.asking
        assert [len(call.sequence.token_ids) for call in scene.prefills] == [10, HELD]


@pytest.mark.parametrize("word", ["UNAVAILABLE gate offered", "die gate offered"])
async def test_the_old_one_dies_while_it_is_offered(word: str) -> None:
    async with decoding(word) as scene:
        scene.new.script.append("wait before")
        scene.old.state = "draining"
        await until(lambda: scene.new.active == 1)
        scene.old.gate.set()
        await scene.asking
        assert len(scene.prefills) == 2


@pytest.mark.parametrize("word", ["UNAVAILABLE moved", "silent moved"])
async def test_the_old_one_dies_when_it_has_given_everything_away(word: str) -> None:
    async with decoding(word, limits=HASTY) as scene:
        scene.old.state = "draining"
        await scene.asking
        assert len(scene.prefills) == len(scene.new.calls) == 1


async def test_it_finishes_while_somebody_fetches_it() -> None:
    async with decoding() as scene:
        scene.new.script.append("wait before")
        scene.old.state = "draining"
        await until(lambda: scene.new.active == 1)
        await scene.end()
        assert not scene.old.cancelled and not scene.new.cancelled and not scene.old.released


async def test_a_client_that_leaves_frees_both() -> None:
    async with house(*NAMES) as inside:
        old, new = inside.fleet["decode-1"], inside.fleet["decode-2"]
        old.hold_at = new.hold_at = HELD
        emissions = inside.dispatcher.run(asked := request(max_tokens=30))
        told = 0
        while told < HELD - 10:
            told += len((await anext(emissions)).tokens)
        if asked.id in new.live:
            old, new = new, old
        new.script.append("wait before")
        assert await inside.dispatcher.move(asked.id)
        waiting = asyncio.ensure_future(anext(emissions))
        await until(lambda: new.active == 1)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await emissions.aclose()
        await inside.fleet.quiet()
        await until(lambda: bool(old.cancelled and new.cancelled))
