"""The HTTP door's end of a trace: one visit for each POST to the API."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from router.tracing.tracer import Tracer
from workers.core.trace import speak_of

VISIT = "kvasir.visit"  # where it stands in the scope
OPERATIONS: Mapping[str, str] = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "text_completion",
}


class Traced:
    """`traceparent` and `tracestate` are taken from the client, and every answer of the API says
    whose it became."""

    def __init__(self, app: ASGIApp, tracer: Tracer) -> None:
        self._app = app
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        operation = OPERATIONS.get(scope.get("path", ""))
        if operation is None or scope.get("method") != "POST":
            await self._app(scope, receive, send)
            return
        route = scope["path"]
        attributes = (("http.request.method", "POST"), ("http.route", route))
        headers = Headers(scope=scope)
        with self._tracer.visit(
            f"POST {route}",
            operation,
            headers.get("traceparent", ""),
            attributes,
            tracestate=",".join(headers.getlist("tracestate")),
        ) as visit:
            scope[VISIT] = visit

            async def send_with_trace(message: Message) -> None:
                if message["type"] == "http.response.start":
                    status: int = message["status"]
                    visit.answered(status, failed=status >= 500)
                    MutableHeaders(scope=message).update(dict(visit.headers))
                await send(message)

            await self._app(scope, receive, send_with_trace)


def speak(scope: Scope, request_id: str) -> None:
    """What the running task logs from now on is of this request."""
    visit = scope.get(VISIT)
    speak_of(request_id, "" if visit is None else visit.context.traceparent)
