"""One request's way through Prefill and Decode, or Decode alone, on role objects and gRPC stubs
alike."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
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


async def opened(
    call: Call, what: Request
) -> tuple[common.Ticket, asyncio.Task[worker.FirstToken]]:
    """A Prefill stream up to its ticket, which can be bound then, and what will come of it."""
    stream = aiter(call(worker.PrefillRequest(sequence=request_to_wire(what))))
    ticket = (await anext(stream)).opened.ticket

    async def rest() -> worker.FirstToken:
        first = worker.FirstToken()
        async for event in stream:
            if event.WhichOneof("event") == "first_token":
                first = event.first_token
        return first

    return ticket, asyncio.create_task(rest())


def decode_request(
    what: Request, ticket: common.Ticket, first: int | None, epoch: int = 1
) -> worker.DecodeRequest:
    spec = request_to_wire(what)
    if first is not None:
        spec.token_ids.append(first)
    return worker.DecodeRequest(sequence=spec, ticket=ticket, epoch=epoch)


async def decode(
    call: Call, what: Request, ticket: common.Ticket, first: int | None, epoch: int = 1
) -> tuple[worker.Admitted, list[int]]:
    """The whole Decode stream: how it was admitted, and the tokens after the first, which comes
    with the KV where it is None."""
    admitted, tokens = worker.Admitted(), []
    async for event in call(decode_request(what, ticket, first, epoch)):
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


async def moving(
    giver: Any, taker: Any, what: Request, ticket: common.Ticket, first: common.Token, after: int
) -> tuple[bool, list[common.Token]]:
    """The tokens of a request that is asked to move when there are `after` of them, and whether it
    did: it may end before. `giver` and `taker`: stubs."""
    tokens = [first]

    def message(ticket: common.Ticket) -> worker.DecodeRequest:
        known = (*what.token_ids, *(token.id for token in tokens))
        spec = request_to_wire(replace(what, token_ids=known))
        return worker.DecodeRequest(sequence=spec, ticket=ticket, epoch=1)

    taking: Any = None
    async for event in giver.Decode(message(ticket)):
        before = len(tokens)
        tokens += event.tokens.tokens
        if before < after <= len(tokens):
            await giver.Move(worker.MoveRequest(request_id=what.id))
        if event.HasField("moving"):
            taking = taker.Decode(message(event.moving.ticket))
        if event.HasField("moved"):
            break
    else:
        if taking is not None:
            taking.cancel()
        return False, tokens
    async for event in taking:
        tokens += event.tokens.tokens
    return True, tokens


async def aggregated(call: Call, what: Request) -> tuple[worker.Admitted, list[int]]:
    """The whole Decode stream of a request that has no ticket."""
    admitted, tokens = worker.Admitted(), []
    async for event in call(worker.DecodeRequest(sequence=request_to_wire(what))):
        if event.WhichOneof("event") == "admitted":
            admitted = event.admitted
        tokens += [token.id for token in event.tokens.tokens]
    return admitted, tokens
