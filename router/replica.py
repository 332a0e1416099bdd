"""One worker as the router sees it: what it says of itself, what it was given, whether it lives."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from router.worker_client import WorkerClient, WorkerFailed, WorkerStream
from workers.core.roles import RoleName
from workers.wire import common_pb2 as common
from workers.wire import worker_pb2 as worker
from workers.wire.codec import role_from_wire, role_to_wire
from workers.wire.redis_keys import ReplicaRecord

AnyStream: TypeAlias = WorkerStream[worker.PrefillEvent] | WorkerStream[worker.DecodeEvent]

STORY_KEPT = 32


class ReplicaState(StrEnum):
    CONNECTING = "connecting"  # known, has not said yet that it is ready
    UP = "up"
    DRAINING = "draining"  # ends what it has, takes nothing new
    DOWN = "down"  # its Watch stream is broken


TRANSITIONS: frozenset[tuple[ReplicaState, ReplicaState]] = frozenset(
    {
        (ReplicaState.CONNECTING, ReplicaState.UP),
        (ReplicaState.CONNECTING, ReplicaState.DRAINING),
        (ReplicaState.CONNECTING, ReplicaState.DOWN),
        (ReplicaState.UP, ReplicaState.DRAINING),
        (ReplicaState.UP, ReplicaState.DOWN),
        (ReplicaState.DRAINING, ReplicaState.UP),
        (ReplicaState.DRAINING, ReplicaState.DOWN),
        (ReplicaState.DOWN, ReplicaState.CONNECTING),
    }
)
_REPORTED = {
    "starting": ReplicaState.CONNECTING,
    "ready": ReplicaState.UP,
    "draining": ReplicaState.DRAINING,
}


@dataclass(slots=True, eq=False)
class Assignment:
    """Work given to a replica and not yet seen done: load from the moment of choice."""

    pending_tokens: int  # uncached prompt tokens not yet computed
    kv_tokens: int


class Replica:
    """The record says what rarely changes; the last LoadReport says the rest.

    Load is counted as what this router gave (known at once) plus what others gave: the part of the
    last report that was not ours when it came.
    """

    def __init__(self, record: ReplicaRecord, client: WorkerClient) -> None:
        self.record = record
        self.client = client
        self.id = record.id
        self.incarnation = record.incarnation
        self.role: RoleName = record.role
        self.kv_abi = record.kv_abi
        self.state = ReplicaState.CONNECTING
        self.leased = True
        self.load = worker.LoadReport()
        self.assignments: set[Assignment] = set()
        self.story: deque[str] = deque(["registered"], maxlen=STORY_KEPT)
        # In the order in which they began, so that they hear of a death in the same order each
        # time. A stream may be bound twice: to its receiver, and to its sender.
        self._streams: dict[object, AnyStream] = {}
        self._foreign_tokens = 0
        self._foreign_seqs = 0
        self._foreign_kv = 0

    @property
    def role_on_wire(self) -> common.Role:
        return role_to_wire(self.role)

    @property
    def up(self) -> bool:
        return self.state is ReplicaState.UP

    @property
    def alive(self) -> bool:
        return self.state in (ReplicaState.UP, ReplicaState.DRAINING)

    @property
    def capacity_tokens(self) -> int:
        """Tokens that its KV pages hold."""
        return self.load.blocks_total * self.record.block_size or self.record.kv_tokens

    @property
    def free_tokens(self) -> int:
        """Tokens that fit into pages which no running sequence or ticket holds."""
        if not self.load.blocks_total:
            return self.record.kv_tokens
        free = self.load.blocks_total - self.load.blocks_used
        return free * self.record.block_size

    @property
    def pending_tokens(self) -> int:
        """Uncached prompt tokens that it has yet to compute."""
        return self._foreign_tokens + sum(a.pending_tokens for a in self.assignments)

    @property
    def num_seqs(self) -> int:
        return self._foreign_seqs + len(self.assignments)

    @property
    def kv_tokens(self) -> int:
        return self._foreign_kv + sum(a.kv_tokens for a in self.assignments)

    def move(self, state: ReplicaState, why: str) -> None:
        if state is self.state:
            return
        assert (self.state, state) in TRANSITIONS, f"{self.state} -> {state}: {self.tell()}"
        self.story.append(f"{self.state} -> {state}: {why}")
        self.state = state

    def tell(self) -> str:
        return f"replica {self.id}: " + "; ".join(self.story)

    def report(self, load: worker.LoadReport) -> None:
        """Take what the worker says of itself now. Raises WorkerFailed if it makes no sense."""
        state = _REPORTED.get(load.state)
        if state is None or (state is not self.state and (self.state, state) not in TRANSITIONS):
            raise WorkerFailed(f"replica {self.id} is {self.state} and says {load.state!r}")
        if load.replica.incarnation != self.incarnation:
            self.story.append(f"incarnation {load.replica.incarnation}")
        self.incarnation = load.replica.incarnation
        self.role = role_from_wire(load.role) or self.role
        self.kv_abi = load.kv_abi or self.kv_abi
        self.load = load
        ours = self.assignments
        self._foreign_tokens = max(0, load.waiting_tokens - sum(a.pending_tokens for a in ours))
        self._foreign_seqs = max(0, load.running + load.waiting - len(ours))
        self._foreign_kv = max(0, load.kv_tokens - sum(a.kv_tokens for a in ours))
        self.move(state, f"it says {load.state!r}")

    def lost(self, why: str) -> None:
        """Its Watch stream broke: nothing it had been given will come back."""
        self.move(ReplicaState.DOWN, why)
        self._foreign_tokens = self._foreign_seqs = self._foreign_kv = 0
        self.load = worker.LoadReport()
        self.abort_calls(f"the replica is down ({why})")

    def abort_calls(self, reason: str) -> None:
        """Whoever reads a stream of it sees WorkerFailed at once."""
        for stream in tuple(self._streams.values()):
            stream.abort(reason)

    @contextmanager
    def assigned(self, pending_tokens: int, kv_tokens: int) -> Iterator[Assignment]:
        """Counts the work while the block runs."""
        assignment = Assignment(pending_tokens, kv_tokens)
        self.assignments.add(assignment)
        try:
            yield assignment
        finally:
            self.assignments.discard(assignment)

    @contextmanager
    def bound(self, stream: AnyStream) -> Iterator[None]:
        """`stream` is aborted if the replica goes down while the block runs."""
        entry = object()
        self._streams[entry] = stream
        if self.state is ReplicaState.DOWN:
            stream.abort("the replica is down")
        try:
            yield
        finally:
            del self._streams[entry]

    def check_integrity(self) -> None:
        """What is down has no load and no foreign work; nothing counts below zero."""
        if self.state is ReplicaState.DOWN:
            assert not self.load.blocks_total and not self._foreign_seqs, self.tell()
        for assignment in self.assignments:
            assert assignment.pending_tokens >= 0 and assignment.kv_tokens >= 0, self.tell()
