"""The OpenAI door: an ASGI app in front of a Generator."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from router.api import Call, Generator, ModelCard, Terms
from router.doors.guard import Guard, key_of
from router.doors.keys import ApiKeys
from router.exposition import exposition
from router.gateway import chat, completions
from router.gateway.answers import Shape, collect, stream
from router.gateway.errors import (
    on_bug,
    on_client_gone,
    on_http_exception,
    on_kvasir_error,
)
from router.gateway.parsing import Body, parse_body, read_body
from router.gateway.schemas import ChatBody, CompletionBody, SamplingBody
from router.gateway.sse import Emit, EventStream, unless_client_leaves
from router.gateway.terms import terms_of
from router.tracing.http import VISIT, Traced, speak
from router.tracing.tracer import Tracer
from workers.core.clock import unix_time
from workers.core.errors import KvasirError, ModelNotFound

REQUEST_ID = "kvasir.request_id"  # where it stands in the scope
_CLIENT_ID = re.compile(r"[\x21-\x7e]{1,128}")


def create_app(
    generator: Generator,
    *,
    ready: Callable[[], bool],
    classes: Callable[[], Collection[str]] = tuple,
    registry: CollectorRegistry | None = None,
    max_body_bytes: int = 8 << 20,
    refused: Callable[[KvasirError], None] = lambda error: None,
    tracer: Tracer | None = None,
    keys: ApiKeys | None = None,
    certificates: bool = False,
) -> ASGIApp:
    """`ready`: whether the generator can answer now, for /health. `classes`: service classes that
    there are now. Without a `registry` there is no /metrics. `refused` hears of requests that never
    got to the generator. `keys`, `certificates`: what clients must show."""
    gateway = _Gateway(generator, ready, classes, registry, max_body_bytes, refused)
    routes = [
        Route("/v1/chat/completions", gateway.chat_completions, methods=["POST"]),
        Route("/v1/completions", gateway.completions, methods=["POST"]),
        Route("/v1/models", gateway.models),
        Route("/v1/models/{model:path}", gateway.model),
        Route("/health", gateway.health),
        Route("/ready", gateway.health),
    ]
    if registry is not None:
        routes.append(Route("/metrics", gateway.metrics))
    app = Starlette(
        routes=routes,
        exception_handlers={
            KvasirError: on_kvasir_error,
            HTTPException: on_http_exception,
            ClientDisconnect: on_client_gone,
            Exception: on_bug,
        },
    )
    app.router.redirect_slashes = False
    guarded: ASGIApp = app
    if keys is not None or certificates:
        guarded = Guard(app, keys, certificates=certificates, refused=refused)
    named = _RequestId(guarded)
    return named if tracer is None else Traced(named, tracer)


def health_response(ready: bool) -> Response:
    return JSONResponse({"status": "ok" if ready else "unavailable"}, 200 if ready else 503)


class _Gateway:
    def __init__(
        self,
        generator: Generator,
        ready: Callable[[], bool],
        classes: Callable[[], Collection[str]],
        registry: CollectorRegistry | None,
        max_body_bytes: int,
        refused: Callable[[KvasirError], None],
    ) -> None:
        self._generator = generator
        self._ready = ready
        self._classes = classes
        self._registry = registry
        self._max_body_bytes = max_body_bytes
        self._refused = refused

    async def chat_completions(self, request: Request) -> ASGIApp:
        body, terms = await self._asked(ChatBody, request)
        answer_id = chat.ID_PREFIX + secrets.token_hex(16)
        shape = chat.ChatShape(body, answer_id, int(unix_time()), self._generator.token_text)
        calls = chat.chat_calls(body, answer_id, terms)
        return await self._answer(request, body, _named(calls, request, answer_id), shape)

    async def completions(self, request: Request) -> ASGIApp:
        body, terms = await self._asked(CompletionBody, request)
        answer_id = completions.ID_PREFIX + secrets.token_hex(16)
        shape = completions.CompletionShape(
            body, answer_id, int(unix_time()), self._generator.token_text
        )
        calls = completions.completion_calls(body, answer_id, terms)
        return await self._answer(request, body, _named(calls, request, answer_id), shape)

    async def _asked(self, kind: type[Body], request: Request) -> tuple[Body, Terms]:
        """Raises what is wrong with body or headers, or ModelNotFound."""
        try:
            body = parse_body(kind, await read_body(request, self._max_body_bytes))
            terms = terms_of(request.headers, body.service_tier, self._classes())
            key = key_of(request.scope)
            terms = terms if key is None else key.terms(terms)
            if not self._generator.serves(body.model):
                raise self._unknown(body.model)
        except KvasirError as error:
            self._refused(error)
            raise
        return body, terms

    async def _answer(
        self, request: Request, body: SamplingBody, calls: Sequence[Call], shape: Shape
    ) -> ASGIApp:
        if not body.stream:
            work = collect(self._generator, calls, body.samples, shape)
            return JSONResponse(await unless_client_leaves(request.receive, work))

        async def produce(emit: Emit) -> None:
            usage = body.include_usage
            await stream(self._generator, calls, body.samples, shape, emit, usage)

        return EventStream(produce)

    async def models(self, request: Request) -> Response:
        cards = [_describe(card) for card in self._generator.models()]
        return JSONResponse({"object": "list", "data": cards})

    async def model(self, request: Request) -> Response:
        return JSONResponse(_describe(self._card(request.path_params["model"])))

    async def health(self, request: Request) -> Response:
        return health_response(self._ready())

    async def metrics(self, request: Request) -> Response:
        assert self._registry is not None
        return exposition(self._registry, request)

    def _card(self, model: str) -> ModelCard:
        """Raises ModelNotFound."""
        for card in self._generator.models():
            if card.id == model:
                return card
        raise self._unknown(model)

    def _unknown(self, model: str) -> ModelNotFound:
        return ModelNotFound(model, [card.id for card in self._generator.models()])


def _named(calls: Sequence[Call], request: Request, answer_id: str) -> list[Call]:
    """Each of them is also known by the id of the answer, and by that of the HTTP request."""
    also, visit = (request.scope[REQUEST_ID], answer_id), request.scope.get(VISIT)
    named = [replace(call, also=also, visit=visit) for call in calls]
    key = key_of(request.scope)
    return named if key is None else [key.call(call) for call in named]


def _describe(card: ModelCard) -> dict[str, Any]:
    return {
        "id": card.id,
        "object": "model",
        "created": card.created,
        "owned_by": "kvasir",
        "max_model_len": card.context_length,
    }


class _RequestId:
    """Every response carries x-request-id: the client's own, or a new one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Request(scope).headers.get("x-request-id", "")
        request_id = given if _CLIENT_ID.fullmatch(given) else f"req-{secrets.token_hex(16)}"

        scope[REQUEST_ID] = request_id
        speak(scope, request_id)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        await self._app(scope, receive, send_with_id)
