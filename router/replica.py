"""One worker as the router sees it: what it says of itself, what it was given, whether it lives."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import TypeAlias

from router.sharing.foreign import Foreign, Load
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


class Assignment:
    """Work given to a replica and not yet seen done: load from the moment of choice.
    `pending_tokens`: uncached prompt tokens not yet computed. `decodes`: once they are, it stays to
    decode."""

    __slots__ = ("_of", "decodes", "kv_tokens", "pending_tokens")

    def __init__(self, of: Assigned, pending_tokens: int, kv_tokens: int, decodes: bool) -> None:
        self._of = of
        self.pending_tokens = pending_tokens
        self.kv_tokens = kv_tokens
        self.decodes = decodes

    @property
    def decoding(self) -> bool:
        return self.decodes and not self.pending_tokens

    def update(self, *, pending_tokens: int | None = None, kv_tokens: int | None = None) -> None:
        """What is left of it now."""
        of, pending, kv = self._of, self.pending_tokens, self.kv_tokens
        if pending_tokens is not None:
            of.pending_tokens += pending_tokens - pending
            self.pending_tokens = pending_tokens
        if kv_tokens is not None:
            of.kv_tokens += kv_tokens - kv
            self.kv_tokens = kv_tokens
        if self.decodes:
            if not pending:
                of.decoding -= 1
                of.decoding_kv -= kv
            if not self.pending_tokens:
                of.decoding += 1
                of.decoding_kv += self.kv_tokens


class Assigned:
    """All assignments of one replica, and their sums: placement reads these for every candidate."""

    __slots__ = ("_all", "decoding", "decoding_kv", "kv_tokens", "pending_tokens", "seqs")

    def __init__(self) -> None:
        self.pending_tokens = 0
        self.kv_tokens = 0
        self.seqs = 0
        self.decoding = 0  # of these
        self.decoding_kv = 0  # tokens
        self._all: set[Assignment] = set()

    def add(self, pending_tokens: int, kv_tokens: int, *, decodes: bool = False) -> Assignment:
        assignment = Assignment(self, pending_tokens, kv_tokens, decodes)
        self._all.add(assignment)
        self._count(assignment, 1)
        return assignment

    def remove(self, assignment: Assignment) -> None:
        self._all.remove(assignment)
        self._count(assignment, -1)

    def _count(self, assignment: Assignment, sign: int) -> None:
        self.seqs += sign
        self.pending_tokens += sign * assignment.pending_tokens
        self.kv_tokens += sign * assignment.kv_tokens
        if assignment.decoding:
            self.decoding += sign
            self.decoding_kv += sign * assignment.kv_tokens

    def check_integrity(self) -> None:
        """The sums are those of the parts, and none counts below zero."""
        decoding = [each for each in self._all if each.decoding]
        assert self.seqs == len(self._all)
        assert self.pending_tokens == sum(each.pending_tokens for each in self._all)
        assert self.kv_tokens == sum(each.kv_tokens for each in self._all)
        assert (self.decoding, self.decoding_kv) == (
            len(decoding),
            sum(each.kv_tokens for each in decoding),
        )
        assert all(each.pending_tokens >= 0 and each.kv_tokens >= 0 for each in self._all)


class Replica:
    """The record says what rarely changes; the last LoadReport says the rest.

    Load is counted as what this router gave (known at once) plus what others gave (foreign).
    """

    def __init__(self, record: ReplicaRecord, client: WorkerClient) -> None:
        self.record = record
        self.client = client
        self.id = record.id
        self.incarnation = record.incarnation
        self.role: RoleName = record.role
        self.kv_abi = record.kv_abi
        self.state = ReplicaState.CONNECTING
        self.up = False  # every request asks all replicas, so it is plain
        self.leased = True
        self.load = worker.LoadReport()
        self.assignments = Assigned()
        self.story: deque[str] = deque(["registered"], maxlen=STORY_KEPT)
        # In the order in which they began, so that they hear of a death in the same order each
        # time. A stream may be bound twice: to its receiver, and to its sender.
        self._streams: dict[object, AnyStream] = {}
        self.foreign = Foreign()

    @property
    def role_on_wire(self) -> common.Role:
        return role_to_wire(self.role)

    @property
    def alive(self) -> bool:
        return self.state in (ReplicaState.UP, ReplicaState.DRAINING)

    @property
    def load(self) -> worker.LoadReport:
        """Its last report."""
        return self._load

    @load.setter
    def load(self, load: worker.LoadReport) -> None:
        """Plain attributes too: placement reads them for every candidate.

        `capacity_tokens`: that its KV pages hold. `free_tokens`: that fit into pages which no
        running sequence or ticket holds. `step_tokens`, `seqs_limit`: 0 = it has not said.
        """
        self._load = load
        size, pages = self.record.block_size, load.blocks_total
        self.capacity_tokens = pages * size or self.record.kv_tokens
        self.free_tokens = (pages - load.blocks_used) * size if pages else self.record.kv_tokens
        self.step_tokens = load.step_tokens
        self.seqs_limit = load.seqs_limit
        self.kv_bytes_per_token = load.kv_bytes_per_token
        self.quarantined = frozenset(load.quarantined)

    @property
    def pending_tokens(self) -> int:
        """Uncached prompt tokens that it has yet to compute."""
        return self.foreign.pending_tokens + self.assignments.pending_tokens

    @property
    def num_seqs(self) -> int:
        return self.foreign.seqs + self.assignments.seqs

    @property
    def kv_tokens(self) -> int:
        return self.foreign.kv_tokens + self.assignments.kv_tokens

    @property
    def decoding(self) -> int:
        """Sequences that it decodes; what others gave to one that prefills is taken for prompts."""
        foreign = 0 if self.role == "prefill" else self.foreign.seqs
        return foreign + self.assignments.decoding

    @property
    def decoding_kv(self) -> int:
        """KV tokens of these."""
        foreign = 0 if self.role == "prefill" else self.foreign.kv_tokens
        return foreign + self.assignments.decoding_kv

    def move(self, state: ReplicaState, why: str) -> None:
        if state is self.state:
            return
        assert (self.state, state) in TRANSITIONS, f"{self.state} -> {state}: {self.tell()}"
        self.story.append(f"{self.state} -> {state}: {why}")
        self.state = state
        self.up = state is ReplicaState.UP

    def tell(self) -> str:
        return f"replica {self.id}: " + "; ".join(self.story)

    def report(self, load: worker.LoadReport) -> None:
        """Take what the worker says of itself now. Raises WorkerFailed if it makes no sense."""
        state = _REPORTED.get(load.state)
        if state is None or (state is not self.state and (self.state, state) not in TRANSITIONS):
            raise WorkerFailed(f"replica {self.id} is {self.state} and says {load.state!r}")
        incarnation = load.replica.incarnation
        if incarnation != self.incarnation:
            self.story.append(f"incarnation {incarnation}")
            self.incarnation = incarnation
        self.role = role_from_wire(load.role) or self.role
        self.kv_abi = load.kv_abi or self.kv_abi
        self.load = load
        ours = self.assignments
        held = Load(load.waiting_tokens, load.kv_tokens, load.running + load.waiting)
        own = Load(ours.pending_tokens, ours.kv_tokens, ours.seqs)
        self.foreign.report(held.beyond(own))
        if state is not self.state:
            self.move(state, f"it says {load.state!r}")

    def lost(self, why: str) -> None:
        """Its Watch stream broke: nothing it had been given will come back."""
        self.move(ReplicaState.DOWN, why)
        self.foreign.clear()
        self.load = worker.LoadReport()
        self.abort_calls(f"the replica is down ({why})")

    def abort_calls(self, reason: str) -> None:
        """Whoever reads a stream of it sees WorkerFailed at once."""
        for stream in tuple(self._streams.values()):
            stream.abort(reason)

    @contextmanager
    def assigned(
        self, pending_tokens: int, kv_tokens: int, *, decodes: bool = False
    ) -> Iterator[Assignment]:
        """Counts the work while the block runs."""
        assignment = self.assignments.add(pending_tokens, kv_tokens, decodes=decodes)
        try:
            yield assignment
        finally:
            self.assignments.remove(assignment)

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
            assert not self.load.blocks_total and not self.foreign.seqs, self.tell()
        self.assignments.check_integrity()
