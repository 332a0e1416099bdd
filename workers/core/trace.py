"""Which trace something belongs to: the W3C trace context of a request, and of what runs for it.

Spans are no concern of workers: they say how long things took, in messages that they send anyway,
and the router makes spans of that (router/tracing). Here is only what they need for it: a name for
the request, to stand in logs and beside measurements.
"""

from __future__ import annotations

import re
from contextvars import ContextVar
from typing import NamedTuple

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_SAMPLED = 1
_MEMBER = re.compile(
    r"[a-z0-9][a-z0-9_*/@-]{0,255}=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
)
_MOST_MEMBERS = 32


class TraceContext(NamedTuple):
    """`trace_id` 16 bytes, `span_id` 8 bytes, neither all zero. `state`: W3C's tracestate, what
    tracing systems in front of us want carried along; we say nothing in it."""

    trace_id: bytes
    span_id: bytes
    sampled: bool
    state: str = ""

    @property
    def traceparent(self) -> str:
        return f"00-{self.trace_id.hex()}-{self.span_id.hex()}-{self.sampled:02x}"


class Subject(NamedTuple):
    """The request for which the running task works."""

    request_id: str
    trace_id: str = ""  # hex, as the next ones; empty: nobody traces it
    span_id: str = ""


# Set at the doors of a process and read by its log alone: a log line has no argument for it.
SUBJECT: ContextVar[Subject | None] = ContextVar("subject", default=None)


def parse_traceparent(value: str, state: str = "") -> TraceContext | None:
    """None: there is none, or it is not valid, which by the standard is the same. `state`: the
    tracestate beside it, as it came."""
    found = _TRACEPARENT.fullmatch(value.strip())
    if found is None:
        return None
    version, trace_id, span_id, flags, more = found.groups()
    if version == "ff" or (version == "00" and more):
        return None
    if not (int(trace_id, 16) and int(span_id, 16)):
        return None
    sampled = bool(int(flags, 16) & _SAMPLED)
    ids = bytes.fromhex(trace_id), bytes.fromhex(span_id)
    return TraceContext(*ids, sampled, _valid_state(state) if state else "")


def _valid_state(value: str) -> str:
    """Empty where any of it is not valid, as the standard wants it."""
    members = [member for part in value.split(",") if (member := part.strip(" \t"))]
    keys = {member.partition("=")[0] for member in members}
    if len(keys) != len(members) or len(members) > _MOST_MEMBERS:
        return ""
    return ",".join(members) if all(map(_MEMBER.fullmatch, members)) else ""


def speak_of(request_id: str, traceparent: str) -> None:
    """What the running task logs from now on is of that request."""
    context = parse_traceparent(traceparent) if traceparent else None
    if context is None:
        SUBJECT.set(Subject(request_id))
    else:
        SUBJECT.set(Subject(request_id, context.trace_id.hex(), context.span_id.hex()))


def exemplar(traceparent: str) -> dict[str, str] | None:
    """The label of a measurement that leads to its trace. None: there will hardly be one."""
    if not traceparent.endswith("-01"):
        return None
    return {"trace_id": traceparent[3:35]}
