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
    """The call lasts as long as the block. `traceparent` is taken from the call's metadata, and the
    first thing it answers says whose it became."""
    if tracer is None:
        speak_of(request_id, "")
        yield None
        return
    metadata = context.invocation_metadata() or ()
    given = next((value for key, value in metadata if key == "traceparent"), "")
    operation = "chat" if chat else "text_completion"
    with tracer.visit(f"{SERVICE}/{METHOD}", operation, given, ATTRIBUTES) as visit:
        visit.answered("CANCELLED", failed=False)
        traceparent = visit.context.traceparent
        speak_of(request_id, traceparent)
        await context.send_initial_metadata((("traceparent", traceparent),))
        try:
            yield visit
        except KvasirError as error:
            visit.answered(error.code.value, failed=HTTP_STATUS[error.code] >= 500)
            raise
        visit.answered("OK", failed=False)
