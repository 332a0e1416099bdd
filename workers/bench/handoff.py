"""What the handoff costs between real worker processes: the protocol, the overlap, and what it
takes to get over a death."""

from __future__ import annotations

import asyncio
import random
import signal
import statistics
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from workers.bench.engine import Row
from workers.bench.processes import BenchWorker, workers
from workers.core.clock import Clock, SystemClock
from workers.core.request import Request, SamplingParams
from workers.wire import common_pb2 as common
from workers.wire import worker_pb2 as worker
from workers.wire.codec import request_to_wire
from workers.wire.decode_client import DecodeFailed, DecodeStream

ONE_BLOCK = 16  # tokens
TIMES = 40
OVERLAPS = 3
CHUNKS = 8
VOCABULARY = 1000  # of token ids that any model has
ENGINE = {"kv_tokens": 16384, "threads": 1}
# Many small chunks: so long a transfer can be interrupted.
SLOW = {"backend": "gloo", "staging_bytes": 1, "inline_bytes": 0}
SLOW_TOKENS = 1800
PROMPT_S = 300.0
OVERHEAD_MS, RECLAIM_S, NOTICE_S, RESTART_S = 5.0, 1.0, 3.0, 5.0
BEST_OVERLAP = 100 * (CHUNKS - 1) / CHUNKS  # %: the last chunk's blocks cannot go before it is over


@dataclass
class Handed:
    """One request from its ticket on. Seconds of the clock."""

    admitted: worker.Admitted
    first_s: float  # from the call to the first decoded token
    step_s: float  # between two tokens, the median


class Handoffs:
    """`model`: a checkpoint. Logs go to `folder`."""

    def __init__(self, folder: Path, model: str) -> None:
        self._folder = folder
        self._model = model
        self._clock: Clock = SystemClock()
        self._random = random.Random(0)

    async def protocol(self, socket_rate: float) -> AsyncIterator[Row]:
        """From ticket to first decoded token for a prompt of one block, beside what the bytes take
        at `socket_rate` (bytes a second) and the step that decodes the token."""
        roles = {"p": {"role": "prefill"}, "d": {"role": "decode"}}
        for role in roles.values():
            role["engine"] = ENGINE  # type: ignore[assignment]
        async with workers(self._folder, self._model, **roles) as up:
            await self._hand_over(up["p"], up["d"], ONE_BLOCK, 8)
            handed = [await self._hand_over(up["p"], up["d"], ONE_BLOCK, 8) for _ in range(TIMES)]
        first = statistics.median(each.first_s for each in handed) * 1e3
        step = statistics.median(each.step_s for each in handed) * 1e3
        wire = handed[0].admitted.fetched_bytes / socket_rate * 1e3
        overhead = first - step - wire
        way = handed[0].admitted.transport
        yield Row(f"ticket/first_token/{way}", first, "ms p50", step + wire, (step + wire) / first)
        yield Row("ticket/overhead", overhead, "ms p50", OVERHEAD_MS, OVERHEAD_MS / overhead)

    async def overlap(self, tokens: int) -> AsyncIterator[Row]:
        """The share of a transfer that is over before the prompt is: how long the blocks of a
        prompt of eight steps take when fetched after it, and what is left of that when fetched
        with it."""
        engine = {"kv_tokens": 4 * tokens, "threads": 1, "step_tokens": tokens // CHUNKS}
        common = {"engine": engine, "ticket_ttl_s": PROMPT_S}  # nobody renews here
        roles = {"p": common | {"role": "prefill"}, "d": common | {"role": "decode"}}
        async with workers(self._folder, self._model, **roles) as up:
            p, d = up["p"], up["d"]
            await self._hand_over(p, d, tokens, 2)
            late = [await self._hand_over(p, d, tokens, 2) for _ in range(OVERLAPS)]
            early = [await self._hand_over(p, d, tokens, 2, early=True) for _ in range(OVERLAPS)]
        whole = statistics.median(each.admitted.transfer_s for each in late)
        left = statistics.median(each.admitted.exposed_s for each in early)
        hidden = 100 * (1 - left / whole)
        rate = late[0].admitted.fetched_bytes / whole / 1e9
        yield Row("overlap/late", whole * 1e3, "ms", None, None)
        yield Row("overlap/late/rate", rate, "GB/s", None, None)
        yield Row("overlap/early/exposed", left * 1e3, "ms", None, None)
        yield Row("overlap/hidden", hidden, "% hidden", BEST_OVERLAP, hidden / BEST_OVERLAP)

    async def deaths(self) -> AsyncIterator[Row]:
        """Seconds, beside the most that is allowed."""
        role = {"engine": ENGINE, "transport": SLOW}
        p, d = role | {"role": "prefill"}, role | {"role": "decode"}
        async with workers(self._folder, self._model, p=p, a=d, b=d, c=d) as up:
            yield await self._cancelled(up["p"], up["a"])
            yield await self._bound_again(up["p"], up["a"], up["b"])
            yield await self._given_up(up["p"], up["b"])
            yield (await self._noticed("stopped", signal.SIGSTOP, up["p"], up["c"]))[0]
            up["p"].kill(signal.SIGCONT)
            for row in await self._noticed("killed", signal.SIGKILL, up["p"], up["c"]):
                yield row
            async with workers(self._folder, self._model, p=p | {"port": up["p"].port}) as again:
                yield await self._works_again(again["p"], up["c"])

    async def _cancelled(self, p: BenchWorker, d: BenchWorker) -> Row:
        """A client that leaves in mid-transfer: until the pages of both sides are back."""
        _, ticket, call = await self._in_transfer(p, d)
        began = self._clock.now()
        call.cancel()
        await p.stub.Release(worker.ReleaseRequest(ticket_id=ticket.id, epoch=1))
        await asyncio.gather(p.idle(), d.idle())
        return _within("reclaim/cancelled", self._clock.now() - began, RECLAIM_S)

    async def _bound_again(self, p: BenchWorker, a: BenchWorker, b: BenchWorker) -> Row:
        """From the known death of a decode worker in mid-transfer to the next token of another,
        beside a binding that nothing disturbs."""
        undisturbed = await self._hand_over(p, b, SLOW_TOKENS, 2)
        request, ticket, call = await self._in_transfer(p, a)
        a.kill()
        await _ended(call)
        again = await self._decoded(b, request, ticket, 2)
        limit = undisturbed.first_s
        return Row("rebind/decode_killed", again.first_s, "s", limit, limit / again.first_s)

    async def _given_up(self, p: BenchWorker, d: BenchWorker) -> Row:
        """From the known death of a decode worker in mid-transfer to the sender's pages."""
        _, ticket, call = await self._in_transfer(p, d)
        d.kill()
        await _ended(call)
        began = self._clock.now()
        await p.stub.Release(worker.ReleaseRequest(ticket_id=ticket.id, epoch=1))
        await p.idle()
        return _within("reclaim/decode_killed", self._clock.now() - began, RECLAIM_S)

    async def _noticed(
        self, what: str, number: signal.Signals, p: BenchWorker, d: BenchWorker
    ) -> list[Row]:
        """Until the decode worker gives up on a prefill worker, and from then to its pages."""
        _, _, call = await self._in_transfer(p, d)
        began = self._clock.now()
        p.kill(number)
        await _ended(call)
        known = self._clock.now()
        await d.idle()
        return [
            _within(f"notice/prefill_{what}", known - began, NOTICE_S),
            _within(f"reclaim/prefill_{what}", self._clock.now() - known, RECLAIM_S),
        ]

    async def _works_again(self, p: BenchWorker, d: BenchWorker) -> Row:
        """From the first answer of the restarted worker to blocks through a new pair."""
        began = self._clock.now()
        while True:
            handed = await self._hand_over(p, d, 4 * ONE_BLOCK, 2)
            if handed.admitted.transport == SLOW["backend"]:
                return _within("restart/pair", self._clock.now() - began, RESTART_S)

    async def _in_transfer(
        self, p: BenchWorker, d: BenchWorker
    ) -> tuple[worker.SequenceSpec, common.Ticket, DecodeStream]:
        request, ticket = await self._prefilled(p, SLOW_TOKENS, 2)
        call = d.decode(worker.DecodeRequest(sequence=request, ticket=ticket, epoch=1))
        while True:
            found = (await p.stub.Tickets(worker.TicketsRequest())).tickets
            if any(each.id == ticket.id and each.state == "fetching" for each in found):
                return request, ticket, call

    async def _hand_over(
        self, p: BenchWorker, d: BenchWorker, tokens: int, more: int, *, early: bool = False
    ) -> Handed:
        if not early:
            request, ticket = await self._prefilled(p, tokens, more)
            return await self._decoded(d, request, ticket, 1)
        request = self._request(tokens, more)
        stream = aiter(p.stub.Prefill(worker.PrefillRequest(sequence=request)))
        ticket = (await anext(stream)).opened.ticket
        handed, _ = await asyncio.gather(self._decoded(d, request, ticket, 1), _drain(stream))
        return handed

    async def _prefilled(
        self, p: BenchWorker, tokens: int, more: int
    ) -> tuple[worker.SequenceSpec, common.Ticket]:
        """Its ticket, and the request with its first token."""
        request = self._request(tokens, more)
        ticket = common.Ticket()
        async for event in p.stub.Prefill(worker.PrefillRequest(sequence=request)):
            if event.HasField("opened"):
                ticket = event.opened.ticket
            if event.HasField("first_token"):
                request.token_ids.append(event.first_token.token.id)
        return request, ticket

    async def _decoded(
        self, d: BenchWorker, request: worker.SequenceSpec, ticket: common.Ticket, epoch: int
    ) -> Handed:
        message = worker.DecodeRequest(sequence=request, ticket=ticket, epoch=epoch)
        admitted, came, began = worker.Admitted(), [], self._clock.now()
        async for event in d.decode(message):
            if event.HasField("admitted"):
                admitted = event.admitted
            if event.HasField("tokens"):
                came.append(self._clock.now())
        gaps = [after - before for before, after in pairwise(came)]
        return Handed(admitted, came[0] - began, statistics.median(gaps) if gaps else 0.0)

    def _request(self, tokens: int, more: int) -> worker.SequenceSpec:
        """A prompt that nobody caches."""
        prompt = tuple(self._random.choices(range(2, VOCABULARY), k=tokens))
        params = SamplingParams(temperature=0.0, max_tokens=1 + more, ignore_eos=True)
        name = f"bench-{self._random.getrandbits(48):x}"
        return request_to_wire(Request(name, prompt, len(prompt), params))


async def _ended(call: DecodeStream) -> None:
    """Reads a call that somebody's death will end."""
    with suppress(DecodeFailed):
        while await call.read() is not None:
            pass


async def _drain(stream: Any) -> None:
    async for _ in stream:
        pass


def _within(name: str, seconds: float, most: float) -> Row:
    return Row(name, seconds, "s", most, most / seconds)
