"""A response that streams server-sent events, and the end of work whose client has left."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol, TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from router.gateway.errors import describe, error_object, error_response
from workers.core.errors import KvasirError

T = TypeVar("T")


class Emit(Protocol):
    """Each of `events` becomes an event; they are sent together."""

    def __call__(self, *events: str) -> Awaitable[None]: ...


_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # proxies pass each event on at once
]
DONE = "[DONE]"


async def unless_client_leaves(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`. When the client goes first, `work` is cancelled, has ended, and
    ClientDisconnect is raised."""
    try:
        async with asyncio.timeout(None) as patience:
            leaving = asyncio.create_task(_client_leaves(receive, patience))
            try:
                return await work
            finally:
                leaving.cancel()
    except TimeoutError:
        if patience.expired():
            raise ClientDisconnect from None
        raise


async def _client_leaves(receive: Receive, patience: asyncio.Timeout) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    patience.reschedule(0.0)  # over: the task that works is cancelled as by a deadline


class EventStream:
    """An ASGI response: `produce(emit)` runs, and what it emits becomes events.

    Nothing is sent before the first event, so an error until then has its own HTTP status; a later
    one is an event itself and the last, without [DONE].
    """

    def __init__(self, produce: Callable[[Emit], Coroutine[Any, Any, None]]) -> None:
        self._produce = produce

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def emit(*events: str, more: bool = True) -> None:
            nonlocal started
            if not started:
                started = True
                await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
            await send(_body(*events, more=more))

        try:
            await unless_client_leaves(receive, self._produce(emit))
            await emit(DONE, more=False)
        except ClientDisconnect:
            return
        except KvasirError as error:
            if not started:
                await error_response(error)(scope, receive, send)
                return
            await emit(json.dumps(describe(error)), more=False)
        except Exception:  # the edge of the process: the server logs it, the client must not hang
            if started:
                failure = error_object("internal error", 500, code="internal")
                await emit(json.dumps(failure), more=False)
            raise


def _body(*events: str, more: bool) -> Message:
    data = "".join([f"data: {event}\n\n" for event in events]).encode()
    return {"type": "http.response.body", "body": data, "more_body": more}
