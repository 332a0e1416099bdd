"""Every row of the dispatcher's rules, against real gRPC servers that misbehave on cue."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import replace

import pytest

from router.config import Limits
from router.flight import Emission
from tests.router.fleet import HASTY, House, house, request, token_at, unlike, until
from workers.core.errors import InvalidRequest, Overloaded, Unavailable
from workers.core.request import FinishReason, Request


def check_output(asked: Request, emissions: list[Emission]) -> None:
    """Every position once, in order, and one finish at the end."""
    tokens = [token for emission in emissions for token in emission.tokens]
    first, count = len(asked.token_ids), asked.params.max_tokens
    assert count is not None
    assert [token.position for token in tokens] == list(range(first, first + count))
    assert [token.id for token in tokens] == [token_at(p) for p in range(first, first + count)]
    assert [e.finish_reason for e in emissions[:-1]] == [None] * (len(emissions) - 1)
    assert emissions[-1].finish_reason is FinishReason.LENGTH


async def answer(inside: House, asked: Request | None = None) -> None:
    """Ask, check the output, and check that nothing is left anywhere."""
    asked = asked or request()
    check_output(asked, await inside.tokens(asked))
    await inside.fleet.quiet()


async def test_prefill_then_decode() -> None:
    async with house("prefill-1", "decode-1") as inside:
        asked = request()
        emissions = await inside.tokens(asked)
        check_output(asked, emissions)
        assert emissions[0].cached_tokens == 2
        prefill, decode = inside.fleet["prefill-1"], inside.fleet["decode-1"]
        assert len(prefill.calls) == len(decode.calls) == 1
        assert decode.calls[0].epoch == 1
        assert list(decode.calls[0].sequence.token_ids) == [*asked.token_ids, token_at(10)]
        await inside.fleet.quiet()
        assert not prefill.cancelled and not decode.cancelled and not prefill.released


async def test_finish_at_the_first_token_needs_no_decode() -> None:
    async with house("prefill-1", "decode-1") as inside:
        await answer(inside, request(max_tokens=1))
        assert not inside.fleet["decode-1"].calls
        assert not inside.fleet["prefill-1"].released


async def test_many_at_once() -> None:
    async with house("prefill-1", "prefill-2", "decode-1", "decode-2") as inside:
        asked = unlike(20)
        answers = await asyncio.gather(*map(inside.tokens, asked))
        for one, emissions in zip(asked, answers, strict=True):
            check_output(one, emissions)
        await inside.fleet.quiet()
        assert all(worker.calls for worker in inside.fleet.workers.values())


async def test_a_burst_that_shares_a_prefix_stays_together() -> None:
    """Without a single event: the router remembers where it sent the first one."""
    async with house("prefill-1", "prefill-2", "decode-1") as inside:
        asked = request(num_prompt=200)
        await inside.tokens(asked)
        for number in range(5):
            await inside.tokens(replace(asked, id=f"{asked.id}-{number}"))
        counts = [len(inside.fleet[name].calls) for name in ("prefill-1", "prefill-2")]
        assert sorted(counts) == [0, 6]


@pytest.mark.parametrize("word", ["UNAVAILABLE", "RESOURCE_EXHAUSTED", "INTERNAL"])
async def test_prefill_refuses_and_another_one_takes_it(word: str) -> None:
    async with house("prefill-1", "prefill-2", "decode-1") as inside:
        one, two = inside.fleet["prefill-1"], inside.fleet["prefill-2"]
        for _ in range(4):  # ties are drawn: whoever is called first refuses
            one.script = two.script = deque([word])
            await answer(inside)
        attempts = [call.sequence.attempt for call in one.calls + two.calls]
        assert max(attempts) == 2


@pytest.mark.parametrize("moment", ["before", "opened"])
@pytest.mark.parametrize("what", ["die", "silent"])
async def test_prefill_is_lost_and_another_one_takes_it(what: str, moment: str) -> None:
    async with house("prefill-1", "prefill-2", "decode-1", limits=HASTY) as inside:
        one, two = inside.fleet["prefill-1"], inside.fleet["prefill-2"]
        one.script.append(f"{what} {moment}")
        two.state = "draining"
        await until(lambda: not inside.pool.get("prefill-2").up)
        asking = asyncio.create_task(inside.tokens(asked := request()))
        await until(lambda: bool(one.calls))
        two.state = "ready"
        check_output(asked, await asking)
        assert len(two.calls) == 1
        await inside.fleet.quiet()


async def test_prefill_dies_alone_and_comes_back() -> None:
    async with house("prefill-1", "decode-1") as inside:
        one = inside.fleet["prefill-1"]
        one.script.append("die opened")
        asking = asyncio.create_task(inside.tokens(asked := request()))
        await until(lambda: bool(one.calls) and not inside.pool.get("prefill-1").alive)
        await one.start()
        check_output(asked, await asking)
        assert len(one.calls) == 2
        await inside.fleet.quiet()


async def test_prefill_dies_with_the_ticket() -> None:
    """The first token was given out: prompt and that token are prefilled again."""
    async with house("prefill-1", "decode-1") as inside:
        one, decode = inside.fleet["prefill-1"], inside.fleet["decode-1"]
        decode.script.append("wait before")
        asking = asyncio.create_task(inside.tokens(asked := request()))
        await until(lambda: bool(decode.calls))
        await one.kill()
        await until(lambda: not inside.pool.get("prefill-1").alive)
        await one.start()
        check_output(asked, await asking)
        again = one.calls[1].sequence
        assert list(again.token_ids) == [*asked.token_ids, token_at(10)]
        assert again.prompt_len == 10 and again.sampling.max_tokens == 6
        assert again.attempt > decode.calls[0].sequence.attempt
        await inside.fleet.quiet()


async def test_client_errors_are_not_retried() -> None:
    async with house("prefill-1", "decode-1") as inside:
        inside.fleet["prefill-1"].script.append("INVALID_ARGUMENT")
        with pytest.raises(InvalidRequest, match="scripted INVALID_ARGUMENT"):
            await inside.tokens(request())
        assert len(inside.fleet["prefill-1"].calls) == 1


@pytest.mark.parametrize("word", ["UNAVAILABLE", "RESOURCE_EXHAUSTED", "die before"])
async def test_decode_fails_before_it_is_admitted(word: str) -> None:
    """The same ticket is bound to another decode worker; nothing is computed twice."""
    async with house("prefill-1", "decode-1", "decode-2") as inside:
        one, two = inside.fleet["decode-1"], inside.fleet["decode-2"]
        two.state = "draining"
        await until(lambda: not inside.pool.get("decode-2").up)
        one.script.append(word)
        asking = asyncio.create_task(inside.tokens(asked := request()))
        await until(lambda: bool(one.calls))
        two.state = "ready"
        check_output(asked, await asking)
        assert len(inside.fleet["prefill-1"].calls) == 1
        bindings = one.calls + two.calls
        assert [call.epoch for call in bindings] == [n + 1 for n in range(len(bindings))]
        assert len({call.ticket.id for call in bindings}) == 1
        attempts = [call.sequence.attempt for call in bindings]
        assert attempts == sorted(set(attempts))
        await inside.fleet.quiet()


async def test_decode_dies_before_it_is_admitted_and_comes_back() -> None:
    async with house("prefill-1", "decode-1") as inside:
        one = inside.fleet["decode-1"]
        one.script.append("die before")
        asking = asyncio.create_task(inside.tokens(asked := request()))
        await until(lambda: bool(one.calls) and not inside.pool.get("decode-1").alive)
        await one.start()
        check_output(asked, await asking)
        assert [call.epoch for call in one.calls] == [1, 2]
        assert len(inside.fleet["prefill-1"].calls) == 1
        await inside.fleet.quiet()


async def test_ticket_gone_means_prefill_again() -> None:
    async with house("prefill-1", "decode-1") as inside:
        inside.fleet["prefill-1"].script.append("lose ticket")
        await answer(inside)
        calls = inside.fleet["prefill-1"].calls
        assert len(calls) == 2
        assert [call.epoch for call in inside.fleet["decode-1"].calls] == [1, 1]


@pytest.mark.parametrize("sent", [0, 1, 3])
@pytest.mark.parametrize("what", ["die", "silent"])
async def test_decode_is_lost_after_it_was_admitted(what: str, sent: int) -> None:
    """Prompt and emitted tokens are prefilled again, the restarted worker goes on."""
    async with house("prefill-1", "decode-1", limits=HASTY) as inside:
        one = inside.fleet["decode-1"]
        one.script.append(f"{what} after {sent}")
        asking = asyncio.create_task(inside.tokens(asked := request()))
        await until(lambda: bool(one.calls) and not inside.pool.get("decode-1").alive)
        await one.kill()
        await one.start()
        check_output(asked, await asking)
        first, again = inside.fleet["prefill-1"].calls
        arrived = len(again.sequence.token_ids) - len(first.sequence.token_ids) - 1
        # What was still under way is lost with the connection of the one that dies.
        assert arrived == sent if what == "silent" else 0 <= arrived <= sent
        assert again.sequence.attempt > first.sequence.attempt
        await inside.fleet.quiet()


@pytest.mark.parametrize("word", ["repeat", "old attempt"])
async def test_what_is_not_due_is_dropped(word: str) -> None:
    async with house("prefill-1", "decode-1") as inside:
        inside.fleet["decode-1"].script.append(word)
        await answer(inside)
        assert len(inside.fleet["prefill-1"].calls) == 1


async def test_a_skipped_position_ends_the_attempt() -> None:
    async with house("prefill-1", "decode-1") as inside:
        inside.fleet["decode-1"].script.append("skip")
        await answer(inside)
        assert len(inside.fleet["prefill-1"].calls) == 2


async def test_budget_over_is_a_clean_error() -> None:
    async with house("prefill-1", "decode-1") as inside:
        inside.fleet["prefill-1"].script.extend(["UNAVAILABLE"] * 10)
        with pytest.raises(Unavailable, match="gave up after 5 failures"):
            await inside.tokens(request())
        assert len(inside.fleet["prefill-1"].calls) == 5


async def test_full_workers_say_so() -> None:
    async with house("prefill-1", "decode-1") as inside:
        inside.fleet["prefill-1"].script.extend(["RESOURCE_EXHAUSTED"] * 10)
        with pytest.raises(
            Overloaded, match="gave up after 5 failures; the last one: worker"
        ) as caught:
            await inside.tokens(request())
        assert caught.value.retry_after_s


async def test_nobody_there() -> None:
    limits = Limits(worker_wait_s=0.1)
    async with house("decode-1", limits=limits) as inside:
        with pytest.raises(Unavailable, match="no worker is ready to prefill"):
            await inside.tokens(request())


PHASES = {
    "before the ticket": ("prefill-1", "wait before", 0),
    "prefilling": ("prefill-1", "wait opened", 0),
    "fetching": ("decode-1", "wait before", 1),
    "decoding": ("decode-1", "wait after 2", 3),
}


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("how", ["cancel", "close"])
async def test_a_client_that_leaves_frees_both_sides(phase: str, how: str) -> None:
    name, word, seen = PHASES[phase]
    async with house("prefill-1", "decode-1") as inside:
        inside.fleet[name].script.append(word)
        emissions = inside.dispatcher.run(request())
        for _ in range(seen):
            await anext(emissions)
        if how == "cancel" or seen == 0:  # a generator can be closed only where it stands still
            waiting = asyncio.ensure_future(anext(emissions))
            await until(lambda: inside.fleet[name].active == 1)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        await emissions.aclose()
        await inside.fleet.quiet()
        if seen < 3:
            await until(lambda: bool(inside.fleet["prefill-1"].cancelled))
        if seen == 3:
            await until(lambda: bool(inside.fleet["decode-1"].cancelled))
