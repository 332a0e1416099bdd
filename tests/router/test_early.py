"""Tickets bound while their prompt is computed: the gain, and a failure at every step."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from router.latency import FittedLatency
from router.placement.binding import Overlap, Timing
from tests.router.fleet import SHAPE, FakeWorker, House, house, request, token_at, until
from tests.router.test_dispatch import check_output
from workers.core.request import Request

NAMES = ("prefill-1", "decode-1")


class SlowEverything(FittedLatency):
    """Predicts prefills and transfers so long that overlapping them pays."""

    def __init__(self) -> None:
        super().__init__(SHAPE)

    def prefill_s(self, replica: str, new_tokens: int, context_tokens: int) -> float:
        return new_tokens / 10

    def transfer_s(self, num_bytes: int, sender: str, receiver: str) -> float:
        return num_bytes / 10_000


@asynccontextmanager
async def early(*names: str) -> AsyncIterator[tuple[House, FakeWorker, FakeWorker]]:
    """A house whose prefill-1 stops at a gate between Opened and the first token."""
    async with house(*names, latency=SlowEverything()) as inside:
        await until(lambda: all(r.load.kv_bytes_per_token for r in inside.pool))
        prefill, decode = inside.fleet["prefill-1"], inside.fleet["decode-1"]
        prefill.script.append("gate opened")
        yield inside, prefill, decode
        await inside.fleet.quiet()


def ask(inside: House, asked: Request) -> asyncio.Task[list]:
    return asyncio.create_task(inside.tokens(asked))


async def test_decode_is_called_while_the_prompt_is_computed() -> None:
    async with early(*NAMES) as (inside, prefill, decode):
        asking = ask(inside, asked := request())
        await until(lambda: bool(decode.calls))
        (call,) = decode.calls
        assert tuple(call.sequence.token_ids) == asked.token_ids and call.epoch == 1
        assert call.sequence.attempt > prefill.calls[0].sequence.attempt
        prefill.gate.set()
        check_output(asked, await asking)
        assert len(prefill.calls) == len(decode.calls) == 1
        assert not prefill.cancelled and not prefill.released and not decode.cancelled
    assert 'kvasir_bindings_total{timing="early"} 1.0' in inside.metrics.render().decode()


async def test_the_first_token_does_not_wait_for_the_transfer() -> None:
    async with early(*NAMES) as (inside, prefill, decode):
        decode.script.append("gate redeemed")
        prefill.gate.set()
        emissions = inside.dispatcher.run(asked := request())
        first = await anext(emissions)
        assert [token.id for token in first.tokens] == [token_at(10)]
        decode.gate.set()
        check_output(asked, [first, *[emission async for emission in emissions]])


async def test_a_short_transfer_is_bound_late() -> None:
    async with house(*NAMES) as inside:
        check_output(asked := request(), await inside.tokens(asked))
        (call,) = inside.fleet["decode-1"].calls
        assert list(call.sequence.token_ids) == [*asked.token_ids, token_at(10)]
        assert 'timing="late: little gain"} 1.0' in inside.metrics.render().decode()
        await inside.fleet.quiet()


@pytest.mark.parametrize("word", ["UNAVAILABLE", "RESOURCE_EXHAUSTED", "die before"])
async def test_an_early_call_that_fails_is_made_again_elsewhere(word: str) -> None:
    async with early(*NAMES, "decode-2") as (inside, prefill, one):
        two = inside.fleet["decode-2"]
        one.script.append(word)
        two.script.append(word)
        asking = ask(inside, asked := request())
        await until(lambda: len(one.calls) + len(two.calls) == 2)
        await until(lambda: not one.active and not two.active)
        prefill.gate.set()
        for fake in (one, two):
            if not fake.running:
                await fake.start()
        check_output(asked, await asking)
        calls = sorted(one.calls + two.calls, key=lambda call: call.epoch)
        assert [call.epoch for call in calls] == [1, 2, 3]
        assert [len(call.sequence.token_ids) for call in calls] == [10, 10, 11]  # the last is late
        assert len(prefill.calls) == 1 and len({call.ticket.id for call in calls}) == 1


@pytest.mark.parametrize("word", ["UNAVAILABLE", "RESOURCE_EXHAUSTED"])
async def test_where_nobody_else_is_it_is_made_again_late(word: str) -> None:
    async with early(*NAMES) as (inside, prefill, decode):
        decode.script.append(word)
        asking = ask(inside, asked := request())
        await until(lambda: bool(decode.calls) and not decode.active)
        prefill.gate.set()
        check_output(asked, await asking)
        assert [len(call.sequence.token_ids) for call in decode.calls] == [10, 11]
        assert [call.epoch for call in decode.calls] == [1, 2] and len(prefill.calls) == 1


async def test_it_dies_after_the_first_token_and_the_ticket_is_bound_late() -> None:
    async with early(*NAMES, "decode-2") as (inside, prefill, one):
        two = inside.fleet["decode-2"]
        one.script.append("wait before")
        two.script.append("wait before")
        emissions = inside.dispatcher.run(asked := request())
        prefill.gate.set()
        first = await anext(emissions)
        await until(lambda: bool(one.calls or two.calls))
        await (one if one.calls else two).kill()
        (two if one.calls else one).script.clear()
        check_output(asked, [first, *[emission async for emission in emissions]])
        calls = sorted(one.calls + two.calls, key=lambda call: call.epoch)
        assert [(call.epoch, len(call.sequence.token_ids)) for call in calls] == [(1, 10), (2, 11)]
        assert len(prefill.calls) == 1


@pytest.mark.parametrize("word", ["FAILED_PRECONDITION", "UNAVAILABLE redeemed"])
async def test_kv_that_is_corrupt_or_gone_is_computed_again(word: str) -> None:
    async with early(*NAMES) as (inside, prefill, decode):
        decode.script.append(word)
        prefill.gate.set()
        check_output(asked := request(), await ask(inside, asked))
        first, again = prefill.calls
        assert tuple(first.sequence.token_ids) == asked.token_ids
        assert list(again.sequence.token_ids) == [*asked.token_ids, token_at(10)]
        assert len({call.ticket.id for call in decode.calls}) == 2


@pytest.mark.parametrize("moment", ["opened", "computed"])
async def test_prefill_fails_and_both_start_over(moment: str) -> None:
    async with early(*NAMES) as (inside, prefill, decode):
        prefill.script[0] = f"gate {moment}"
        asking = ask(inside, asked := request())
        await until(lambda: bool(decode.calls))
        await prefill.kill()
        await until(lambda: not inside.pool.get("prefill-1").alive)
        await prefill.start()
        prefill.gate.set()
        check_output(asked, await asking)
        assert len(prefill.calls) == len(decode.calls) == 2
        assert len({call.ticket.id for call in decode.calls}) == 2
        assert [call.epoch for call in decode.calls] == [1, 1]


async def test_a_finish_at_the_first_token_ends_the_early_call() -> None:
    async with early(*NAMES) as (inside, prefill, decode):
        decode.script.append("wait before")
        asking = ask(inside, asked := request(max_tokens=1))
        await until(lambda: decode.active == 1)
        prefill.gate.set()
        check_output(asked, await asking)
        await inside.fleet.quiet()
        assert not prefill.released and not decode.cancelled and len(prefill.calls) == 1


@pytest.mark.parametrize("seen", [0, 1])
async def test_a_client_that_leaves_frees_both_sides(seen: int) -> None:
    async with early(*NAMES) as (inside, prefill, decode):
        decode.script.append("wait before")
        if seen:
            prefill.gate.set()
        emissions = inside.dispatcher.run(request())
        for _ in range(seen):
            await anext(emissions)
        waiting = asyncio.ensure_future(anext(emissions))
        await until(lambda: decode.active == 1)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await emissions.aclose()
        await inside.fleet.quiet()
        await until(lambda: bool(prefill.cancelled and decode.cancelled and prefill.released))
        prefill.gate.set()


async def test_a_worker_that_drains_still_hands_over_what_it_computes() -> None:
    async with early(*NAMES, "prefill-2") as (inside, prefill, _):
        inside.fleet["prefill-2"].state = "draining"
        await until(lambda: not inside.pool.get("prefill-2").up)
        asking = ask(inside, asked := request())
        await until(lambda: bool(prefill.tickets))
        prefill.state, inside.fleet["prefill-2"].state = "draining", "ready"
        await until(lambda: not inside.pool.get("prefill-1").up)
        prefill.gate.set()
        check_output(asked, await asking)
        assert len(prefill.calls) == 1 and not inside.fleet["prefill-2"].calls
        check_output(later := request(), await inside.tokens(later))
        assert len(prefill.calls) == 1 and len(inside.fleet["prefill-2"].calls) == 1


# -- the choice ------------------------------------------------------------------------------------

# 8 chunks of 512 tokens, 100 ms of prefill left; the last chunk takes 5 ms of 40 ms on the wire
LONG = Overlap(
    transfer_s=0.040,
    last_s=0.005,
    prefill_left_s=0.100,
    wanted_tokens=4096,
    free_tokens=16384,
    capacity_tokens=16384,
)


@pytest.mark.parametrize(
    ("changed", "timing", "gap_s"),
    [
        ({}, Timing.EARLY, 0.005),
        ({"prefill_left_s": 0.010}, Timing.EARLY, 0.030),  # the wire is slower than the prefill
        ({"prefill_left_s": 0.001}, Timing.LATE_LITTLE_GAIN, 0.039),
        ({"last_s": 0.040}, Timing.LATE_LITTLE_GAIN, 0.040),  # one chunk, nothing cached
        ({"transfer_s": 0.006}, Timing.LATE_LITTLE_GAIN, 0.005),
        ({"transfer_s": 0.0, "last_s": 0.0}, Timing.LATE_LITTLE_GAIN, 0.0),  # decode caches all
        ({"free_tokens": 4096}, Timing.LATE_PAGES, 0.005),
        ({"free_tokens": 6143}, Timing.LATE_PAGES, 0.005),  # an eighth stays for those who decode
        ({"free_tokens": 6144}, Timing.EARLY, 0.005),
    ],
)
def test_when_early_pays(changed: dict[str, float], timing: Timing, gap_s: float) -> None:
    predicted = replace(LONG, **changed)
    assert predicted.choose() is timing
    assert predicted.early_gap_s == pytest.approx(gap_s)
    assert predicted.explain().startswith(timing.value)
