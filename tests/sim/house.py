"""A prefill and some decode workers in one process and in virtual time, on simulated runners."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from workers.config import TransportConfig
from workers.core.batch import Batch
from workers.core.clock import VirtualClock
from workers.core.errors import KvasirError
from workers.core.request import Request, SamplingParams
from workers.core.sim_runner import SimRunner, sim_next_token
from workers.core.span import whole
from workers.core.waits import Offload
from workers.engine import Engine
from workers.transfer.memory import MemoryFabric
from workers.transfer.port import LocalPort, Ports
from workers.transfer.receiver_pairs import Peer
from workers.wire import common_pb2 as common
from workers.wire import worker_pb2 as worker
from workers.worker import Worker

BLOCK = 4
VOCAB = 1000


class SlowThreads:
    """An Offload like real threads: a copy may begin late, and cancelling its waiter does not stop
    it. Pages or staging given away too early would be seen."""

    def __init__(self) -> None:
        self._delays = itertools.cycle((0.0, 0.03, 0.001, 0.2))

    def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        async def run() -> Any:
            await asyncio.sleep(next(self._delays))
            return function(*args)

        return asyncio.shield(asyncio.ensure_future(run()))


class House:
    """`workers` by address. `staging_blocks`: over all slots of a pair."""

    def __init__(
        self,
        *,
        blocks: int = 64,
        ttl_s: float = 10.0,
        staging_blocks: int = 4,
        inline_bytes: int = 0,
        overlap: bool = False,
        offload: Callable[[], Offload] = SlowThreads,
        step_seconds: Callable[[Batch], float] = lambda batch: 0.001 * batch.num_tokens,
    ) -> None:
        self.fabric = MemoryFabric(delay_s=0.002)
        self.workers: dict[str, Worker] = {}
        self.peers: dict[str, Peer] = {}  # that are no workers of this house
        self.blocks = blocks
        self.ttl_s = ttl_s
        self.staging_blocks = staging_blocks
        self.inline_bytes = inline_bytes
        self.overlap = overlap
        self.offload = offload
        self.step_seconds = step_seconds
        self.tasks: asyncio.TaskGroup | None = None
        self._running: dict[str, asyncio.Task[None]] = {}

    def start(self, name: str, role: common.Role, *, incarnation: str = "1") -> Worker:
        runner = SimRunner(
            num_blocks=self.blocks,
            block_size=BLOCK,
            vocab_size=VOCAB,
            step_seconds=self.step_seconds,
        )
        engine = Engine(
            runner,
            block_size=BLOCK,
            step_tokens=16,
            max_seqs=8,
            clock=VirtualClock(),
            overlap=self.overlap,
        )
        offload = self.offload()
        port = LocalPort(runner.pages, whole(1), [self.fabric], offload)
        made = Worker(
            engine,
            common.ReplicaRef(id=name, incarnation=incarnation, address=name),
            role,
            peer_at=self._peer_at,
            ports=Ports(((port,),), 1, runner.pages.block_bytes),
            transports=[self.fabric],
            config=TransportConfig(
                staging_bytes=self.staging_blocks * runner.pages.block_bytes,
                inline_bytes=self.inline_bytes,
                checksums=True,
            ),
            ttl_s=self.ttl_s,
            offload=offload,
        )
        self.workers[name] = made
        assert self.tasks is not None
        self._running[name] = self.tasks.create_task(made.run())
        return made

    def _peer_at(self, address: str) -> Peer:
        return self.peers.get(address) or SimPeer(self.workers[address])

    def check_idle(self) -> None:
        """Nothing runs, nothing is pinned, no ticket is open."""
        for made in self.workers.values():
            made.check_integrity()
            assert made.num_busy == 0, f"{made.me.id} is busy: {made.tickets()}"
            assert made.engine.pool.num_referenced == 0, made.me.id

    @asynccontextmanager
    async def open(self) -> AsyncIterator[House]:
        async with asyncio.TaskGroup() as tasks:
            self.tasks = tasks
            yield self
            for task in self._running.values():
                task.cancel()


class SimPeer:
    """A worker as its peers see it. Like a socket, it pulls the stream whether or not anybody
    reads, and leaving the stream cancels the other side."""

    def __init__(self, made: Worker) -> None:
        self._made = made

    async def connect(self, message: worker.ConnectRequest) -> worker.ConnectResponse:
        return await self._made.desk.connect(message)

    async def fetch(
        self, requests: AsyncIterator[worker.FetchRequest]
    ) -> AsyncIterator[worker.FetchResponse]:
        inbox: asyncio.Queue[worker.FetchResponse | KvasirError | None] = asyncio.Queue()

        async def pump() -> None:
            stream = self._made.desk.fetch(requests)
            try:
                async for response in stream:
                    inbox.put_nowait(response)
                inbox.put_nowait(None)
            except KvasirError as error:
                inbox.put_nowait(error)
            finally:
                await stream.aclose()  # type: ignore[attr-defined]

        task = asyncio.create_task(pump())
        try:
            while (item := await inbox.get()) is not None:
                if isinstance(item, KvasirError):
                    raise item
                yield item
        finally:
            task.cancel()
            await asyncio.wait({task})


def request(name: str, prompt: list[int], max_tokens: int) -> Request:
    sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens)
    return Request(name, tuple(prompt), len(prompt), sampling)


def expected(prompt: list[int], max_tokens: int) -> list[int]:
    """What decoding without any handoff gives."""
    tokens = list(prompt)
    for _ in range(max_tokens):
        tokens.append(sim_next_token(tokens, VOCAB))
    return tokens[len(prompt) :]
