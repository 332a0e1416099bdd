"""The gRPC door's end of a trace: one visit for each Generate call."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from router.tracing.tracer import Tracer
from router.tracing.visit import Visit
from workers.core.errors import HTTP_STATUS, KvasirError
from workers.core.trace import speak_of

SERVICE, METHOD = "kvasir.v1.Inference", "Generate"
ATTRIBUTES = (("rpc.system", "grpc"), ("rpc.service", SERVICE), ("rpc.method", METHOD))


@asynccontextmanager
async def visited(
    tracer: Tracer | None, context: Any, request_id: str, *, chat: bool
) -> AsyncIterator[Visit | None]:
    """The call lasts as long as the block. `traceparent` and `tracestate` are taken from the call's
    metadata, and the first thing it answers says whose it became."""
    if tracer is None:
        speak_of(request_id, "")
        yield None
        return
    metadata = context.invocation_metadata() or ()
    given = next((value for key, value in metadata if key == "traceparent"), "")
    state = ",".join(value for key, value in metadata if key == "tracestate")
    operation = "chat" if chat else "text_completion"
    name = f"{SERVICE}/{METHOD}"
    with tracer.visit(name, operation, given, ATTRIBUTES, tracestate=state) as visit:
        visit.answered("CANCELLED", failed=False)
        speak_of(request_id, visit.context.traceparent)
        await context.send_initial_metadata(visit.headers)
        try:
            yield visit
        except KvasirError as error:
            visit.answered(error.code.value, failed=HTTP_STATUS[error.code] >= 500)
            raise
        visit.answered("OK", failed=False)
