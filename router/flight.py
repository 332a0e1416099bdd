"""One request under way: what was emitted, which attempt speaks, how often it may still fail."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace

from router.explain.trail import Trail
from router.placement.decision import Targets
from router.replica import Replica
from router.worker_client import WorkerFailed
from workers.core.clock import Clock
from workers.core.errors import KvasirError, Overloaded, Unavailable
from workers.core.hashing import BlockHasher, BlockId, namespace
from workers.core.request import FinishReason, Request, SampledToken
from workers.wire import common_pb2 as common

STORY_KEPT = 8
FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 1.0


@dataclass(frozen=True, slots=True)
class Emission:
    """Tokens that no one has seen before, in order. `cached_tokens` of the prompt were found in
    the prefix cache of the worker that prefilled it first."""

    tokens: tuple[SampledToken, ...]
    finish_reason: FinishReason | None = None
    cached_tokens: int = 0


class RetryBudget:
    """`attempts` failures in a request's life; `retry_s` from a failure to the next token.

    For a replica it waits `wait_s` while nothing has happened yet, then `retry_s`: who has seen a
    part of the answer would rather wait than begin again.
    """

    def __init__(self, clock: Clock, attempts: int, retry_s: float, wait_s: float) -> None:
        self._clock = clock
        self._attempts = attempts
        self._retry_s = retry_s
        self._patience_s = wait_s
        self._recover_by: float | None = None
        self.failures = 0

    def left_s(self) -> float:
        """How long to wait for a replica now."""
        if self._recover_by is None:
            return self._patience_s
        return max(0.0, self._recover_by - self._clock.now())

    def failed(self, error: KvasirError) -> float:
        """Counts a failure; returns the pause before the next try. Raises when it was the last."""
        self.failures += 1
        if self._recover_by is None:
            self._recover_by = self._clock.now() + self._retry_s
        if self.failures > self._attempts or self.left_s() <= 0:
            kind = Overloaded if isinstance(error, Overloaded) else Unavailable
            raise kind(
                f"gave up after {self.failures} failures; the last one: {error.message}",
                retry_after_s=1.0,
            ) from error
        return min(FIRST_PAUSE_S * 2.0 ** (self.failures - 1), LONGEST_PAUSE_S, self.left_s())

    def progressed(self) -> None:
        """A token came: the clock of the recovery stops."""
        self._recover_by = None
        self._patience_s = self._retry_s


class BlockIds:
    """Ids of a request's full blocks, hashed once for each KV ABI and block size. Who appends to
    `tokens` has their ids at the next call. `found`: what the index last said of them, and when."""

    def __init__(self, request: Request) -> None:
        self.tokens: list[int] = list(request.token_ids)
        self.found: tuple[object, Mapping[str, int]] | None = None  # of whom, and how much
        self._cache_salt = request.cache_salt
        self._hashers: dict[tuple[str, int], BlockHasher] = {}

    def of(self, kv_abi: str, block_size: int) -> list[BlockId]:
        """Of all tokens but the last, which must be computed anyway."""
        hasher = self._hashers.get((kv_abi, block_size))
        if hasher is None:
            space = namespace(kv_abi, cache_salt=self._cache_salt)
            hasher = self._hashers[kv_abi, block_size] = BlockHasher(space, block_size)
        hasher.extend(self.tokens)
        return hasher.ids[: (len(self.tokens) - 1) // block_size]


class Flight:
    """The request with every token emitted so far. Only accept() makes it longer. `placed` is
    called when a replica has been chosen to prefill it."""

    def __init__(
        self,
        request: Request,
        budget: RetryBudget,
        blocks: BlockIds,
        placed: Callable[[], None],
        trail: Trail,
        targets: Targets,
    ) -> None:
        self.blocks = blocks
        self.targets = targets
        self.tokens = blocks.tokens
        self.budget = budget
        self.placed = placed
        self.trail = trail
        self.avoid: set[str] = set()  # incarnations that failed it
        self.cached_tokens: int | None = None  # of the first prefill
        self.attempt = request.attempt
        self._request = request

    @property
    def id(self) -> str:
        return self._request.id

    def next_request(self) -> Request:
        """What the next worker is asked: everything so far, under a new attempt."""
        self.attempt += 1
        return replace(self._request, token_ids=tuple(self.tokens), attempt=self.attempt)

    def accept(self, tokens: tuple[SampledToken, ...]) -> tuple[SampledToken, ...]:
        """Those that come next; older ones are dropped. Raises WorkerFailed if one is skipped."""
        fresh: list[SampledToken] = []
        due = len(self.tokens)
        if [token.position for token in tokens] == list(range(due, due + len(tokens))):
            fresh.extend(tokens)  # nearly always
            tokens = ()
        for token in tokens:
            if token.position > due:
                raise WorkerFailed(f"a worker sent position {token.position}, {due} was due")
            if token.position == due:
                fresh.append(token)
                due += 1
        if fresh:
            self.tokens.extend([token.id for token in fresh])
            self.budget.progressed()
        return tuple(fresh)


class Binding:
    """A ticket, the life of the worker that holds its KV, and how often it was bound. `moving`: of
    a sequence that decodes there meanwhile."""

    def __init__(self, ticket: common.Ticket, replica: Replica, *, moving: bool = False) -> None:
        self.ticket = ticket
        self.replica = replica
        self.incarnation = replica.incarnation
        self.moving = moving
        self.epoch = 0
        self.over = False  # redeemed or released: nothing is held for it
        self.lost = False  # its worker no longer knows it
        self.lease = ExitStack()  # renewed until it is closed
        self._story: deque[str] = deque(maxlen=STORY_KEPT)

    def end(self) -> None:
        """Its pages are free: it was redeemed, or never needed."""
        self.over = True
        self.lease.close()

    @property
    def alive(self) -> bool:
        """The worker that holds its pages still runs and has not forgotten it."""
        return not self.lost and self.replica.alive and self.replica.incarnation == self.incarnation

    def note(self, what: str) -> None:
        self._story.append(f"epoch {self.epoch}: {what}")

    def tell(self) -> str:
        """Its short story, as the router saw it."""
        state = "alive" if self.alive else "lost" if self.lost else self.replica.state.value
        head = f"ticket {self.ticket.id[:12]} of {self.replica.id} ({state})"
        return "; ".join((head, *self._story))
