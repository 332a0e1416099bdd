"""The mirror against an oracle of plain sets, under any history."""

from __future__ import annotations

import tracemalloc

from hypothesis import given, settings
from hypothesis import strategies as st

from router.index.expecting import ExpectingIndex
from router.index.memory import BYTES_PER_BLOCK, MemoryIndex
from workers.core.events import EventKind, KVEvent

REPLICAS = ("a", "b", "c")


class HandClock:
    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        return self.time


def block(number: int) -> bytes:
    return number.to_bytes(16, "little")


blocks = st.lists(st.integers(0, 11).map(block), max_size=8)
events = st.builds(
    lambda kind, ids: KVEvent(kind, () if kind is EventKind.CLEARED else tuple(ids)),
    st.sampled_from([EventKind.STORED] * 4 + [EventKind.REMOVED] * 2 + [EventKind.CLEARED]),
    blocks,
)
steps = st.lists(
    st.tuples(st.sampled_from(REPLICAS), st.one_of(st.lists(events, max_size=4), st.none())),
    max_size=30,
)


class Oracle:
    def __init__(self) -> None:
        self.held: dict[str, set[bytes]] = {name: set() for name in REPLICAS}

    def apply(self, name: str, happened: list[KVEvent]) -> None:
        for event in happened:
            if event.kind is EventKind.STORED:
                self.held[name] |= set(event.blocks)
            elif event.kind is EventKind.REMOVED:
                self.held[name] -= set(event.blocks)
            else:
                self.held[name].clear()

    def match(self, query: list[bytes]) -> dict[str, int]:
        found = {}
        for name, held in self.held.items():
            depth = 0
            while depth < len(query) and query[depth] in held:
                depth += 1
            if depth:
                found[name] = depth
        return found


@given(steps, blocks)
def test_mirror_equals_oracle(history, query) -> None:
    index, oracle = MemoryIndex(), Oracle()
    for name, happened in history:
        if happened is None:
            index.clear(name)
            oracle.held[name].clear()
        else:
            index.apply(name, happened)
            oracle.apply(name, happened)
        index.check_integrity()
        assert index.match(query) == oracle.match(query)
    assert {name: index.count(name) for name in REPLICAS} == {
        name: len(held) for name, held in oracle.held.items()
    }
    assert len(index) == len(set().union(*oracle.held.values()))


@given(steps, blocks, st.integers(1, 6))
@settings(max_examples=50)
def test_eviction_forgets_but_never_invents(history, query, cap) -> None:
    index, oracle = MemoryIndex(max_blocks=cap), Oracle()
    for name, happened in history:
        if happened is None:
            index.clear(name)
            oracle.held[name].clear()
        else:
            index.apply(name, happened)
            oracle.apply(name, happened)
        index.check_integrity()
        truth = oracle.match(query)
        assert all(depth <= truth.get(name, 0) for name, depth in index.match(query).items())


def test_the_oldest_blocks_go_first() -> None:
    index = MemoryIndex(max_blocks=32)
    index.apply("a", [KVEvent(EventKind.STORED, tuple(map(block, range(32))))])
    index.apply("a", [KVEvent(EventKind.STORED, (block(0), block(99)))])
    assert index.match([block(0)]) and index.match([block(99)])
    assert not index.match([block(1)])
    index.check_integrity()


def test_a_slot_is_clean_when_it_is_used_again() -> None:
    index = MemoryIndex()
    index.apply("a", [KVEvent(EventKind.STORED, (block(1),))])
    index.apply("b", [KVEvent(EventKind.STORED, (block(2),))])
    index.clear("a")
    index.apply("c", [])
    assert index.match([block(1)]) == {}
    assert index.match([block(2)]) == {"b": 1}
    index.check_integrity()


def test_a_block_costs_what_the_documentation_says() -> None:
    index, count = MemoryIndex(), 50_000
    tracemalloc.start()
    for start in range(0, count, 100):
        ids = tuple((n * 2**64 + n).to_bytes(16, "little") for n in range(start, start + 100))
        index.apply("a", [KVEvent(EventKind.STORED, ids)])
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used / count <= BYTES_PER_BLOCK


def test_what_was_sent_counts_until_it_is_confirmed_or_too_old() -> None:
    clock = HandClock()
    index = ExpectingIndex(clock, ttl_s=10.0)
    query = [block(1), block(2), block(3)]
    index.expect("a", query)
    assert index.match(query) == {"a": 3} and len(index) == 0
    index.apply("a", [KVEvent(EventKind.STORED, (block(1),))])
    clock.time = 11.0
    assert index.match(query) == {"a": 3}  # the older generation
    clock.time = 22.0
    assert index.match(query) == {"a": 1}  # only what was confirmed
    index.expect("a", query)
    clock.time = 60.0
    assert index.match(query) == {"a": 1}


def test_events_retract_what_was_expected() -> None:
    index = ExpectingIndex(HandClock())
    query = [block(1), block(2)]
    index.expect("a", query)
    index.expect("b", query)
    index.apply("a", [KVEvent(EventKind.REMOVED, (block(2),))])
    assert index.match(query) == {"a": 1, "b": 2}
    index.clear("b")
    assert index.match(query) == {"a": 1}
