"""Groups over torch.distributed: Gloo on CPUs, NCCL on GPUs.

Process groups are made directly (never init_process_group), so a process may hold many, of several
replicas. A wait that runs into its deadline closes Gloo's connections, and NCCL's queue stays
blocked: a group that failed is of no more use.
"""

from __future__ import annotations

import contextlib
import datetime
import socket
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from workers.core.errors import Unavailable
from workers.parallel.group import Alone, Group, Ranks
from workers.parallel.layout import Layout
from workers.parallel.nccl import calm_watchdog

CONNECT = datetime.timedelta(seconds=30)  # for all ranks of a group to meet
ROOT = 0
NOTHING_TAG = 1 << 20  # nobody sends


class TorchGroup:
    """`deadline_s`: of one collective. None, for NCCL: it is only queued on the current stream, and
    who waits for the result on the host has the deadline."""

    def __init__(self, backend: Any, rank: int, size: int, deadline_s: float | None) -> None:
        self.rank = rank
        self.size = size
        self._backend = backend
        waits = [] if deadline_s is None else [datetime.timedelta(seconds=deadline_s)]
        self._waits = waits  # NCCL's wait() with any argument may block the host

    def all_reduce(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        self._do(self._backend.allreduce, [x])
        return x

    def all_gather(self, x: Tensor) -> Tensor:
        out = x.new_empty(self.size * x.shape[0], *x.shape[1:])
        self._do(self._backend._allgather_base, out, x.contiguous())
        return out

    def gather(self, x: Tensor) -> Tensor | None:
        options = dist.GatherOptions()
        options.rootRank = ROOT
        if self.rank != ROOT:
            self._do(self._backend.gather, [], [x.contiguous()], options)
            return None
        out = x.new_empty(self.size * x.shape[0], *x.shape[1:])
        self._do(self._backend.gather, [list(out.chunk(self.size))], [x.contiguous()], options)
        return out

    def broadcast(self, x: Tensor) -> Tensor:
        options = dist.BroadcastOptions()
        options.rootRank = ROOT
        x = x.contiguous()
        self._do(self._backend.broadcast, [x], options)
        return x

    def all_to_all(self, x: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:
        out = x.new_empty(sum(received), *x.shape[1:])
        self._do(self._backend.alltoall_base, out, x.contiguous(), list(received), list(sent))
        return out

    def abandon(self) -> None:
        """Whoever waits in it, on whatever thread, gets Unavailable."""
        if not self._waits:
            self._backend.abort()
            return
        # One wait that runs into its deadline ends all: there is no other way to end Gloo's.
        nothing, other = torch.empty(1, dtype=torch.uint8), (self.rank + 1) % self.size
        with contextlib.suppress(RuntimeError):
            self._backend.recv([nothing], other, NOTHING_TAG).wait(
                datetime.timedelta(milliseconds=1)
            )

    def _do(self, collective: Any, *arguments: Any) -> None:
        try:
            collective(*arguments).wait(*self._waits)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise Unavailable(
                f"rank {self.rank} of {self.size} lost its group: {reason}"
            ) from error


class Rendezvous:
    """Where the ranks of one replica meet: a store that the leader owns, which only the making of
    groups needs. `host`: the address that this rank's sockets bind to."""

    def __init__(self, store: Any, host: str, rank: int) -> None:
        self._store = store
        self._host = host
        self._rank = rank
        self._made: list[TorchGroup] = []

    def abandon(self) -> None:
        """All groups made so far, where a rank is lost: a host that vanished closes nothing."""
        for group in self._made:
            group.abandon()

    def group(
        self, name: str, members: Sequence[int], device: torch.device, deadline_s: float
    ) -> Group:
        """Of this rank and the other `members`, who all ask for the same name. Blocking; raises
        Unavailable where one does not come."""
        rank, size = list(members).index(self._rank), len(members)
        if size == 1:
            return Alone()
        store = dist.PrefixStore(name, self._store)  # type: ignore[attr-defined]
        try:
            if device.type == "cuda":
                # With its index: NCCL would connect once more for the device that tensors name.
                device = torch.device("cuda", torch.cuda.current_device())
                nccl = _nccl(store, rank, size, device, deadline_s)
                made = TorchGroup(nccl, rank, size, None)
            else:
                gloo = _gloo(store, rank, size, self._host, deadline_s)
                made = TorchGroup(gloo, rank, size, deadline_s)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise Unavailable(f"rank {self._rank} cannot join {name}: {reason}") from error
        self._made.append(made)
        return made

    def ranks(self, layout: Layout, device: torch.device, deadline_s: float) -> Ranks:
        """The groups that steps need. Every rank makes them in the same order."""
        everybody = range(layout.world)
        world = self.group("world", everybody, device, deadline_s)

        def part(kind: str, members: tuple[int, ...]) -> Group:
            if len(members) == layout.world:
                return world
            return self.group(f"{kind}/{members[0]}", members, device, deadline_s)

        tensor = part("tensor", layout.tensor_members(self._rank))
        experts = part("experts", layout.expert_members(self._rank))
        return Ranks(world, tensor, experts, part("shards", layout.shard_members(self._rank)))


def leader_store(host: str) -> Any:
    """On a free port of `host`, see its .port, and of no other address. Raises OSError."""
    listener = socket.create_server((host, 0))
    port = listener.getsockname()[1]
    return dist.TCPStore(  # type: ignore[attr-defined]
        *(host, port, None, True, CONNECT),
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )


def follower_store(host: str, port: int) -> Any:
    """Raises Unavailable where nobody listens there."""
    try:
        return dist.TCPStore(host, port, None, False, CONNECT, wait_for_workers=False)  # type: ignore[attr-defined]
    except RuntimeError as error:
        raise Unavailable(f"the leader keeps no store at {host}:{port}") from error


def _gloo(store: Any, rank: int, size: int, host: str, deadline_s: float) -> Any:
    options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._timeout = datetime.timedelta(seconds=deadline_s)
    options._devices = [dist.ProcessGroupGloo.create_device(hostname=host)]
    return dist.ProcessGroupGloo(store, rank, size, options)


def _nccl(store: Any, rank: int, size: int, device: torch.device, deadline_s: float) -> Any:
    calm_watchdog()
    options = dist.ProcessGroupNCCL.Options(is_high_priority_stream=False)
    options._timeout = datetime.timedelta(seconds=deadline_s)
    options.config.blocking = 0
    group = dist.ProcessGroupNCCL(store, rank, size, options)
    group._set_sequence_number_for_group()
    group.eager_connect_single_device(device)
    return group
