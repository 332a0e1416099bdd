"""Requests that one worker prefills and decodes, alone and beside workers of the other roles."""

from __future__ import annotations

import asyncio
from collections import Counter, deque

import pytest

from router.config import Limits
from router.placement.decision import Need, Refusal
from tests.router.fleet import HASTY, house, request, unlike, until
from tests.router.test_dispatch import answer, check_output
from tests.router.test_placement import placement, replica
from workers.core.errors import InvalidRequest, Unavailable


async def test_one_call_without_a_ticket_is_the_whole_request() -> None:
    async with house("aggregated-1") as inside:
        asked = request()
        emissions = await inside.tokens(asked)
        check_output(asked, emissions)
        assert emissions[0].cached_tokens == 2
        (call,) = inside.fleet["aggregated-1"].calls
        assert not call.HasField("ticket") and call.epoch == 0
        assert tuple(call.sequence.token_ids) == asked.token_ids
        await inside.fleet.quiet()
        assert not inside.fleet["aggregated-1"].cancelled


async def test_metrics_are_those_of_a_prefill_and_there_is_no_transfer() -> None:
    async with house("aggregated-1") as inside:
        await answer(inside)
        text = inside.metrics.render().decode()
    for line in (
        "kvasir_queue_seconds_sum 0.5",
        "kvasir_prefill_seconds_sum 0.25",
        "kvasir_prompt_tokens_total 10.0",
        "kvasir_prefix_hit_tokens_total 2.0",
        "kvasir_transfer_seconds_count 0.0",
        "kvasir_admit_wait_seconds_count 0.0",
        'kvasir_replica_up{replica="aggregated-1",role="aggregated"} 1.0',
    ):
        assert line in text


async def test_the_load_is_known_while_it_runs() -> None:
    async with house("aggregated-1") as inside:
        inside.fleet["aggregated-1"].script.append("wait after 3")
        emissions = inside.dispatcher.run(request(num_prompt=40))
        held = inside.pool.get("aggregated-1")
        told = 0
        while told < 3:  # tokens of several steps may come together
            told += len((await anext(emissions)).tokens)
            assert held.assignments.seqs == 1
            assert (held.pending_tokens, held.kv_tokens) == (0, 40 + told)
        await emissions.aclose()
        await inside.fleet.quiet()


async def test_finish_at_the_first_token() -> None:
    async with house("aggregated-1") as inside:
        await answer(inside, request(max_tokens=1))
        assert len(inside.fleet["aggregated-1"].calls) == 1


@pytest.mark.parametrize("word", ["UNAVAILABLE", "RESOURCE_EXHAUSTED", "INTERNAL"])
async def test_it_refuses_and_another_one_takes_it(word: str) -> None:
    async with house("aggregated-1", "aggregated-2") as inside:
        one, two = inside.fleet["aggregated-1"], inside.fleet["aggregated-2"]
        for _ in range(4):  # ties are drawn: whoever is called first refuses
            one.script = two.script = deque([word])
            await answer(inside)
        attempts = [call.sequence.attempt for call in one.calls + two.calls]
        assert max(attempts) == 2


@pytest.mark.parametrize("sent", [0, 1, 3])
@pytest.mark.parametrize("what", ["die", "silent"])
async def test_it_is_lost_in_mid_stream_and_the_restarted_one_goes_on(what: str, sent: int) -> None:
    async with house("aggregated-1", limits=HASTY) as inside:
        one = inside.fleet["aggregated-1"]
        one.script.append(f"{what} after {sent}")
        asking = asyncio.create_task(inside.tokens(asked := request()))
        await until(lambda: bool(one.calls) and not inside.pool.get("aggregated-1").alive)
        await one.kill()
        await one.start()
        check_output(asked, await asking)
        first, again = one.calls
        arrived = len(again.sequence.token_ids) - len(first.sequence.token_ids)
        # what was still under way is lost with the connection
        assert arrived == sent if what == "silent" else 0 <= arrived <= sent
        assert again.sequence.prompt_len == first.sequence.prompt_len
        assert again.sequence.attempt > first.sequence.attempt
        await inside.fleet.quiet()


@pytest.mark.parametrize("word", ["repeat", "old attempt"])
async def test_what_is_not_due_is_dropped(word: str) -> None:
    async with house("aggregated-1") as inside:
        inside.fleet["aggregated-1"].script.append(word)
        await answer(inside)
        assert len(inside.fleet["aggregated-1"].calls) == 1


async def test_a_skipped_position_ends_the_attempt() -> None:
    async with house("aggregated-1") as inside:
        inside.fleet["aggregated-1"].script.append("skip")
        await answer(inside)
        assert len(inside.fleet["aggregated-1"].calls) == 2


async def test_client_errors_are_not_retried() -> None:
    async with house("aggregated-1") as inside:
        inside.fleet["aggregated-1"].script.append("INVALID_ARGUMENT")
        with pytest.raises(InvalidRequest, match="scripted INVALID_ARGUMENT"):
            await inside.tokens(request())
        assert len(inside.fleet["aggregated-1"].calls) == 1


@pytest.mark.parametrize("moment", ["before", "after 0", "after 2"])
@pytest.mark.parametrize("how", ["cancel", "close"])
async def test_a_client_that_leaves_frees_the_worker(moment: str, how: str) -> None:
    seen = {"before": 0, "after 0": 0, "after 2": 2}[moment]
    async with house("aggregated-1") as inside:
        one = inside.fleet["aggregated-1"]
        one.script.append(f"wait {moment}")
        emissions = inside.dispatcher.run(request())
        for _ in range(seen):
            await anext(emissions)
        if how == "cancel" or seen == 0:  # a generator can be closed only where it stands still
            waiting = asyncio.ensure_future(anext(emissions))
            await until(lambda: one.active == 1)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        await emissions.aclose()
        await inside.fleet.quiet()
        await until(lambda: bool(one.cancelled))


# -- beside the other roles ------------------------------------------------------------------------

MIXED = ("prefill-1", "decode-1", "aggregated-1")


async def test_both_ways_are_taken_and_each_is_complete() -> None:
    async with house(*MIXED) as inside:
        asked = unlike(20)
        for one, emissions in zip(
            asked, await asyncio.gather(*map(inside.tokens, asked)), strict=True
        ):
            check_output(one, emissions)
        await inside.fleet.quiet()
        prefill, decode, alone = (inside.fleet[name].calls for name in MIXED)
        assert len(prefill) == len(decode) > 0 < len(alone)
        assert len(prefill) + len(alone) == 20
        assert not any(call.HasField("ticket") for call in alone)


@pytest.mark.parametrize("lost", MIXED)
async def test_with_one_of_three_away_the_others_answer(lost: str) -> None:
    async with house(*MIXED) as inside:
        await inside.fleet[lost].kill()
        await until(lambda: not inside.pool.get(lost).alive)
        for _ in range(6):
            await answer(inside)


async def test_an_aggregated_worker_dies_in_mid_stream_and_the_pair_goes_on() -> None:
    async with house(*MIXED) as inside:
        prefill, decode, alone = (inside.fleet[name] for name in MIXED)
        prefill.state = "draining"
        await until(lambda: not inside.pool.get("prefill-1").up)
        alone.script.append("die after 3")
        asking = asyncio.create_task(inside.tokens(asked := request()))
        await until(lambda: bool(alone.calls))
        prefill.state = "ready"
        check_output(asked, await asking)
        arrived = len(prefill.calls[0].sequence.token_ids) - len(asked.token_ids)
        assert 0 <= arrived <= 3  # what was still under way is lost with the connection
        assert len(decode.calls) == 1
        await inside.fleet.quiet()


async def test_a_decode_worker_dies_in_mid_stream_and_the_aggregated_one_goes_on() -> None:
    async with house(*MIXED) as inside:
        prefill, decode, alone = (inside.fleet[name] for name in MIXED)
        alone.state = "draining"
        await until(lambda: not inside.pool.get("aggregated-1").up)
        decode.script.append("die after 2")
        asking = asyncio.create_task(inside.tokens(asked := request()))
        await until(lambda: bool(decode.calls))
        alone.state, prefill.state = "ready", "draining"
        check_output(asked, await asking)
        *bound, call = alone.calls  # the ticket too, where its death came before its word
        assert len(bound) <= 1 and all(each.HasField("ticket") for each in bound)
        arrived = len(call.sequence.token_ids) - len(asked.token_ids)
        assert 1 <= arrived <= 3  # the prefill worker's, and what was not lost under way
        await inside.fleet.quiet()


async def test_a_ticket_that_no_decode_worker_can_take_is_redeemed_by_an_aggregated_one() -> None:
    async with house("prefill-1", "aggregated-1") as inside:
        prefill, alone = inside.fleet["prefill-1"], inside.fleet["aggregated-1"]
        alone.state = "draining"
        await until(lambda: not inside.pool.get("aggregated-1").up)
        asking = asyncio.create_task(inside.tokens(asked := request()))
        await until(lambda: bool(prefill.tickets))
        alone.state = "ready"
        check_output(asked, await asking)
        (call,) = alone.calls
        assert call.HasField("ticket") and len(prefill.calls) == 1
        await inside.fleet.quiet()


async def test_nobody_there() -> None:
    async with house("decode-1", limits=Limits(worker_wait_s=0.1)) as inside:
        with pytest.raises(Unavailable, match="no worker is ready to prefill this request"):
            await inside.tokens(request())


# -- placement -------------------------------------------------------------------------------------


def test_a_prompt_goes_where_its_first_token_is_soonest() -> None:
    split, alone = replica("p", "prefill"), replica("a", "aggregated")
    need = Need("prefill", 2048, {})
    chooser = placement()
    drawn = Counter(chooser.place(need, [split, alone]).replica.id for _ in range(100))
    assert min(drawn["p"], drawn["a"]) > 20, "both idle: a tie"
    with split.assigned(pending_tokens=8192, kv_tokens=8192):
        assert chooser.place(need, [split, alone]).replica is alone
    with alone.assigned(pending_tokens=0, kv_tokens=100_000, decodes=True):
        decision = chooser.place(need, [split, alone])
        assert decision.replica is split, "its decodes are in the way"
        assert decision.scores["a"].wait_s > 0 == decision.scores["p"].wait_s
        cached = Need("prefill", 2048, {"a": 2032})
        assert chooser.place(cached, [split, alone]).replica is alone


def test_a_ticket_goes_to_an_aggregated_replica_only_as_a_last_resort() -> None:
    busy, alone, prefill = replica("d", "decode"), replica("a", "aggregated"), replica("p")
    need = Need("decode", 512, {}, kv_abi="x")
    with busy.assigned(0, 200_000):
        decision = placement().place(need, [busy, alone, prefill])
    assert decision.replica is busy
    assert decision.refused == {"a": Refusal.AGGREGATED, "p": Refusal.ROLE}
    failed = Need("decode", 512, {}, kv_abi="x", avoid={"d/1"})
    decision = placement().place(failed, [busy, alone])
    assert decision.replica is alone and decision.refused == {"d": Refusal.FAILED_IT}
    assert placement().place(need, [alone, prefill]).replica is alone
