"""From the bytes of a body to a checked request, or to an error that names the field."""

from __future__ import annotations

import json
from typing import Any, NoReturn, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from starlette.requests import ClientDisconnect, Request

from router.gateway.schemas import SamplingBody
from workers.core.errors import InvalidRequest, PayloadTooLarge, UnknownField

Body = TypeVar("Body", bound=SamplingBody)

# Fields without an effect here, whatever they say.
_IGNORED = frozenset(
    {"user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"}
)
# Fields of OpenAI's that we do not do yet. Null and these values mean what we do anyway.
_ONLY_DEFAULT: dict[str, tuple[object, ...]] = {
    "audio": (),
    "best_of": (1,),
    "echo": (False,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "reasoning_effort": (),
    "response_format": ({"type": "text"},),
    "store": (False,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": (),
    "web_search_options": (),
}


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Raises PayloadTooLarge as soon as it is known, ClientDisconnect if the client leaves."""
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > max_bytes:
        raise _too_large(max_bytes)
    pieces: list[bytes] = []
    num_bytes, more = 0, True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        pieces.append(message.get("body", b""))
        more = message.get("more_body", False)
        num_bytes += len(pieces[-1])
        if num_bytes > max_bytes:
            raise _too_large(max_bytes)
    return b"".join(pieces)


def parse_body(kind: type[Body], raw: bytes) -> Body:
    """Raises InvalidRequest."""
    content = _parse_json(raw)
    if not isinstance(content, dict):
        raise InvalidRequest(f"the body must be a JSON object, not {_json_type(content)}")
    known = {name: value for name, value in content.items() if _is_for(kind, name, value)}
    try:
        return kind.model_validate(known)
    except ValidationError as error:
        raise _explained(error.errors(include_url=False)[0]) from None


def _too_large(max_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"the body is larger than {max_bytes} bytes, the most taken here")


def _parse_json(raw: bytes) -> Any:
    try:
        content = json.loads(raw, parse_constant=_no_such_number)
        if b"\\ud" in raw.lower():  # an escaped surrogate: fine in pairs, no text by itself
            json.dumps(content, ensure_ascii=False).encode()
        return content
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply") from None
    except ValueError as error:  # also of UTF-8, and integers of thousands of digits
        raise InvalidRequest(f"the body is not valid JSON: {error}") from None


def _no_such_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _is_for(kind: type[SamplingBody], name: str, value: object) -> bool:
    """Whether the model should see this field. Raises for fields not known or not done yet."""
    if name in kind.model_fields:
        return True
    if name in _IGNORED:
        return False
    if name not in _ONLY_DEFAULT:
        raise UnknownField(name)
    # in JSON, true is not 1
    allowed = (type(default) is type(value) and default == value for default in _ONLY_DEFAULT[name])
    if value is not None and not any(allowed):
        raise InvalidRequest(f"{name} is not supported yet; leave it out", param=name)
    return False


def _explained(error: ErrorDetails) -> InvalidRequest:
    """Pydantic's first error in our words."""
    param = error.get("ctx", {}).get("param") or _path(error["loc"])
    if error["type"] == "extra_forbidden":
        return UnknownField(param)
    if error["type"] == "missing":
        return InvalidRequest(f"{param} is required", param=param)
    if error["type"] == "refusal":
        return InvalidRequest(f"{param} {error['msg']}", param=param)
    problem = error["msg"][0].lower() + error["msg"][1:]
    return InvalidRequest(f"{param}: {problem}, not {_json_type(error['input'])}", param=param)


def _path(loc: tuple[int | str, ...]) -> str:
    """("messages", 0, "content") -> messages[0].content"""
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
    return path.removeprefix(".")


def _json_type(value: object) -> str:
    if value is None:
        return "null"
    names = {bool: "a boolean", str: "a string", list: "an array", dict: "an object"}
    return names.get(type(value), "a number")
