"""Hashing, events, clock and waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.core.clock import Deadlock, run_virtual
from workers.core.events import EventKind, EventLog, KVEvent
from workers.core.hashing import BlockHasher, block_ids, namespace
from workers.core.waits import inline, to_the_end, with_heartbeats
from workers.wire.redis_keys import pack_events, unpack_events

TOKENS = st.lists(st.integers(0, 200_000), max_size=100)


@given(TOKENS, TOKENS, st.integers(1, 17))
def test_ids_are_chained(tokens: list[int], more: list[int], size: int) -> None:
    """Extending never changes what was there; one other token changes every later id."""
    whole = block_ids([*tokens, *more], b"ns", size)
    hasher = BlockHasher(b"ns", size)
    hasher.extend(tokens)
    assert hasher.ids == whole[: len(tokens) // size]
    hasher.extend([*tokens, *more])
    assert hasher.ids == whole
    if len(tokens) >= size:
        changed = block_ids([tokens[0] + 1, *tokens[1:], *more], b"ns", size)
        assert not set(changed) & set(whole)


@given(st.tuples(st.text(), st.text(), st.text()), st.tuples(st.text(), st.text(), st.text()))
def test_namespaces_never_collide(a: tuple[str, str, str], b: tuple[str, str, str]) -> None:
    one = namespace(a[0], lora=a[1], cache_salt=a[2])
    other = namespace(b[0], lora=b[1], cache_salt=b[2])
    assert (one == other) == (a == b)


@given(
    st.lists(st.tuples(st.sampled_from(EventKind), st.lists(st.binary(min_size=16, max_size=16))))
)
def test_events_survive_packing(raw: list[tuple[EventKind, list[bytes]]]) -> None:
    events = [KVEvent(kind, tuple(blocks)) for kind, blocks in raw]
    assert unpack_events(pack_events(events)) == events


def test_event_log_packs_neighbours() -> None:
    log = EventLog()
    for kind, block in (("stored", b"a"), ("stored", b"b"), ("removed", b"a"), ("stored", b"c")):
        log.record(EventKind(kind), (block,))
    assert [(e.kind, e.blocks) for e in log.take()] == [
        (EventKind.STORED, (b"a", b"b")),
        (EventKind.REMOVED, (b"a",)),
        (EventKind.STORED, (b"c",)),
    ]
    assert log.take() == []


def test_virtual_time_jumps_and_keeps_order() -> None:
    async def scene() -> list[str]:
        said: list[str] = []

        async def say(what: str, after: float) -> None:
            await asyncio.sleep(after)
            said.append(what)

        await asyncio.gather(say("late", 5000), say("early", 10))
        assert asyncio.get_running_loop().time() >= 5000
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3600):
                await asyncio.Event().wait()
        return said

    assert run_virtual(scene()) == ["early", "late"]


def test_virtual_deadlock_is_an_error_and_not_a_hang() -> None:
    async def scene() -> None:
        await asyncio.Event().wait()

    with pytest.raises(Deadlock):
        run_virtual(scene())


def test_to_the_end_outlives_cancellation() -> None:
    async def scene() -> None:
        done = False

        async def copy() -> None:
            nonlocal done
            await asyncio.sleep(5)
            done = True

        task = asyncio.create_task(to_the_end(copy()))
        await asyncio.sleep(1)
        task.cancel()
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert done
        assert await to_the_end(inline(max, 1, 2)) == 2
        with pytest.raises(ZeroDivisionError):
            await to_the_end(inline(divmod, 1, 0))

    run_virtual(scene())


def test_heartbeats_fill_silence_and_close_the_stream() -> None:
    async def scene() -> None:
        closed = False

        async def slow() -> AsyncIterator[str]:
            nonlocal closed
            try:
                yield "a"
                await asyncio.sleep(2.5)
                yield "b"
            finally:
                closed = True

        beating = with_heartbeats(slow(), lambda: "beat", 1.0)
        assert [item async for item in beating] == ["a", "beat", "beat", "b"]
        assert closed
        closed = False
        left = with_heartbeats(slow(), lambda: "beat", 1.0)
        assert await anext(left) == "a"
        await left.aclose()
        assert closed

    run_virtual(scene())
