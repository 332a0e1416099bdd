"""What happened to one request, written down while it happens.

This stands on the request's path: events are tuples of times, numbers and references, and text is
made of them only when somebody asks (answer.py). What is referred to does not change any more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from router.placement.binding import Overlap
from router.placement.decision import Decision, Phase, Refusal
from workers.core.errors import KvasirError
from workers.core.request import FinishReason, Request
from workers.core.trace import TraceContext
from workers.wire import worker_pb2 as worker

MOST_EVENTS = 64  # of one request: retries are few, but it may move for as long as it runs
MOST_WORDS = 500  # characters of an error


class Began(NamedTuple):
    """An attempt: from here on it looks for a replica."""

    at: float


class Placed(NamedTuple):
    at: float
    decision: Decision


class Nobody(NamedTuple):
    """No replica could take it, for as long as it may wait."""

    at: float
    phase: Phase
    refused: Mapping[str, Refusal]


class Opened(NamedTuple):
    """Its prefill began, behind tokens that were cached."""

    at: float
    cached_tokens: int


class Prefilled(NamedTuple):
    """Its first token came, after seconds that the worker counted."""

    at: float
    queue_s: float
    prefill_s: float


class Timed(NamedTuple):
    """Whether to bind early was weighed."""

    at: float
    decision: Decision
    overlap: Overlap


class Bound(NamedTuple):
    """A Decode call for a ticket began. `moving`: of a sequence that decodes elsewhere."""

    at: float
    decision: Decision
    epoch: int
    moving: bool


class Unbound(NamedTuple):
    """That call failed."""

    at: float
    why: str


class Fetched(NamedTuple):
    """That call has the KV."""

    at: float
    admitted: worker.Admitted
    moving: bool


class Failed(NamedTuple):
    """The attempt is over; another one begins, if there is one."""

    at: float
    why: str


class Offered(NamedTuple):
    """Its worker would let it go."""

    at: float
    replica: str


class Moved(NamedTuple):
    at: float
    replica: str


class Stayed(NamedTuple):
    at: float
    why: str


Event = (
    Began | Placed | Nobody | Opened | Prefilled | Timed | Bound | Unbound | Fetched | Failed
    | Offered | Moved | Stayed
)  # fmt: skip


class Trail:
    """One request's. Times are the router's clock; those that are None have not come."""

    def __init__(
        self,
        now: Callable[[], float],
        started: float,
        request_id: str = "",
        also: tuple[str, ...] = (),
        tenant: str = "",
    ) -> None:
        self._now = now
        self.started = started
        self.request_id = request_id
        self.also = also
        self.tenant = tenant
        self.slo_class = ""
        self.worker_id = ""
        self.prompt_tokens = 0
        self.output_tokens = 0
        self.waited_s = 0.0  # in the line, until let_in_at
        self.let_in_at: float | None = None
        self.first_at: float | None = None
        self.second_at: float | None = None
        self.ended_at: float | None = None
        self.outcome = ""
        self.error = ""
        self.trace: TraceContext | None = None
        self.failures = 0  # of attempts and bindings
        self.finish_reason: FinishReason | None = None
        self._events: list[tuple[Any, ...]] = []  # the class of each, and its fields
        self.left_out = 0
        self.rows = 0  # replicas in its decisions: what it weighs

    @property
    def traceparent(self) -> str:
        """Empty: nobody traces it."""
        return "" if self.trace is None else self.trace.traceparent

    @property
    def exemplar(self) -> dict[str, str] | None:
        """Leads from a measurement of it to its trace. None: there will hardly be one."""
        if self.trace is None or not self.trace.sampled:
            return None
        return {"trace_id": self.trace.trace_id.hex()}

    # of the request

    def asked(self, request: Request) -> None:
        self.worker_id = request.id
        self.prompt_tokens = request.prompt_len

    def let_in(self, slo_class: str, waited_s: float) -> None:
        self.slo_class = slo_class
        self.waited_s = waited_s
        self.let_in_at = self._now()

    def tokens(self, at: float, count: int) -> None:
        """`count` new ones reached the client's side."""
        if self.first_at is None:
            self.first_at = at
        elif self.second_at is None and count:
            self.second_at = at
        self.output_tokens += count

    # of its way through the workers

    def began(self) -> None:
        self._add((Began, self._now()))

    def placed(self, decision: Decision) -> None:
        self._weigh(decision)
        self._add((Placed, self._now(), decision))

    def nobody(self, phase: Phase, refused: Mapping[str, Refusal]) -> None:
        self.rows += len(refused)
        self._add((Nobody, self._now(), phase, refused))

    def opened(self, cached_tokens: int) -> None:
        self._add((Opened, self._now(), cached_tokens))

    def prefilled(self, queue_s: float, prefill_s: float) -> None:
        self._add((Prefilled, self._now(), queue_s, prefill_s))

    def timed(self, decision: Decision, overlap: Overlap) -> None:
        self._weigh(decision)
        self._add((Timed, self._now(), decision, overlap))

    def bound(self, decision: Decision, epoch: int, *, moving: bool) -> None:
        self._weigh(decision)
        self._add((Bound, self._now(), decision, epoch, moving))

    def unbound(self, error: KvasirError) -> None:
        self.failures += 1
        self._add((Unbound, self._now(), error.message[:MOST_WORDS]))

    def fetched(self, admitted: worker.Admitted, *, moving: bool) -> None:
        self._add((Fetched, self._now(), admitted, moving))

    def failed(self, error: KvasirError) -> None:
        self.failures += 1
        self._add((Failed, self._now(), error.message[:MOST_WORDS]))

    def offered(self, replica: str) -> None:
        self._add((Offered, self._now(), replica))

    def moved(self, replica: str) -> None:
        self._add((Moved, self._now(), replica))

    def stayed(self, why: str) -> None:
        self._add((Stayed, self._now(), why[:MOST_WORDS]))

    @property
    def events(self) -> list[Event]:
        """In the order in which they came."""
        return [kind(*fields) for kind, *fields in self._events]

    def _add(self, event: tuple[Any, ...]) -> None:
        if len(self._events) < MOST_EVENTS:
            self._events.append(event)
        else:
            self.left_out += 1

    def _weigh(self, decision: Decision) -> None:
        self.rows += len(decision.among.replicas) + len(decision.refused)
