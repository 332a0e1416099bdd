"""The mirror against an oracle of plain sets, under any history."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.index import memory
from router.index.expecting import ExpectingIndex
from router.index.measures import IndexMeasures
from router.index.memory import BYTES_PER_BLOCK, MemoryIndex
from router.index.redis_log import Repairs
from router.metrics import RouterMetrics
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
snapshots = st.sets(st.integers(0, 11).map(block)).map(frozenset)
steps = st.lists(
    st.tuples(
        st.sampled_from(REPLICAS),
        st.one_of(st.lists(events, max_size=4), snapshots, st.none()),
    ),
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

    def happen(self, index: MemoryIndex | ExpectingIndex, name: str, what) -> None:
        """To both: events, a snapshot, or the replica's end."""
        if what is None:
            index.clear(name)
            self.held[name].clear()
        elif isinstance(what, frozenset):
            for _ in index.replace(name, sorted(what)):
                index.check_integrity()
            self.held[name] = set(what)
        else:
            index.apply(name, what)
            self.apply(name, what)
        index.check_integrity()

    def match(self, query: list[bytes]) -> dict[str, int]:
        found = {}
        for name, held in self.held.items():
            depth = 0
            while depth < len(query) and query[depth] in held:
                depth += 1
            if depth:
                found[name] = depth
        return found


@given(steps, blocks, st.sampled_from([2, memory.PIECE]))
def test_mirror_equals_oracle(history, query, piece) -> None:
    """Also where bits leave and snapshots come in pieces of two blocks."""
    index, oracle = MemoryIndex(), Oracle()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "PIECE", piece)
        _compare(index, oracle, history, query)
        for _ in range(20):
            index.apply("a", [])  # each sweeps a piece
    assert {name: index.count(name) for name in REPLICAS} == {
        name: len(held) for name, held in oracle.held.items()
    }
    assert {name: index.held(name) for name in REPLICAS} == oracle.held
    assert len(index) == len(set().union(*oracle.held.values()))


def _compare(index, oracle, history, query) -> None:
    for name, happened in history:
        oracle.happen(index, name, happened)
        assert index.match(query) == oracle.match(query)


@given(steps, blocks, st.integers(1, 6))
@settings(max_examples=50)
def test_eviction_forgets_but_never_invents(history, query, cap) -> None:
    index, oracle = MemoryIndex(max_blocks=cap), Oracle()
    for name, happened in history:
        oracle.happen(index, name, happened)
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


def test_a_prefix_may_be_known_in_part_and_expected_in_part() -> None:
    index = ExpectingIndex(HandClock())
    index.apply("a", [KVEvent(EventKind.STORED, (block(1), block(2)))])
    index.expect("a", [block(1), block(2), block(3)])
    assert index.honesty.expected == 1
    assert index.match([block(1), block(2), block(3), block(4)]) == {"a": 3}


def test_a_snapshot_keeps_what_is_still_expected() -> None:
    index = ExpectingIndex(HandClock())
    index.apply("b", [KVEvent(EventKind.STORED, (block(1),))])
    index.expect("a", [block(1), block(2), block(3)])
    for _ in index.replace("a", [block(1)]):
        assert index.match([block(1), block(2)]) == {"a": 2, "b": 1}
    assert index.match([block(1), block(2), block(3)]) == {"a": 3, "b": 1}
    assert index.honesty.confirmed == 1
    index.check_integrity()


def test_a_snapshot_shows_at_once_or_not_at_all() -> None:
    index = MemoryIndex()
    index.apply("a", [KVEvent(EventKind.STORED, (block(1), block(2)))])
    filling = index.replace("a", [block(1), block(3)])
    next(filling)
    assert index.match([block(3)]) == {} and index.match([block(1), block(2)]) == {"a": 2}
    filling.close()
    assert index.held("a") == {block(1), block(2)}
    index.check_integrity()


def test_routing_by_a_block_keeps_it_from_the_cap() -> None:
    """Workers say once that they stored a block, and nothing while it is used day after day."""
    index = ExpectingIndex(HandClock(), max_blocks=32)
    index.apply("a", [KVEvent(EventKind.STORED, tuple(map(block, range(30))))])
    index.expect("a", [block(0), block(1)])
    index.apply("a", [KVEvent(EventKind.STORED, tuple(map(block, range(30, 40))))])
    assert index.match([block(0), block(1)]) == {"a": 2}
    assert index.match([block(2)]) == {} and index.evicted
    index.check_integrity()


deeds = st.one_of(
    st.tuples(st.just("expect"), st.sampled_from(REPLICAS), blocks),
    st.tuples(st.just("happen"), st.sampled_from(REPLICAS), st.lists(events, max_size=3)),
    st.tuples(st.just("happen"), st.sampled_from(REPLICAS), st.one_of(snapshots, st.none())),
    st.tuples(st.just("wait"), st.sampled_from([3.0, 11.0, 25.0]), st.none()),
)


@given(st.lists(deeds, max_size=30), blocks)
def test_every_expectation_ends_once_and_is_believed_until_then(history, query) -> None:
    """The oracle remembers when each block was sent where; it lives one to two lifetimes."""
    clock, oracle = HandClock(), Oracle()
    index = ExpectingIndex(clock, max_blocks=1 << 10, ttl_s=10.0)
    sent: dict[tuple[str, bytes], float] = {}
    for deed, name, what in history:
        if deed == "wait":
            clock.time += name
        elif deed == "expect":
            index.expect(name, what)
            sent |= {(name, one): clock.time for one in what if one not in oracle.held[name]}
        else:
            oracle.happen(index, name, what)
            for kind, ids in _ends(what):
                if kind is None:
                    sent = {key: at for key, at in sent.items() if key[0] != name}
                for one in ids:
                    sent.pop((name, one), None)
        index.check_integrity()
        found, least, most = index.match(query), Oracle(), Oracle()
        for name_ in REPLICAS:
            young = {b for (n, b), at in sent.items() if n == name_ and clock.time - at < 10}
            alive = {b for (n, b), at in sent.items() if n == name_ and clock.time - at < 20}
            least.held[name_] = oracle.held[name_] | young
            most.held[name_] = oracle.held[name_] | alive
        low, high = least.match(query), most.match(query)
        for name_ in REPLICAS:
            assert low.get(name_, 0) <= found.get(name_, 0) <= high.get(name_, 0)


def _ends(what):
    """(kind, blocks) of what ends expectations; kind None ends all of the replica."""
    if what is None:
        return [(None, ())]
    if isinstance(what, frozenset):
        return [(EventKind.STORED, what)]
    return [(None if e.kind is EventKind.CLEARED else e.kind, e.blocks) for e in what]


def test_more_expected_than_there_is_room_for_makes_the_old_stale() -> None:
    index = ExpectingIndex(HandClock(), max_blocks=32)  # four in a generation
    for start in range(0, 60, 3):
        index.expect("a", [block(start), block(start + 1), block(start + 2)])
        index.check_integrity()
    assert index.honesty.expected == 60 and index.honesty.stale >= 48
    assert index.match([block(57)]) == {"a": 1} and index.match([block(0)]) == {}


def test_measures_tell_how_honest_the_index_is() -> None:
    index = ExpectingIndex(HandClock())
    index.expect("a", [block(1), block(2), block(3)])
    index.apply("a", [KVEvent(EventKind.STORED, (block(1), block(2)))])
    index.apply("a", [KVEvent(EventKind.REMOVED, (block(3), block(2)))])
    measures = IndexMeasures(index, lambda: Repairs(saved=4))
    told = {
        (sample.name, *sample.labels.values()): sample.value
        for family in measures.collect()
        for sample in family.samples
    }
    assert told["kvasir_index_blocks",] == 1
    assert told["kvasir_index_expected_blocks_total",] == 3
    assert told["kvasir_index_expectations_total", "confirmed"] == 2
    assert told["kvasir_index_expectations_total", "retracted"] == 1
    assert told["kvasir_index_expectations_total", "stale"] == 0
    assert told["kvasir_index_repairs_total", "saved"] == 4


def test_wrong_predictions_do_not_cancel_out() -> None:
    metrics = RouterMetrics()
    metrics.opened(100, predicted=64, cached=16)
    metrics.opened(100, predicted=0, cached=48)
    text = metrics.render().decode()
    assert "kvasir_prefix_missed_tokens_total 48.0" in text
    assert "kvasir_prefix_unforeseen_tokens_total 48.0" in text
