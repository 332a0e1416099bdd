"""One request's way through Prefill and Decode, or Decode alone, on role objects and workers behind
gRPC (a stub's Prefill, DecodeClient.start) alike."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

from workers.core.request import Request
from workers.wire import common_pb2 as common
from workers.wire import worker_pb2 as worker
from workers.wire.codec import request_to_wire
from workers.wire.decode_client import DecodeStream

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
    return await _read(call(decode_request(what, ticket, first, epoch)))


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
    giver: Call,
    ask: Callable[[worker.MoveRequest], Awaitable[Any]],
    taker: Call,
    what: Request,
    ticket: common.Ticket,
    first: common.Token,
    after: int,
) -> tuple[bool, list[common.Token]]:
    """The tokens of a request that is asked to move when there are `after` of them, and whether it
    did: it may end before. `giver` and `taker` decode; `ask` the giver to move it."""
    tokens = [first]

    def message(ticket: common.Ticket) -> worker.DecodeRequest:
        known = (*what.token_ids, *(token.id for token in tokens))
        spec = request_to_wire(replace(what, token_ids=known))
        return worker.DecodeRequest(sequence=spec, ticket=ticket, epoch=1)

    taking: Any = None
    async for event in giver(message(ticket)):
        before = len(tokens)
        tokens += event.tokens.tokens
        if before < after <= len(tokens):
            await ask(worker.MoveRequest(request_id=what.id))
        if event.HasField("moving"):
            taking = taker(message(event.moving.ticket))
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
    return await _read(call(worker.DecodeRequest(sequence=request_to_wire(what))))


async def _read(stream: Any) -> tuple[worker.Admitted, list[int]]:
    """To its end; left early, it is cancelled."""
    admitted, tokens = worker.Admitted(), []
    try:
        async for event in stream:
            if event.WhichOneof("event") == "admitted":
                admitted = event.admitted
            tokens += [token.id for token in event.tokens.tokens]
    finally:
        if isinstance(stream, DecodeStream):
            stream.cancel()
    return admitted, tokens
