"""Ranks as threads of one process, for tests: collectives that meet at a barrier."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TypeVar

import torch
from torch import Tensor

from workers.core.errors import Unavailable
from workers.parallel.group import Alone, Group, Ranks
from workers.parallel.layout import Layout

T = TypeVar("T")
TIMEOUT_S = 30.0


class _Meeting:
    """Where the ranks of one group exchange what each brings."""

    def __init__(self, size: int) -> None:
        self._barrier = threading.Barrier(size, timeout=TIMEOUT_S)
        self._brought: list[Tensor | None] = [None] * size

    def exchange(self, rank: int, x: Tensor) -> list[Tensor]:
        """What every rank brought, in rank order; nobody changes his before all have copied."""
        self._brought[rank] = x.clone()
        try:
            self._barrier.wait()
            brought = [each for each in self._brought if each is not None]
            self._barrier.wait()
        except threading.BrokenBarrierError:
            raise Unavailable(f"rank {rank} waited alone: another is gone or stuck") from None
        assert len({each.dtype for each in brought}) == 1, "ranks brought different dtypes"
        return brought

    def leave(self) -> None:
        self._barrier.abort()


class ThreadGroup:
    """The Group of one rank. `calls` counts collectives by name."""

    def __init__(self, meeting: _Meeting, rank: int, size: int) -> None:
        self._meeting, self.rank, self.size = meeting, rank, size
        self.calls: dict[str, int] = {}

    def _exchange(self, name: str, x: Tensor) -> list[Tensor]:
        self.calls[name] = self.calls.get(name, 0) + 1
        return self._meeting.exchange(self.rank, x)

    def all_reduce(self, x: Tensor) -> Tensor:
        return torch.stack(self._exchange("all_reduce", x)).sum(0, dtype=x.dtype)

    def all_gather(self, x: Tensor) -> Tensor:
        brought = self._exchange("all_gather", x)
        assert len({each.shape for each in brought}) == 1, "all_gather of different shapes"
        return torch.cat(brought)

    def gather(self, x: Tensor) -> Tensor | None:
        brought = self._exchange("gather", x)
        return torch.cat(brought) if self.rank == 0 else None

    def broadcast(self, x: Tensor) -> Tensor:
        return self._exchange("broadcast", x)[0].clone()

    def all_to_all(self, x: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:
        assert len(sent) == len(received) == self.size and sum(sent) == len(x)
        # Counts travel too, so that a test sees when the ranks disagree about them.
        counts = self._exchange("all_to_all", torch.tensor(list(sent), dtype=torch.int64))
        rows = self._meeting.exchange(self.rank, x)
        mine = [
            each[int(count[: self.rank].sum()) :][: int(count[self.rank])]
            for each, count in zip(rows, counts, strict=True)
        ]
        assert [len(each) for each in mine] == list(received), "ranks disagree about counts"
        return torch.cat(mine)


def run_ranks(
    size: int, work: Callable[[Ranks], T], *, tensor: int = 1, experts: int | None = None
) -> list[T]:
    """work(ranks) on `size` ranks, each in a thread; what they returned, in rank order. `tensor`
    and `experts` (None: all) are sizes of groups. The first failure is raised."""
    layout = Layout(tensor, experts or size)
    assert layout.world == size, f"{layout} is not of {size} ranks"
    world = _groups(size, lambda _: tuple(range(size)))
    by_tensor, by_experts, by_shards = (
        _groups(size, members)
        for members in (layout.tensor_members, layout.expert_members, layout.shard_members)
    )
    futures: list[Future[T]] = [Future() for _ in range(size)]
    meetings = [group._meeting for group in (*world, *by_tensor, *by_experts, *by_shards)
                if isinstance(group, ThreadGroup)]  # fmt: skip

    def run(rank: int) -> None:
        try:
            with torch.inference_mode():
                ranks = Ranks(world[rank], by_tensor[rank], by_experts[rank], by_shards[rank])
                futures[rank].set_result(work(ranks))
        except BaseException as error:  # it is raised again where the ranks were started
            futures[rank].set_exception(error)
            for meeting in meetings:
                meeting.leave()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    errors = [future.exception() for future in futures]
    first = [each for each in errors if each is not None and not isinstance(each, Unavailable)]
    for error in (*first, *errors):
        if error is not None:
            raise error
    return [future.result() for future in futures]


def _groups(size: int, members: Callable[[int], tuple[int, ...]]) -> list[Group]:
    """For each rank its place among its members."""
    meetings: dict[tuple[int, ...], _Meeting] = {}
    groups: list[Group] = []
    for rank in range(size):
        own = members(rank)
        meeting = meetings.setdefault(own, _Meeting(len(own)))
        alone = len(own) == 1
        groups.append(Alone() if alone else ThreadGroup(meeting, own.index(rank), len(own)))
    return groups
