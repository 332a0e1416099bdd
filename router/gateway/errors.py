"""Errors as OpenAI's clients expect them: one JSON object, the right status, when to come back."""

from __future__ import annotations

import math
from http import HTTPStatus
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from workers.core.errors import (
    HTTP_STATUS,
    ContextTooLong,
    KvasirError,
    ModelNotFound,
    Unauthenticated,
    UnknownField,
)

_CODES: dict[type[KvasirError], str] = {
    ContextTooLong: "context_length_exceeded",
    ModelNotFound: "model_not_found",
    Unauthenticated: "invalid_api_key",
    UnknownField: "unknown_parameter",
}
_TYPES = {429: "rate_limit_error", 503: "service_unavailable_error"}
CLIENT_GONE = 499  # nobody reads it; the access log does


def error_object(
    message: str, status: int, *, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def describe(error: KvasirError) -> dict[str, Any]:
    """The error object; `code` is a word for the reason, else for the status."""
    status = HTTP_STATUS[error.code]
    code = _CODES.get(type(error), error.code.lower())
    return error_object(error.message, status, param=error.param, code=code)


def error_response(error: KvasirError) -> Response:
    headers = {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
    return JSONResponse(describe(error), HTTP_STATUS[error.code], headers)


async def on_kvasir_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, KvasirError)
    return error_response(error)


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Starlette's own: no such path, no such method."""
    status = getattr(error, "status_code", 500)
    if status == HTTPStatus.NOT_FOUND:
        message = f"there is no {request.method} {request.url.path} here"
    elif status == HTTPStatus.METHOD_NOT_ALLOWED:
        message = f"{request.url.path} does not take {request.method}"
    else:
        message = HTTPStatus(status).phrase
    content = error_object(message, status, code=HTTPStatus(status).name.lower())
    return JSONResponse(content, status, getattr(error, "headers", None))


async def on_client_gone(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_GONE)


async def on_bug(request: Request, error: Exception) -> Response:
    """The server logs the traceback; clients learn only that it was not their fault."""
    return JSONResponse(error_object("internal error", 500, code="internal"), 500)
