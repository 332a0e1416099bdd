"""One call at a door, HTTP or gRPC, and the requests it made: what a trace is drawn from.

On a request's path stand a few names and references. Spans are made when all is over (tree.py).
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import NamedTuple

from router.explain.trail import Trail
from workers.core.errors import Code
from workers.core.request import SamplingParams
from workers.core.trace import TraceContext

Value = str | int | float | tuple[str, ...]
Attributes = tuple[tuple[str, Value], ...]

OURS = frozenset(  # an outcome that operators want to see, whatever share is sampled
    code.lower()
    for code in (
        *(Code.RESOURCE_EXHAUSTED, Code.UNAVAILABLE),
        *(Code.INTERNAL, Code.FAILED_PRECONDITION),
    )
)


class Asked(NamedTuple):
    """A request of the visit, without its text."""

    trail: Trail
    model: str
    params: SamplingParams


@dataclass(eq=False)
class Visit:
    """`context`: of its own span, the root of what we trace; `parent`: the client's span, if it has
    one. `operation` as GenAI conventions name it. Times are the router's clock."""

    context: TraceContext
    parent: bytes
    name: str
    operation: str
    attributes: Attributes
    started: float
    ended: float = 0.0
    status: int | str = ""
    failed: bool = False
    asked: list[Asked] = field(default_factory=list)
    _spans: int = 0

    def __post_init__(self) -> None:
        self._base = int.from_bytes(self.context.span_id, "big")

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        """That tell the client whose its call became, in HTTP or as gRPC metadata."""
        ours = ("traceparent", self.context.traceparent)
        state = self.context.state
        return (ours, ("tracestate", state)) if state else (ours,)

    def enter(self, trail: Trail, model: str, params: SamplingParams) -> TraceContext:
        """The context of one request of it."""
        self.asked.append(Asked(trail, model, params))
        return self.context._replace(span_id=self.new_span_id())

    def new_span_id(self) -> bytes:
        """Ids need to be unique within a trace: ours count from a random one."""
        self._spans += 1
        return ((self._base + self._spans) % (1 << 64) or 1).to_bytes(8, "big")

    def answered(self, status: int | str, *, failed: bool) -> None:
        """`status`: of HTTP, or gRPC's code. `failed`: by our fault."""
        self.status = status
        self.failed = failed

    def notable(self, slow_s: float | None) -> bool:
        """Worth a trace of its own."""
        return self.failed or any(_notable(asked.trail, slow_s) for asked in self.asked)


def _notable(trail: Trail, slow_s: float | None) -> bool:
    if trail.outcome in OURS or trail.failures:
        return True
    if slow_s is None:
        return False
    until = trail.first_at if trail.first_at is not None else trail.ended_at
    return until is not None and until - trail.started > slow_s


def new_id(rng: random.Random, size: int) -> bytes:
    """Never all zero."""
    return (rng.getrandbits(8 * size) or 1).to_bytes(size, "big")
