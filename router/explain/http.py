"""What the admin port says of requests, as JSON."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from router.explain.answer import explain, recent
from router.explain.trails import Trails
from workers.core.errors import HTTP_STATUS, RequestNotFound
from workers.wire.as_dict import as_dict


def explain_routes(trails: Trails) -> list[Route]:
    """GET /explain/request/{id}, and /explain/requests?limit=20; fields as in admin.proto."""

    async def one(request: Request) -> Response:
        name = request.path_params["name"]
        try:
            return JSONResponse(as_dict(explain(trails, name)))
        except RequestNotFound as error:
            return _wrong(HTTP_STATUS[error.code], error.message)

    async def newest(request: Request) -> Response:
        limit = request.query_params.get("limit", "0")
        if not (limit.isascii() and limit.isdigit()):
            return _wrong(400, f"limit: {limit!r} is no number")
        return JSONResponse(as_dict(recent(trails, int(limit))))

    return [Route("/explain/request/{name:path}", one), Route("/explain/requests", newest)]


def _wrong(status: int, message: str) -> Response:
    return JSONResponse({"error": {"message": message}}, status)
