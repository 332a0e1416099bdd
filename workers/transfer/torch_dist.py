"""Links over torch.distributed: private process groups of two ranks, Gloo on CPUs, NCCL on GPUs.

Made directly (never init_process_group), one for each pair generation. What was measured of Gloo
and shaped this file: a timed-out wait kills the group; a receive shorter than the message aborts
the process, so sizes are agreed first; neither abort() nor shutdown() wakes a blocked wait(), so a
peer's death in mid-message is noticed by a pending one-byte receive, the sentinel.
"""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Awaitable
from typing import Any

import torch
import torch.distributed as dist

from workers.core.errors import ConfigError, TransferError
from workers.transfer.link import HalfLink, Link, Transport
from workers.transfer.rendezvous import RendezvousStore
from workers.transfer.threads import on_thread

SENTINEL_TAG = 1
FIRST_DATA_TAG = 2
TAGS = 1 << 20
FOREVER = datetime.timedelta(days=20)
GOODBYE_S = 1.0
POLL_S = 0.0005


def seconds(value: float) -> datetime.timedelta:
    return datetime.timedelta(seconds=value)


class GlooTransport:
    """`host` is the address that this worker's sockets bind to and peers connect to."""

    name = "gloo"

    def __init__(self, *, host: str, connect_timeout_s: float, chunk_timeout_s: float) -> None:
        self.host = host
        self.connect_timeout_s = connect_timeout_s
        self.chunk_timeout_s = chunk_timeout_s

    async def offer(self, rank: int, staging: torch.Tensor) -> HalfLink:
        return await _begin(self, rank, staging, self.connect_timeout_s)

    def group(self, store: RendezvousStore, rank: int) -> Any:
        options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        options._timeout = seconds(self.connect_timeout_s)
        options._devices = [dist.ProcessGroupGloo.create_device(hostname=self.host)]
        return dist.ProcessGroupGloo(store, rank, 2, options)

    def link(self, group: Any, rank: int, staging: torch.Tensor) -> Link:
        return GlooLink(group, 1 - rank, staging, self.chunk_timeout_s)


class NcclTransport:
    """Nonblocking initialisation and few CTAs, so that a transfer takes little from the forward."""

    name = "nccl"

    def __init__(
        self, *, device: torch.device, connect_timeout_s: float, chunk_timeout_s: float
    ) -> None:
        self.device = device
        self.connect_timeout_s = connect_timeout_s
        self.chunk_timeout_s = chunk_timeout_s

    async def offer(self, rank: int, staging: torch.Tensor) -> HalfLink:
        return await _begin(self, rank, staging, self.connect_timeout_s)

    def group(self, store: RendezvousStore, rank: int) -> Any:
        options = dist.ProcessGroupNCCL.Options(is_high_priority_stream=True)
        options._timeout = seconds(self.connect_timeout_s)
        options.config.blocking = 0
        options.config.max_ctas = 4
        group = dist.ProcessGroupNCCL(store, rank, 2, options)
        group._set_sequence_number_for_group()
        group.eager_connect_single_device(self.device)
        return group

    def link(self, group: Any, rank: int, staging: torch.Tensor) -> Link:
        return NcclLink(group, 1 - rank, staging, self.device, self.chunk_timeout_s)


def pick_transport(
    backend: str, *, host: str, connect_timeout_s: float, chunk_timeout_s: float
) -> Transport | None:
    """`auto` is nccl where CUDA is, else gloo; `inline` is None: blocks go inside gRPC. Raises
    ConfigError where it cannot be had."""
    if backend == "inline":
        return None
    if backend == "nccl" and not torch.cuda.is_available():
        raise ConfigError("transport.backend is nccl, but there is no CUDA device here")
    if backend == "nccl" or (backend == "auto" and torch.cuda.is_available()):
        device = torch.device("cuda", torch.cuda.current_device())
        return NcclTransport(
            device=device, connect_timeout_s=connect_timeout_s, chunk_timeout_s=chunk_timeout_s
        )
    return GlooTransport(
        host=host, connect_timeout_s=connect_timeout_s, chunk_timeout_s=chunk_timeout_s
    )


async def _begin(
    transport: GlooTransport | NcclTransport, rank: int, staging: torch.Tensor, timeout_s: float
) -> HalfLink:
    """Start the group's constructor on a thread; it publishes our blob and then waits there for the
    peer's."""
    loop = asyncio.get_running_loop()
    published: asyncio.Future[bytes] = loop.create_future()

    def settle(blob: bytes) -> None:
        if not published.done():
            published.set_result(blob)

    def publish(blob: bytes) -> None:
        loop.call_soon_threadsafe(settle, blob)

    store = RendezvousStore(rank, publish, timeout_s)
    made = on_thread(transport.group, store, rank)
    first: set[asyncio.Future[Any]] = {published, made}
    await asyncio.wait(first, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    if not published.done():
        error = made.exception() if made.done() else "it published nothing"
        raise TransferError(f"{transport.name}: no rendezvous: {error}")
    return _Half(published.result(), store, made, transport, rank, staging)


class _Half:
    def __init__(
        self,
        blob: bytes,
        store: RendezvousStore,
        made: asyncio.Future[Any],
        transport: GlooTransport | NcclTransport,
        rank: int,
        staging: torch.Tensor,
    ) -> None:
        self.blob = blob
        self._store = store
        self._made = made
        self._transport = transport
        self._rank = rank
        self._staging = staging

    async def join(self, peer_blob: bytes) -> Link:
        self._store.inject(peer_blob)
        try:
            async with asyncio.timeout(self._transport.connect_timeout_s):
                group = await self._made
        except (RuntimeError, ValueError, TimeoutError) as error:
            raise TransferError(f"{self._transport.name}: no pair: {error}") from error
        return self._transport.link(group, self._rank, self._staging)


class GlooLink:
    """Receives are posted at once; each wait has its own daemon thread, because Gloo's work cannot
    be polled. A peer that dies or says goodbye ends the sentinel, and with it everything pending.
    """

    def __init__(self, group: Any, peer: int, staging: torch.Tensor, timeout_s: float) -> None:
        self.staging = staging
        self._group = group
        self._peer = peer
        self._timeout = seconds(timeout_s)
        self._closing = False
        self._gone: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        watch = on_thread(self._watch, group, peer)
        watch.add_done_callback(lambda done: self._lost(done.result()))

    @property
    def failed(self) -> str | None:
        return self._gone.result() if self._gone.done() else None

    def send(self, num_bytes: int, seq: int) -> Awaitable[None]:
        return self._post(self._group.send if self.failed is None else None, num_bytes, seq)

    def recv(self, num_bytes: int, seq: int) -> Awaitable[None]:
        return self._post(self._group.recv if self.failed is None else None, num_bytes, seq)

    def _post(self, post: Any, num_bytes: int, seq: int) -> Awaitable[None]:
        if post is None:
            raise TransferError(f"gloo: {self.failed}")
        try:
            work = post([self.staging[:num_bytes]], self._peer, FIRST_DATA_TAG + seq % TAGS)
        except RuntimeError as error:
            self._lost(str(error))
            raise TransferError(f"gloo: {error}") from error
        return self._finish(on_thread(_wait, work, self._timeout))

    async def _finish(self, waited: asyncio.Future[None]) -> None:
        either: set[asyncio.Future[Any]] = {waited, self._gone}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not waited.done():
            raise TransferError(f"gloo: {self.failed}")
        error = waited.exception()
        if error is not None:
            self._lost(str(error))
            raise TransferError(f"gloo: {error}") from error

    def _lost(self, why: str) -> None:
        if not self._gone.done():
            self._gone.set_result(why)
        if not self._closing:
            self.close()

    def close(self) -> None:
        """Say goodbye, so that the peer's sentinel ends, and its answer ends ours."""
        if self._closing:
            return
        self._closing = True
        if not self._gone.done():
            self._gone.set_result("closed")
        on_thread(_goodbye, self._group, self._peer).add_done_callback(_ignore_error)

    @staticmethod
    def _watch(group: Any, peer: int) -> str:
        try:
            group.recv([torch.zeros(1, dtype=torch.uint8)], peer, SENTINEL_TAG).wait(FOREVER)
        except RuntimeError as error:
            return f"the peer is gone: {str(error).splitlines()[0]}"
        return "the peer closed the pair"


def _wait(work: Any, timeout: datetime.timedelta) -> None:
    work.wait(timeout)


def _goodbye(group: Any, peer: int) -> None:
    group.send([torch.zeros(1, dtype=torch.uint8)], peer, SENTINEL_TAG).wait(seconds(GOODBYE_S))


def _ignore_error(done: asyncio.Future[None]) -> None:
    """A goodbye to the dead fails, and nothing follows from that."""
    if not done.cancelled():
        done.exception()


class NcclLink:
    """Order is the contract (NCCL knows no tags); completion is an event that is polled, with a
    deadline of ours, because the library's own would take the process down."""

    def __init__(
        self,
        group: Any,
        peer: int,
        staging: torch.Tensor,
        device: torch.device,
        timeout_s: float,
    ) -> None:
        self.staging = staging
        self._group = group
        self._peer = peer
        self._timeout_s = timeout_s
        self._stream = torch.cuda.Stream(device)
        self._failed: str | None = None

    @property
    def failed(self) -> str | None:
        return self._failed

    def send(self, num_bytes: int, seq: int) -> Awaitable[None]:
        return self._post(self._group.send, num_bytes)

    def recv(self, num_bytes: int, seq: int) -> Awaitable[None]:
        return self._post(self._group.recv, num_bytes)

    def _post(self, post: Any, num_bytes: int) -> Awaitable[None]:
        if self._failed is not None:
            raise TransferError(f"nccl: {self._failed}")
        # The staging was gathered, or will be scattered, on the default stream.
        self._stream.wait_stream(torch.cuda.default_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            post([self.staging[:num_bytes]], self._peer, 0).wait()
            done = torch.cuda.Event()
            done.record(self._stream)
        return self._finish(done)

    async def _finish(self, done: torch.cuda.Event) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                while not done.query():
                    if self._failed is not None:
                        raise TransferError(f"nccl: {self._failed}")
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            self._failed = f"no answer within {self._timeout_s:.0f} s"
            self.close()
            raise TransferError(f"nccl: {self._failed}") from None

    def close(self) -> None:
        """Abort frees a stuck peer too; it may block, so it has a thread of its own."""
        if self._failed is None:
            self._failed = "closed"
        on_thread(self._group.abort).add_done_callback(_ignore_error)
