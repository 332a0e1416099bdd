"""The eviction policies: alone, and inside the pool's own property tests."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from tests.core.test_block_pool import BLOCKS, IDS, SIZE, PoolMachine
from workers.core import eviction
from workers.core.block_pool import BlockPool
from workers.core.eviction import LRU, PROTECTED, REMEMBERED, Adaptive, Met, Shadow, make_eviction
from workers.core.hashing import BlockId


class AdaptivePoolMachine(PoolMachine):
    def __init__(self) -> None:
        super().__init__()
        self.policy = Adaptive(BLOCKS)
        self.pool = BlockPool(BLOCKS, SIZE, self.policy)
        self.waiting: list[list[BlockId]] = []

    @rule(start=st.integers(0, 15), length=st.integers(1, 6))
    def wait(self, start: int, length: int) -> None:
        self.waiting.append(IDS[start : start + length])
        self.pool.expect(self.waiting[-1])

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.waiting) - 1))
        self.pool.settle(self.waiting.pop(index))
        expected = {block_id for ids in self.waiting for block_id in ids}
        assert set(self.policy._expected) == expected


TestAdaptivePool = AdaptivePoolMachine.TestCase
TestAdaptivePool.settings = settings(max_examples=30, stateful_step_count=40)


def ids(name: str, count: int) -> list[BlockId]:
    return [f"{name} {depth}".encode() for depth in range(count)]


def use(pool: BlockPool, blocks: Sequence[BlockId]) -> int:
    """A prompt of these blocks passes through; returns how many were cached."""
    matched = pool.match(blocks)
    pool.acquire(matched)
    held = matched + pool.allocate(len(blocks) - len(matched))
    pool.commit(held, blocks)
    pool.release(held)
    pool.check_integrity([])
    return len(matched)


@pytest.mark.parametrize("name", ["adaptive", "lru"])
def test_what_was_built_on_a_prefix_goes_before_it(name: str) -> None:
    pool = BlockPool(10, SIZE, make_eviction(name, 10))
    chat = ids("chat", 6)
    use(pool, chat)
    use(pool, chat)
    for other in range(8):
        use(pool, ids(f"other {other}", 5))
        kept = [block for block in chat if block in pool.cached_ids()]
        assert kept == chat[: len(kept)], "a hole in a prefix"


def teach(pool: BlockPool) -> None:
    """One conversation comes back again and again, all else is met once."""
    for other in range(40):
        use(pool, ids(f"once {other}", 4))
        use(pool, ids("always", 3))


def scan(name: str) -> int:
    """Cached blocks of a conversation that came back once, after many prompts met once."""
    pool = BlockPool(20, SIZE, make_eviction(name, 20))
    teach(pool)
    chat = ids("chat", 8)
    use(pool, chat[:5])
    assert use(pool, chat) == 5
    for other in range(30):
        use(pool, ids(f"other {other}", 6))
    return use(pool, chat)


def test_a_scan_passes_through_without_the_conversations() -> None:
    assert scan("lru") == 0
    assert scan("adaptive") == 8


def test_who_comes_back_after_its_blocks_are_gone_is_met_again() -> None:
    pool = BlockPool(16, SIZE, Adaptive(16))
    teach(pool)
    chat = ids("chat", 4)
    use(pool, chat)
    for other in range(4):
        use(pool, ids(f"other {other}", 6))
    assert use(pool, chat) == 0, "its blocks are gone"
    for other in range(4, 20):
        use(pool, ids(f"other {other}", 6))
    assert use(pool, chat) == 4, "but it was remembered, and is kept now"


def test_where_who_comes_back_does_so_no_more_it_is_lru() -> None:
    """Prompts come twice, or once: the second use says nothing of a third."""
    pools = [BlockPool(20, SIZE, make_eviction(name, 20)) for name in ("adaptive", "lru")]
    prompts = [ids(f"prompt {number // 2}", 4) for number in range(200)]
    again = ids("again", 4)
    for pool in pools:
        for prompt in prompts:
            use(pool, prompt)
        use(pool, again)
        for other in range(3):
            use(pool, ids(f"other {other}", 4))
        assert use(pool, again) == 4, "a prompt met once outlives older ones met twice"


def test_where_everybody_comes_back_it_is_lru() -> None:
    pools = [BlockPool(20, SIZE, make_eviction(name, 20)) for name in ("adaptive", "lru")]
    chats = [ids(f"chat {chat}", 6) for chat in range(3)]
    for chat in chats * 2:
        for pool in pools:
            use(pool, chat)
    adaptive, lru = ([use(pool, chat) for chat in chats * 4] for pool in pools)
    assert adaptive == lru and sum(lru) > 0


def test_protected_blocks_leave_room_for_what_is_met_first() -> None:
    pool = BlockPool(20, SIZE, Adaptive(20))
    teach(pool)
    for _ in range(2):
        use(pool, ids("old", 20))
    new = ids("new", 2)
    assert use(pool, new) == 0
    assert use(pool, new) == 2


@given(st.lists(st.integers(0, 400), min_size=1, max_size=300))
@settings(max_examples=50)
def test_memory_is_bounded(prompts: list[int]) -> None:
    policy = Adaptive(8)
    pool = BlockPool(8, SIZE, policy)
    for prompt in prompts:
        use(pool, ids(str(prompt), 1 + prompt % 5))
    assert len(policy._met) <= (1 + REMEMBERED) * 8
    assert len(policy._protecting) <= 8 and len(policy) <= 8


def leading(prompt: Sequence[BlockId], held: Sequence[BlockId]) -> int:
    """Blocks of its beginning that are held; it is tail first."""
    return next((n for n, block in enumerate(reversed(prompt)) if block not in held), len(prompt))


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 6)), min_size=20, max_size=120))
@settings(max_examples=30)
def test_the_rivals_hit_what_pools_under_their_rules_would(prompts: list[tuple[int, int]]) -> None:
    met, shadow = Met(8), Shadow(8)
    order: list[BlockId] = []  # all blocks ever, the latest last
    fresh: list[BlockId] = []
    protected: list[BlockId] = []
    lru_hits = hits = 0
    for name, length in prompts:
        prompt = ids(str(name), length)[::-1]
        lru_hits += leading(prompt, order[-8:])
        before, first = met.idle(prompt)
        remembered = order[-8 * (1 + REMEMBERED) :]
        assert before == [block for block in prompt if block in remembered]
        assert first == [block for block in prompt if block not in remembered]
        order = [block for block in order if block not in prompt] + prompt

        hits += leading(prompt, fresh + protected)
        shadow.idle(prompt, before, first)
        fresh = [block for block in fresh if block not in prompt] + list(first)
        protected = [block for block in protected if block not in prompt] + list(before)
        while len(protected) > PROTECTED * 8:
            fresh.append(protected.pop(0))
        while len(fresh) + len(protected) > 8:
            (fresh or protected).pop(0)
        assert (met.hits, shadow.hits) == (lru_hits, hits)


@pytest.mark.parametrize(("name", "kept"), [("adaptive", 6), ("lru", 0)])
def test_what_a_waiting_prompt_will_read_is_spared(name: str, kept: int) -> None:
    pool = BlockPool(18, SIZE, make_eviction(name, 18))
    oldest = ids("oldest", 6)
    for prompt in (oldest, ids("second", 6), ids("third", 6)):
        use(pool, prompt)
    pool.expect(oldest)
    use(pool, ids("new", 8))
    assert len(pool.match(oldest)) == kept
    pool.settle(oldest)
    use(pool, ids("newer", 6))
    assert pool.match(oldest) == [], "waits no more, and is the oldest"


def test_where_all_is_expected_the_tail_goes_first() -> None:
    pool = BlockPool(10, SIZE, Adaptive(10))
    chat = ids("chat", 10)
    use(pool, chat)
    pool.expect(chat)
    use(pool, ids("new", 4))
    assert len(pool.match(chat)) == 6


def scanned() -> Iterator[list[BlockId]]:
    for number in range(150):
        yield ids(f"once {number}", 6)
        yield ids(f"chat {number % 3}", 5)


def looped() -> Iterator[list[BlockId]]:
    for number in range(400):
        yield ids(f"chat {number % 9}", 5)


def zipf() -> Iterator[list[BlockId]]:
    rng = random.Random(1)
    weights = [1 / rank for rank in range(1, 60)]
    for number in rng.choices(range(59), weights, k=500):
        yield ids(f"prompt {number}", 1 + number % 7)


def shifting() -> Iterator[list[BlockId]]:
    rng = random.Random(2)
    for number in range(500):
        yield ids(f"prompt {number // 100} {min(rng.randrange(30), rng.randrange(30))}", 4)


def fooling() -> Iterator[list[BlockId]]:
    """Conversations come back until protection looks founded. From then on each prompt comes a
    second time after four others, which LRU has room for, and is over when it looks like one."""
    for number in range(60):
        yield ids(f"once {number}", 5)
        yield ids(f"chat {number % 4}", 5)
    for number in range(300):
        yield ids(f"late {number}", 5)
        if number >= 4:
            yield ids(f"late {number - 4}", 5)


def hits(name: str, prompts: Iterator[list[BlockId]]) -> int:
    pool = BlockPool(50, SIZE, make_eviction(name, 50))
    return sum(use(pool, prompt) for prompt in prompts)


@pytest.mark.parametrize("pattern", [scanned, looped, zipf, shifting, fooling])
def test_whatever_comes_it_is_hardly_worse_than_lru(pattern) -> None:
    lru = hits("lru", pattern())
    assert hits("adaptive", pattern()) >= 0.98 * lru > 0


def test_it_is_lru_itself_that_it_is_measured_against(monkeypatch) -> None:
    """Without the rival the same prompts fool it."""
    monkeypatch.setattr(eviction, "BEHIND", 1.0)
    assert hits("adaptive", fooling()) < 0.98 * hits("lru", fooling())


def test_names() -> None:
    assert isinstance(make_eviction("lru", 4), LRU)
    assert isinstance(make_eviction("adaptive", 4), Adaptive)
