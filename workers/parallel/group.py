"""The seam between a model and the ranks that compute it together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Group(Protocol):
    """Some ranks in a fixed order. Every rank calls the same collectives in the same order, with
    tensors of the same dtype; each blocks for the step's deadline at most and then raises
    KvasirError (a rank is gone or stuck), after which the group is of no more use."""

    rank: int
    size: int

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum over ranks; x may be overwritten."""

    def all_gather(self, x: Tensor) -> Tensor:
        """[n, ...] of each rank, the same shape on all -> [size * n, ...] in rank order."""

    def gather(self, x: Tensor) -> Tensor | None:
        """As all_gather, for rank 0 alone; None on the others."""

    def broadcast(self, x: Tensor) -> Tensor:
        """Rank 0's x, on all; the others' is overwritten."""

    def all_to_all(self, x: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:
        """x [sum(sent), ...]: `sent[r]` rows for rank r, in rank order -> [sum(received), ...]:
        `received[r]` rows from rank r."""


class Alone:
    """A group of one: every collective is the identity."""

    rank = 0
    size = 1

    def all_reduce(self, x: Tensor) -> Tensor:
        return x

    def all_gather(self, x: Tensor) -> Tensor:
        return x

    def gather(self, x: Tensor) -> Tensor | None:
        return x

    def broadcast(self, x: Tensor) -> Tensor:
        return x

    def all_to_all(self, x: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:
        return x


@dataclass(frozen=True, slots=True)
class Ranks:
    """How the ranks of one replica share its model.

    `tensor`: heads, feed-forward widths and the vocabulary are split over it, sums are made within;
    its ranks hold the same tokens of a step. Each such group is a shard, with sequences and pages
    of its own (data-parallel attention). `experts`: each rank holds a share of the experts.
    `world`: everybody; its rank 0 leads. `shards`: one rank of each shard, with the same part of
    its heads; a rank's place there is the number of its shard. Sizes: the world is the larger of
    tensor and experts, and a multiple of both.
    """

    world: Group
    tensor: Group
    experts: Group
    shards: Group


SINGLE = Ranks(Alone(), Alone(), Alone(), Alone())
