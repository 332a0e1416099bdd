"""Who gives which heads to whom, for every pair of tensor parallel sizes."""

from __future__ import annotations

from collections import Counter
from itertools import product

import pytest

from workers.core.errors import TransferError
from workers.core.lanes import Lane, lanes
from workers.core.span import Span, share

SIZES = (1, 2, 4, 8)
KV_HEADS = (1, 2, 4, 8)  # one: latent attention too

every_case = pytest.mark.parametrize(
    ("kv_heads", "senders", "receivers"), list(product(KV_HEADS, SIZES, SIZES))
)


def heads_of(lane: Lane) -> range:
    return range(lane.heads.first, lane.heads.end)


@every_case
def test_every_target_gets_each_of_its_heads_once_from_who_has_them(
    kv_heads: int, senders: int, receivers: int
) -> None:
    found = lanes(kv_heads, senders, receivers)
    got = Counter((lane.target, head) for lane in found for head in heads_of(lane))
    wanted = Counter(
        (rank, head)
        for rank in range(receivers)
        for head in range(*share(kv_heads, rank, receivers)[1:])
    )
    assert got == wanted
    for lane in found:
        assert set(heads_of(lane)) <= set(range(*share(kv_heads, lane.source, senders)[1:]))


@every_case
def test_two_ranks_share_one_lane_at_most_and_lanes_have_an_order(
    kv_heads: int, senders: int, receivers: int
) -> None:
    """So a pair has no more messages than ranks that have heads in common, one for each range."""
    ends = [(lane.target, lane.source) for lane in lanes(kv_heads, senders, receivers)]
    assert ends == sorted(set(ends))
    assert len(ends) <= max(senders, receivers, kv_heads)


@every_case
def test_targets_of_the_same_head_take_turns_over_its_sources(
    kv_heads: int, senders: int, receivers: int
) -> None:
    for head in range(kv_heads):
        asked = Counter(
            lane.source for lane in lanes(kv_heads, senders, receivers) if head in heads_of(lane)
        )
        holders = sum(head in range(*share(kv_heads, r, senders)[1:]) for r in range(senders))
        wanting = max(1, receivers // kv_heads)
        assert len(asked) == min(holders, wanting)
        assert max(asked.values()) - min(asked.values()) <= 1


def test_a_latent_comes_from_one_rank() -> None:
    assert lanes(1, 4, 1) == (Lane(0, 0, Span(1, 0, 1)),)
    assert [lane.source for lane in lanes(1, 2, 4)] == [0, 1, 0, 1]


def test_a_lane_has_its_share_of_a_block() -> None:
    two, _ = lanes(4, 2, 1)
    assert two.bytes_of(1024) == 512
    assert [lane.bytes_of(1024) for lane in lanes(2, 4, 4)] == [512] * 4


def test_ranks_that_cannot_share_the_heads_are_refused() -> None:
    for kv_heads, senders, receivers in ((4, 3, 1), (2, 1, 3), (2, 0, 1)):
        with pytest.raises(TransferError, match="cannot lie on"):
            lanes(kv_heads, senders, receivers)
