"""One error tree. Each leaf has one canonical code; `HTTP_STATUS` and the gRPC name follow from it.

KvasirError
|-- InvalidRequest        INVALID_ARGUMENT     400  the caller can mend it
|   |-- ContextTooLong
|   `-- UnknownField
|-- Unauthenticated       UNAUTHENTICATED      401  no API key, or none that is known
|-- PermissionDenied      PERMISSION_DENIED    403  a key that is not for this
|-- ModelNotFound         NOT_FOUND            404
|-- RequestNotFound       NOT_FOUND            404  explained: never seen, or too long ago
|-- ReplicaNotFound       NOT_FOUND            404
|-- PlanNotFound          NOT_FOUND            404  no planner has said anything
|-- PayloadTooLarge       OUT_OF_RANGE         413
|-- Overloaded            RESOURCE_EXHAUSTED   429  try again after retry_after_s
|-- Unavailable           UNAVAILABLE          503  nobody is there to do it now
|-- Cancelled             CANCELLED            499  the caller, or the router for it, ended it
|-- TicketError           FAILED_PRECONDITION  409  gone, expired, or taken by a newer epoch
|   `-- CorruptKV                                   wrong checksums twice: nothing to fetch again
|-- ConfigError           FAILED_PRECONDITION  -    at start, names key and place
|-- CheckpointError       FAILED_PRECONDITION  -    at start, names the file
`-- TransferError         UNAVAILABLE          503  a pair or a fetch failed; never seen by clients
"""

from __future__ import annotations

from enum import StrEnum


class Code(StrEnum):
    """Canonical codes, spelled as grpc.StatusCode spells them."""

    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    NOT_FOUND = "NOT_FOUND"
    OUT_OF_RANGE = "OUT_OF_RANGE"
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"
    UNAVAILABLE = "UNAVAILABLE"
    FAILED_PRECONDITION = "FAILED_PRECONDITION"
    CANCELLED = "CANCELLED"
    INTERNAL = "INTERNAL"


HTTP_STATUS: dict[Code, int] = {
    Code.INVALID_ARGUMENT: 400,
    Code.UNAUTHENTICATED: 401,
    Code.PERMISSION_DENIED: 403,
    Code.NOT_FOUND: 404,
    Code.OUT_OF_RANGE: 413,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.UNAVAILABLE: 503,
    Code.FAILED_PRECONDITION: 409,
    Code.CANCELLED: 499,
    Code.INTERNAL: 500,
}


class KvasirError(Exception):
    """Root. `param` names the request field at fault, where there is one."""

    code = Code.INTERNAL

    def __init__(
        self, message: str, *, param: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s


class InvalidRequest(KvasirError):
    code = Code.INVALID_ARGUMENT


class ContextTooLong(InvalidRequest):
    """The prompt does not fit. Says both lengths; `at_least`: its tokens were not counted."""

    def __init__(
        self,
        prompt_tokens: int,
        limit: int,
        *,
        what: str = "context length",
        param: str = "prompt",
        at_least: bool = False,
    ) -> None:
        count = f"at least {prompt_tokens}" if at_least else str(prompt_tokens)
        super().__init__(
            f"the prompt has {count} tokens, but this model's {what} is {limit} tokens "
            "(prompt and at least one generated token)",
            param=param,
        )


class UnknownField(InvalidRequest):
    def __init__(self, name: str) -> None:
        super().__init__(f"unknown field {name!r}", param=name)


class Unauthenticated(KvasirError):
    code = Code.UNAUTHENTICATED


class PermissionDenied(KvasirError):
    code = Code.PERMISSION_DENIED


class ModelNotFound(KvasirError):
    code = Code.NOT_FOUND

    def __init__(self, model: str, served: list[str]) -> None:
        super().__init__(
            f"the model {model!r} does not exist; served here: {', '.join(served)}", param="model"
        )


class RequestNotFound(KvasirError):
    code = Code.NOT_FOUND

    def __init__(self, name: str) -> None:
        super().__init__(f"no request {name!r} is known here, or no longer")


class ReplicaNotFound(KvasirError):
    code = Code.NOT_FOUND

    def __init__(self, name: str, known: list[str]) -> None:
        super().__init__(f"no replica {name!r}; there are: {', '.join(known) or 'none'}")


class PlanNotFound(KvasirError):
    code = Code.NOT_FOUND

    def __init__(self) -> None:
        super().__init__(
            "there is no plan: no planner runs (planner.mode is off?), or it has only just begun"
        )


class PayloadTooLarge(KvasirError):
    code = Code.OUT_OF_RANGE


class Overloaded(KvasirError):
    code = Code.RESOURCE_EXHAUSTED


class Unavailable(KvasirError):
    code = Code.UNAVAILABLE


class Cancelled(KvasirError):
    code = Code.CANCELLED

    def __init__(self, request_id: str) -> None:
        super().__init__(f"request {request_id} was cancelled")


class TicketError(KvasirError):
    code = Code.FAILED_PRECONDITION


class CorruptKV(TicketError):
    """Blocks came with wrong checksums twice. The prompt has to be computed again."""


class ConfigError(KvasirError):
    code = Code.FAILED_PRECONDITION


class CheckpointError(KvasirError):
    code = Code.FAILED_PRECONDITION


class TransferError(KvasirError):
    code = Code.UNAVAILABLE
