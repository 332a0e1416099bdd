"""One request's way through Prefill and Decode, or Decode alone, on role objects and gRPC stubs
alike."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

from workers.core.request import Request
from workers.wire import common_pb2 as common
from workers.wire import worker_pb2 as worker
from workers.wire.codec import request_to_wire

Call = Callable[[Any], AsyncIterator[Any]]


async def prefill(call: Call, what: Request) -> tuple[common.Ticket, worker.FirstToken]:
    """The whole Prefill stream."""
    ticket, first = None, None
    async for event in call(worker.PrefillRequest(sequence=request_to_wire(what))):
        if event.WhichOneof("event") == "opened":
            ticket = event.opened.ticket
        if event.WhichOneof("event") == "first_token":
            first = event.first_token
    assert ticket is not None and first is not None
    return ticket, first


async def decode(
    call: Call, what: Request, ticket: common.Ticket, first: int, epoch: int = 1
) -> tuple[worker.Admitted, list[int]]:
    """The whole Decode stream: how it was admitted, and the tokens after the first."""
    spec = request_to_wire(what)
    spec.token_ids.append(first)
    admitted, tokens = worker.Admitted(), []
    async for event in call(worker.DecodeRequest(sequence=spec, ticket=ticket, epoch=epoch)):
        if event.WhichOneof("event") == "admitted":
            admitted = event.admitted
        tokens += [token.id for token in event.tokens.tokens]
    return admitted, tokens


async def both(
    prefill_call: Call, decode_call: Call, what: Request
) -> tuple[worker.Admitted, list[int]]:
    """All tokens of a request that nothing disturbs."""
    ticket, first = await prefill(prefill_call, what)
    if first.finish_reason:
        return worker.Admitted(), [first.token.id]
    admitted, rest = await decode(decode_call, what, ticket, first.token.id)
    return admitted, [first.token.id, *rest]


async def aggregated(call: Call, what: Request) -> tuple[worker.Admitted, list[int]]:
    """The whole Decode stream of a request that has no ticket."""
    admitted, tokens = worker.Admitted(), []
    async for event in call(worker.DecodeRequest(sequence=request_to_wire(what))):
        if event.WhichOneof("event") == "admitted":
            admitted = event.admitted
        tokens += [token.id for token in event.tokens.tokens]
    return admitted, tokens
