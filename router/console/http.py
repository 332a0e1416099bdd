"""The console on the admin port: the page, what it asks for, and the gateway it chats with.

The gateway itself stands under /v1 here too: so the page's chat needs no second origin and goes the
way of every other request, with the same errors, classes, keys and trails.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from router.console.held import Held
from router.console.history import History
from router.console.overview import Sources, overview
from router.explain.answer import explain, recent
from router.explain.scale import Plans, explain_scale
from router.gateway.errors import error_response
from router.tickets import ask_tickets
from workers.core.clock import Clock, unix_time
from workers.core.errors import (
    HTTP_STATUS,
    KvasirError,
    PermissionDenied,
    PlanNotFound,
    RequestNotFound,
)
from workers.wire.as_dict import as_dict

STATIC = Path(__file__).parent / "static"
MOST_REQUESTS = 200
# Nothing but our own files, and nobody may frame us. Scripts and styles stand in files only.
PAGE_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",  # asked for again each time, and mostly not changed
}
API_HEADERS = {"cache-control": "no-store", "x-content-type-options": "nosniff"}


class Console:
    def __init__(self, of: Sources, clock: Clock, gateway: ASGIApp, plans: Plans) -> None:
        self._of = of
        self._gateway = _SameOrigin(gateway)
        self._plans = plans
        self._history = History(of.flow, of.metrics)
        self._started = unix_time()
        self._overview = Held(self._make_overview, clock)
        self._tickets = Held(self._ask_tickets, clock)
        self._plan = Held(self._make_plan, clock)

    async def run(self) -> None:
        await self._history.run()

    def routes(self) -> list[BaseRoute]:
        return [
            Route("/", _page),
            Mount("/console", _WithHeaders(StaticFiles(directory=STATIC))),
            Route("/api/overview", self._held(self._overview)),
            Route("/api/tickets", self._held(self._tickets)),
            Route("/api/plan", self._held(self._plan)),
            Route("/api/requests", self._requests),
            Route("/api/request/{name:path}", self._request),
            Route("/v1/{rest:path}", self._gateway),
        ]

    def _held(self, held: Held[bytes]) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            return Response(await held.get(), media_type="application/json", headers=API_HEADERS)

        return answer

    async def _requests(self, request: Request) -> Response:
        """`?limit=50`"""
        limit = request.query_params.get("limit", "50")
        if not (limit.isascii() and limit.isdigit() and 0 < int(limit) <= MOST_REQUESTS):
            return _wrong(400, f"limit is {limit[:20]!r}; it must be 1 to {MOST_REQUESTS}")
        found = recent(self._of.trails, int(limit))
        return JSONResponse(as_dict(found), headers=API_HEADERS)

    async def _request(self, request: Request) -> Response:
        try:
            found = explain(self._of.trails, request.path_params["name"])
        except RequestNotFound as error:
            return _wrong(HTTP_STATUS[error.code], error.message)
        return JSONResponse(as_dict(found), headers=API_HEADERS)

    async def _make_overview(self) -> bytes:
        return _json(overview(self._of, self._history, self._started))

    async def _ask_tickets(self) -> bytes:
        """Of those that live: whoever does not would only be waited for."""
        alive = [replica for replica in self._of.pool if replica.alive]
        return _json(as_dict(await ask_tickets(alive)))

    async def _make_plan(self) -> bytes:
        """{"plan": the planner's document or null, "by_hand": {pool: what was asked for instead},
        "error": why there is neither}"""
        found: dict[str, Any] = {"plan": None, "by_hand": {}, "error": ""}
        try:
            told = await explain_scale(self._plans)
            found["plan"] = json.loads(told.json) if told.json else None
            found["by_hand"] = as_dict(told)["by_hand"]
        except PlanNotFound:
            pass
        except (KvasirError, ValueError) as error:
            found["error"] = str(error)
        return _json(found)


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _wrong(status: int, message: str) -> Response:
    return JSONResponse({"error": {"message": message}}, status, headers=API_HEADERS)


async def _page(request: Request) -> Response:
    return FileResponse(STATIC / "index.html", headers=PAGE_HEADERS)


class _WithHeaders:
    """Files, with what PAGE_HEADERS says."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_more(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = [(key.encode(), value.encode()) for key, value in PAGE_HEADERS.items()]
                message["headers"] = [*message["headers"], *added]
            await send(message)

        await self._app(scope, receive, send_more)


class _SameOrigin:
    """The gateway, but not for the pages of others: a browser that knows this port's password would
    send it along with what they ask for."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        site = Headers(scope=scope).get("sec-fetch-site", "none")
        if site not in ("same-origin", "none"):
            refused = error_response(PermissionDenied("not for pages of other origins"))
            return await refused(scope, receive, send)
        await self._app(scope, receive, send)
