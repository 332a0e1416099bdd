"""Engine and scheduler on simulated pages: random arrivals, sizes, aborts; right tokens always."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.core.batch import Batch, StepOutput
from workers.core.block_pools import BlockPools
from workers.core.clock import VirtualClock, run_virtual
from workers.core.errors import Cancelled, ContextTooLong, InvalidRequest, KvasirError
from workers.core.events import EventKind
from workers.core.request import FinishReason, Request, SamplingParams, SequenceStatus
from workers.core.sim_runner import SimRunner, sim_next_token
from workers.engine import Engine

VOCAB = 50


def engine_of(
    blocks: int,
    *,
    step_tokens: int = 8,
    max_seqs: int = 4,
    context: int = 256,
    overlap: bool = False,
    eos: tuple[int, ...] = (),
    shards: int = 1,
) -> Engine:
    runner = SimRunner(
        num_blocks=blocks,
        block_size=4,
        vocab_size=VOCAB,
        context_length=context,
        eos_token_ids=eos,
        shards=shards,
    )
    return Engine(
        runner,
        block_size=4,
        step_tokens=step_tokens,
        max_seqs=max_seqs,
        clock=VirtualClock(),
        overlap=overlap,
    )


def request(name: str, prompt: list[int], max_tokens: int | None, **more: object) -> Request:
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens, **more)  # type: ignore[arg-type]
    return Request(name, tuple(prompt), len(prompt), params)


def undivided(prompt: list[int], count: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(sim_next_token(tokens, VOCAB))
    return tokens[len(prompt) :]


def until(eos: tuple[int, ...], tokens: list[int]) -> list[int]:
    """The tokens up to the first that ends a text, with it."""
    ends = [i for i, token in enumerate(tokens) if token in eos]
    return tokens[: ends[0] + 1] if ends else tokens


async def run_to_idle(engine: Engine) -> None:
    while engine.has_work:
        await engine.step()
        engine.check_integrity()


ARRIVALS = st.lists(
    st.tuples(
        st.floats(0, 0.2),  # arrival
        st.integers(1, 40),  # prompt length
        st.integers(0, 2),  # family
        st.integers(1, 24),  # tokens
        st.none() | st.floats(0, 0.3),  # abort after
    ),
    min_size=1,
    max_size=10,
)


@settings(max_examples=150)
@given(
    ARRIVALS,
    st.integers(17, 48),
    st.integers(1, 20),
    st.integers(1, 6),
    st.booleans(),
    st.integers(1, 3),
)
def test_any_schedule_gives_the_tokens_of_each_request_alone(
    arrivals: list[tuple[float, int, int, int, float | None]],
    blocks: int,
    step_tokens: int,
    max_seqs: int,
    overlap: bool,
    shards: int,
) -> None:
    async def scene() -> None:
        eos = (7,)  # nobody knows before when it comes
        engine = engine_of(
            shards * blocks,
            step_tokens=step_tokens,
            max_seqs=max_seqs,
            overlap=overlap,
            eos=eos,
            shards=shards,
        )
        serving = asyncio.create_task(engine.serve())

        async def one(name: str, arrival: tuple[float, int, int, int, float | None]) -> None:
            at, length, family, count, abort_after = arrival
            await asyncio.sleep(at)
            prompt = [(family + k) % VOCAB for k in range(length)]
            seq = engine.new_sequence(request(name, prompt, count))
            updates = engine.updates(seq)
            engine.submit(seq)
            tokens: list[int] = []
            try:
                async with asyncio.timeout(abort_after):
                    async for update in updates:
                        engine.check_integrity()
                        tokens += [token.id for token in update.tokens]
            except TimeoutError:
                engine.abort(seq)
            expected = until(eos, undivided(prompt, count))
            assert tokens == expected[: len(tokens)]
            assert abort_after is not None or tokens == expected

        async with asyncio.TaskGroup() as group:
            for i, arrival in enumerate(arrivals):
                group.create_task(one(str(i), arrival))
        await asyncio.sleep(5)
        engine.check_integrity()
        assert engine.pool.num_referenced == 0
        assert not engine.has_work
        serving.cancel()

    run_virtual(scene())


def test_preemption_is_forced_and_harmless() -> None:
    async def scene() -> None:
        engine = engine_of(10)
        seqs = [engine.add(request(str(i), [i, 1, 2, 3, 4], 20)) for i in range(3)]
        await run_to_idle(engine)
        assert engine.scheduler.preemptions > 0
        for i, seq in enumerate(seqs):
            assert seq.tokens[5:] == undivided([i, 1, 2, 3, 4], 20)

    run_virtual(scene())


def test_decodes_go_on_while_a_long_prompt_is_chunked() -> None:
    async def scene() -> None:
        engine = engine_of(48, step_tokens=8)
        short = engine.add(request("short", [1, 2, 3], 30))
        await engine.step()
        engine.add(request("long", list(range(40)), 1))
        before = short.num_output
        for _ in range(5):
            await engine.step()
        assert short.num_output == before + 5, "a decode waited for a prefill chunk"

    run_virtual(scene())


def test_cached_prefix_is_not_computed_again() -> None:
    async def scene() -> None:
        engine = engine_of(48)
        prompt = list(range(33))
        first = engine.add(request("a", prompt, 2))
        await run_to_idle(engine)
        second = engine.add(request("b", prompt, 2))
        await run_to_idle(engine)
        assert (first.num_cached, second.num_cached) == (0, 32)
        assert first.tokens == second.tokens

    run_virtual(scene())


def test_a_prompt_that_ends_with_its_block_still_computes_its_last_token() -> None:
    async def scene() -> None:
        engine = engine_of(48)
        prompt = list(range(32))
        engine.add(request("a", prompt, 1))
        await run_to_idle(engine)
        again = engine.add(request("b", prompt, 3))
        await run_to_idle(engine)
        assert again.num_cached == 28
        assert again.tokens[32:] == undivided(prompt, 3)

    run_virtual(scene())


def test_other_salts_share_nothing() -> None:
    async def scene() -> None:
        engine = engine_of(48)
        prompt = tuple(range(20))
        params = SamplingParams(temperature=0.0, max_tokens=1)
        engine.add(Request("a", prompt, 20, params, cache_salt="tenant-a"))
        await run_to_idle(engine)
        other = engine.add(Request("b", prompt, 20, params, cache_salt="tenant-b"))
        await run_to_idle(engine)
        assert other.num_cached == 0

    run_virtual(scene())


def test_stops_and_lengths() -> None:
    prompt = [1, 2, 3]
    right = undivided(prompt, 12)

    async def ended(**more: object) -> tuple[list[int], FinishReason | None]:
        engine = engine_of(48, context=more.pop("context", 256))  # type: ignore[arg-type]
        max_tokens = more.pop("max_tokens", 12)
        seq = engine.add(request("r", prompt, max_tokens, **more))  # type: ignore[arg-type]
        await run_to_idle(engine)
        return seq.tokens[3:], seq.finish_reason

    async def scene() -> None:
        stop = right[4]
        until = right.index(stop) + 1
        assert await ended() == (right, FinishReason.LENGTH)
        assert await ended(stop_token_ids=(stop,)) == (right[:until], FinishReason.STOP)
        tokens, _ = await ended(stop_token_ids=(stop,), min_tokens=6)
        assert len(tokens) >= 6
        assert await ended(context=10, max_tokens=None) == (right[:7], FinishReason.LENGTH)

    run_virtual(scene())


def test_what_cannot_run_is_refused_with_both_lengths() -> None:
    async def scene() -> None:
        engine = engine_of(8, context=256)
        with pytest.raises(ContextTooLong, match=r"32 tokens.*KV pool is 32"):
            engine.add(request("r", [1] * 32, 1))
        with pytest.raises(ContextTooLong, match=r"16 tokens.*context length is 16"):
            engine_of(8, context=16).add(request("r", [1] * 16, 1))
        with pytest.raises(InvalidRequest, match="empty"):
            engine.add(request("r", [], 1))
        with pytest.raises(InvalidRequest, match=r"0\.\.49"):
            engine.add(request("r", [50], 1))
        with pytest.raises(InvalidRequest, match="needs a seed") as caught:
            engine.add(Request("r", (1,), 1, SamplingParams(temperature=0.1)))
        assert caught.value.param == "seed"
        assert not engine.has_work

    run_virtual(scene())


def test_a_failing_step_ends_its_sequences_and_nothing_else() -> None:
    async def scene() -> None:
        engine = engine_of(48)
        healthy = engine.runner.execute

        async def broken(batch: object) -> object:
            raise KvasirError("NaN logits of request bad")

        serving = asyncio.create_task(engine.serve())
        bad = engine.new_sequence(request("bad", [1, 2, 3], 5))
        engine.runner.execute = broken  # type: ignore[method-assign, assignment]
        updates = engine.updates(bad)
        engine.submit(bad)
        with pytest.raises(KvasirError, match="NaN"):
            await anext(updates)
        engine.runner.execute = healthy  # type: ignore[method-assign]
        good = engine.new_sequence(request("good", [1, 2, 3], 5))
        updates = engine.updates(good)
        engine.submit(good)
        assert [u.tokens[0].id async for u in updates if u.tokens] == undivided([1, 2, 3], 5)
        engine.check_integrity()
        serving.cancel()

    run_virtual(scene())


@pytest.mark.parametrize("hold", [False, True])
def test_an_error_in_place_of_a_token_ends_that_sequence_alone(hold: bool) -> None:
    async def scene() -> None:
        engine = engine_of(48, step_tokens=40)
        healthy = engine.runner.execute

        async def broken_for_one(batch: Batch) -> StepOutput:
            output = await healthy(batch)
            sampling = [chunk.sequence.id for chunk in batch.chunks if chunk.sample]
            choices = (
                KvasirError("no logits") if name == "bad" and len(sampling) == 3 else token
                for name, token in zip(sampling, output.tokens, strict=True)
            )
            return StepOutput(tuple(choices))

        engine.runner.execute = broken_for_one  # type: ignore[method-assign]
        goods = [engine.add(request(name, [1, 2, i], 5)) for i, name in enumerate("ab")]
        bad = engine.new_sequence(request("bad", list(range(9)), 5), hold=hold)
        updates = engine.updates(bad)
        engine.submit(bad)
        await run_to_idle(engine)
        with pytest.raises(KvasirError, match="no logits"):
            await anext(updates)
        assert bad.status is SequenceStatus.FINISHED and bad.num_output == 0
        for i, good in enumerate(goods):
            assert good.tokens[3:] == undivided([1, 2, i], 5)
        again = engine.add(request("again", list(range(9)), 1))
        await run_to_idle(engine)
        assert again.num_cached == 0, "pages behind bad logits were kept"
        assert engine.pool.num_referenced == 0

    run_virtual(scene())


@pytest.mark.parametrize("status", ["waiting", "reserved", "running", "held"])
def test_abort_frees_everything_in_every_state(status: str) -> None:
    async def scene() -> None:
        engine = engine_of(8, max_seqs=1)
        if status == "waiting":
            engine.add(request("first", [1, 2], 50))
            await engine.step()
        seq = engine.new_sequence(request("r", [1, 2, 3], 50), hold=status == "held")
        if status == "reserved":
            await engine.reserve(seq)
        else:
            engine.submit(seq)
            await engine.step()
        assert seq.status == status
        engine.abort(seq)
        engine.abort(seq)
        assert seq.status is SequenceStatus.FINISHED and not seq.blocks
        engine.check_integrity()

    run_virtual(scene())


def test_abort_in_mid_step_keeps_the_pages_until_the_step_is_over() -> None:
    async def scene() -> None:
        engine = engine_of(8)
        serving = asyncio.create_task(engine.serve())
        seq = engine.new_sequence(request("r", [1, 2, 3, 4, 5], 50))
        updates = engine.updates(seq)
        engine.submit(seq)
        await asyncio.sleep(0.001)  # a step of 5 ms is running
        engine.abort(seq)
        assert engine.pool.num_referenced == 2, "freed under the runner's hands"
        with pytest.raises(Cancelled):
            await anext(updates)
        await asyncio.sleep(0.1)
        assert engine.pool.num_referenced == 0
        serving.cancel()

    run_virtual(scene())


def test_reservations_wait_for_room_in_order_and_can_be_given_up() -> None:
    async def scene() -> None:
        engine = engine_of(8, max_seqs=8)
        big = engine.new_sequence(request("big", [1] * 28, 2))
        await engine.reserve(big)
        waiting = [engine.new_sequence(request(str(i), [2] * 8, 2)) for i in range(2)]
        tasks = [asyncio.create_task(engine.reserve(seq)) for seq in waiting]
        await asyncio.sleep(1)
        assert engine.num_waiting_for_pages == 2
        tasks[0].cancel()
        engine.abort(big)
        await tasks[1]
        assert waiting[1].status is SequenceStatus.RESERVED
        assert waiting[0].status is SequenceStatus.FINISHED
        engine.check_integrity()

    run_virtual(scene())


def test_with_overlap_the_device_never_waits_for_the_host() -> None:
    async def scene(overlap: bool) -> tuple[list[int], float]:
        engine = engine_of(48, overlap=overlap)
        seq = engine.add(request("r", [1, 2, 3], 20))  # 3 ms, then 19 steps of 1 ms
        began = engine.clock.now()
        while engine.has_work:
            await engine.step()
            await asyncio.sleep(0.0005)  # what the host does with it
        return seq.tokens, engine.clock.now() - began

    plain, slow = run_virtual(scene(False))
    ahead, fast = run_virtual(scene(True))
    assert plain == ahead
    assert (slow, fast) == (pytest.approx(0.032), pytest.approx(0.0225))


def test_a_failed_step_ends_who_ran_ahead_of_it_and_nobody_else() -> None:
    async def scene() -> None:
        engine = engine_of(48, overlap=True)
        healthy = engine.runner.execute
        steps = 0

        async def broken(batch: Batch) -> StepOutput:
            await healthy(batch)
            raise KvasirError("the step failed")

        def second_fails(batch: Batch) -> Awaitable[StepOutput]:
            nonlocal steps
            steps += 1
            return broken(batch) if steps == 2 else healthy(batch)

        engine.runner.execute = second_fails  # type: ignore[method-assign]
        early = engine.add(request("early", [1, 2, 3], 30))
        await engine.step()  # the second is under way
        late = engine.add(request("late", [4, 5, 6], 5))
        with pytest.raises(KvasirError, match="the step failed"):
            await engine.step()  # and the third, with both
        assert early.status is SequenceStatus.FINISHED
        engine.check_integrity()
        await run_to_idle(engine)
        assert late.tokens[3:] == undivided([4, 5, 6], 5)
        assert engine.pool.num_referenced == 0

    run_virtual(scene())


def test_nobody_runs_ahead_of_a_token_that_changes_its_own_logits() -> None:
    async def scene() -> None:
        engine = engine_of(48, overlap=True)
        seen: list[bool] = []
        healthy = engine.runner.execute

        def watched(batch: Batch) -> Awaitable[StepOutput]:
            seen.extend(chunk.start < len(chunk.sequence.tokens) for chunk in batch.chunks)
            return healthy(batch)

        engine.runner.execute = watched  # type: ignore[method-assign]
        engine.add(request("plain", [1, 2, 3], 9))
        engine.add(request("penalised", [1, 2, 3], 9, presence_penalty=1.0))
        await run_to_idle(engine)
        assert len(seen) == 18 and all(seen), "a token was sampled without those before it"

    run_virtual(scene())


def test_shards_fill_evenly_unless_one_has_the_prefix() -> None:
    async def scene() -> None:
        engine = engine_of(2 * 40, max_seqs=8, step_tokens=64, shards=2)
        first = [engine.add(request(f"a{i}", [i] * 9, 30)) for i in range(4)]
        await engine.step()
        assert sorted(seq.shard for seq in first) == [0, 0, 1, 1]
        long = [(20 + i) % VOCAB for i in range(33)]
        warm = engine.add(request("warm", long, 1))
        await engine.step()
        again = engine.add(request("again", long, 30))
        await engine.step()
        assert (again.shard, again.num_cached) == (warm.shard, 32)
        await run_to_idle(engine)
        assert again.tokens[33:] == undivided(long, 30)

    run_virtual(scene())


def test_a_block_of_two_shards_is_told_once_and_removed_with_the_last() -> None:
    pools = BlockPools(8, 4, shards=2)
    blocks = [pool.allocate(4) for pool in pools.shards]
    assert blocks == [[0, 1, 2, 3], [4, 5, 6, 7]]
    for pool, own in zip(pools.shards, blocks, strict=True):
        pool.commit([own[0]], [b"same"])
    assert [(e.kind, e.blocks) for e in pools.events.take()] == [(EventKind.STORED, (b"same",))]
    assert pools.cached_ids() == [b"same"]
    for shard, told in ((0, []), (1, [(EventKind.REMOVED, (b"same",))])):
        pools.shards[shard].release(blocks[shard])
        pools.shards[shard].allocate(4)
        assert [(e.kind, e.blocks) for e in pools.events.take()] == told


def test_a_cancelled_step_leaves_an_engine_that_goes_on() -> None:
    async def scene() -> None:
        engine = engine_of(48, overlap=True)
        early = engine.add(request("early", [1, 2, 3], 30))
        await engine.step()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(engine.step(), 0.0001)
        engine.abort(early)
        late = engine.add(request("late", [4, 5, 6], 5))
        await run_to_idle(engine)
        assert late.tokens[3:] == undivided([4, 5, 6], 5)
        assert engine.pool.num_referenced == 0

    run_virtual(scene())


def test_who_waits_for_pages_gets_those_of_a_step_that_failed_after_all_had_left() -> None:
    async def scene() -> None:
        engine = engine_of(4)

        async def fails(batch: Batch) -> StepOutput:
            await asyncio.sleep(0.01)
            raise KvasirError("the step failed")

        engine.runner.execute = fails  # type: ignore[method-assign]
        left = engine.add(request("left", list(range(12)), 3))
        step = asyncio.create_task(engine.step())
        await asyncio.sleep(0.001)
        engine.abort(left)
        waits = asyncio.create_task(engine.reserve(engine.new_sequence(request("w", [1] * 12, 3))))
        await asyncio.sleep(0.001)
        assert not waits.done()
        with pytest.raises(KvasirError, match="the step failed"):
            await step
        await asyncio.wait_for(waits, 1)

    run_virtual(scene())


def test_closing_does_not_wait_for_ever_for_a_step_that_hangs() -> None:
    async def scene() -> None:
        engine = engine_of(8)
        device = asyncio.Event()

        async def hangs(batch: Batch) -> StepOutput:
            await device.wait()
            raise KvasirError("the device came back")

        engine.runner.execute = hangs  # type: ignore[method-assign]
        engine.add(request("r", [1, 2, 3], 5))
        serving = asyncio.create_task(engine.serve())
        await asyncio.sleep(1)
        serving.cancel()
        await asyncio.wait_for(engine.close(), 10)
        assert not serving.done(), "no step hung"
        device.set()  # it cannot be stopped otherwise

    run_virtual(scene())
