"""Sequences that stand still to be handed on, go on after all, or arrive with their KV."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.test_scheduler import engine_of, request, undivided
from workers.core.clock import run_virtual
from workers.core.request import Sequence, SequenceStatus
from workers.engine import Engine

S = SequenceStatus


@settings(max_examples=100)
@given(
    st.lists(
        st.tuples(
            st.integers(1, 20),  # prompt
            st.integers(1, 12),  # output
            st.lists(st.floats(0.0, 0.1), max_size=3),  # pauses before it is frozen
            st.floats(0.0, 0.1),  # how long it stands still
        ),
        min_size=1,
        max_size=5,
    ),
    st.integers(14, 40),
    st.booleans(),
    st.integers(1, 12),
)
def test_whoever_is_frozen_and_resumed_at_any_time_says_the_same_tokens(
    arrivals: list[tuple[int, int, list[float], float]],
    blocks: int,
    overlap: bool,
    step_tokens: int,
) -> None:
    async def disturb(engine: Engine, seq: Sequence, pauses: list[float], stands_s: float) -> None:
        for pause in pauses:
            await asyncio.sleep(pause)
            if seq.status is not S.RUNNING:
                continue
            engine.pin(seq)
            engine.freeze(seq)
            await asyncio.sleep(stands_s)
            engine.check_integrity()
            tokens = list(seq.tokens)
            if seq.status is S.HELD:
                await asyncio.sleep(stands_s)
                assert seq.tokens == tokens, "it went on while it was held"
                assert seq.num_computed == len(tokens) - 1
            engine.unpin(seq)
            if seq.status is not S.FINISHED:
                engine.resume(seq)

    async def scene() -> None:
        engine = engine_of(blocks, step_tokens=step_tokens, max_seqs=4, overlap=overlap)
        serving = asyncio.create_task(engine.serve())

        async def one(index: int, prompt_len: int, count: int, *how: object) -> None:
            prompt = [(index + k) % 50 for k in range(prompt_len)]
            seq = engine.new_sequence(request(str(index), prompt, count))
            updates = engine.updates(seq)
            engine.submit(seq)
            disturbing = asyncio.create_task(disturb(engine, seq, *how))  # type: ignore[arg-type]
            tokens = [token.id async for update in updates for token in update.tokens]
            assert tokens == undivided(prompt, count)
            await disturbing

        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            for index, arrival in enumerate(arrivals):
                group.create_task(one(index, *arrival))
        engine.check_integrity()
        assert engine.pool.num_referenced == 0
        serving.cancel()

    run_virtual(scene())


def test_between_steps_a_decode_is_frozen_at_once_and_a_prompt_after_its_first_token() -> None:
    async def scene() -> None:
        engine = engine_of(20)
        decoding = engine.add(request("decoding", [1, 2, 3], 9))
        await engine.step()
        engine.freeze(decoding)
        assert decoding.status is S.HELD and decoding.num_output == 1

        prompt = engine.add(request("prompt", list(range(20)), 9))
        await engine.step()
        engine.freeze(prompt)
        assert prompt.status is S.RUNNING
        while prompt.status is S.RUNNING:
            await engine.step()
        assert prompt.status is S.HELD and prompt.num_output == 1
        engine.check_integrity()

    run_virtual(scene())


def test_who_is_read_by_others_is_not_preempted_and_waits_for_pages_itself() -> None:
    async def scene() -> None:
        engine = engine_of(7)
        held = engine.add(request("held", [9] * 5, 9))
        await engine.step()
        engine.freeze(held)
        pinned = engine.add(request("pinned", [1, 2, 3, 4, 5], 20))
        await engine.step()
        engine.pin(pinned)
        first = pinned.blocks[0]
        other = engine.add(request("other", [6, 7, 8, 9, 1, 2], 6))
        while pinned.num_output < 6 or other.status is S.RUNNING:
            await engine.step()
        while await engine.step() is not None:
            assert pinned.blocks[0] == first
        assert engine.scheduler.preemptions > 0 and other.status is not S.FINISHED
        assert pinned.status is S.RUNNING and pinned.blocks[0] == first
        assert len(pinned.tokens) == 21, "its KV fills the 5 blocks that are left to it"
        engine.unpin(pinned)
        engine.freeze(pinned)
        assert pinned.status is S.HELD, "no page is needed to stand still"
        engine.check_integrity()

    run_virtual(scene())


@pytest.mark.parametrize("known", [True, False], ids=["all known", "the first comes with the KV"])
def test_a_prompt_at_the_end_of_a_block_has_all_its_blocks_matched_and_one_more_reserved(
    known: bool,
) -> None:
    """Nothing that is cached here is fetched, whether or not the first token is known by then."""

    async def scene() -> None:
        engine = engine_of(20)
        prompt = [3, 1, 4, 1, 5, 9, 2, 6]
        first, *rest = undivided(prompt, 4)
        engine.add(request("before", [*prompt, first], 1))
        while engine.has_work:
            await engine.step()

        what = [*prompt, first] if known else prompt
        seq = engine.new_sequence(request("now", what, 4), to_come=0 if known else 1)
        seq.prompt_len = len(prompt)
        await engine.reserve(seq)
        assert seq.num_cached == 8 and len(seq.blocks) == 3
        engine.start(seq, [] if known else [first])
        seq.most_tokens = len(prompt) + 4
        while engine.has_work:
            await engine.step()
        assert seq.tokens == [*prompt, first, *rest]

    run_virtual(scene())


def test_a_reservation_grows_where_there_are_pages_and_says_so_where_not() -> None:
    async def scene() -> None:
        engine = engine_of(8)
        seq = engine.new_sequence(request("grows", [1] * 9, 9))
        await engine.reserve(seq)
        assert len(seq.blocks) == 3
        assert engine.scheduler.extend(seq, 2) and len(seq.blocks) == 3
        assert engine.scheduler.extend(seq, 8) and len(seq.blocks) == 8
        assert not engine.scheduler.extend(seq, 9) and len(seq.blocks) == 8
        engine.check_integrity()
        engine.abort(seq)
        assert engine.pool.num_referenced == 0

    run_virtual(scene())


@pytest.mark.parametrize("how", ["abort", "finish"])
def test_pages_that_others_read_stay_when_their_sequence_ends(how: str) -> None:
    async def scene() -> None:
        engine = engine_of(20)
        seq = engine.add(request("read", [1, 2, 3, 4, 5], 3 if how == "finish" else 50))
        await engine.step()
        engine.pin(seq)
        blocks = list(seq.blocks)
        if how == "abort":
            engine.abort(seq)
        while seq.status is not S.FINISHED:
            await engine.step()
        engine.check_integrity()
        assert list(seq.blocks) == blocks and engine.pool.num_referenced == len(blocks)
        engine.unpin(seq)
        engine.check_integrity()
        assert engine.pool.num_referenced == 0

    run_virtual(scene())


def test_who_may_go_on_at_any_moment_keeps_its_place_in_the_batch() -> None:
    async def scene() -> None:
        engine = engine_of(40, max_seqs=2)
        frozen = engine.add(request("frozen", [1, 2, 3], 9))
        other = engine.add(request("other", [4, 5, 6], 9))
        await engine.step()
        engine.freeze(frozen)
        third = engine.add(request("third", [7, 8, 9], 9))
        await engine.step()
        assert third.status is S.WAITING and len(engine.scheduler.running) == 1
        engine.resume(frozen)
        await engine.step()
        assert engine.scheduler.running == [other, frozen]

    run_virtual(scene())
