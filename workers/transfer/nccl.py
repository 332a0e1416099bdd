"""Links over NCCL, between GPUs: private communicators of two ranks, one for each lane of a pair.

Order is the contract (NCCL knows no tags), so operations are posted by one thread, when both sides
may. Read in torch 2.13, and not run on two GPUs yet:

* A communicator is initialised eagerly and without blocking (config.blocking = 0): the constructor
  returns, and _is_initialized() is polled with our deadline. Rank 0 puts one entry into the store,
  the unique id; rank 1 puts none.
* send() and recv() block while the first of them connects the two GPUs, at most
  TORCH_NCCL_NONBLOCKING_TIMEOUT seconds: so they are called on a thread.
* The work's wait() makes the current stream wait, nothing else; the host polls an event.
* Only we abort, after the link is marked as failed: see workers/parallel/nccl.py.
* abort() ends kernels that wait for the peer, and may block itself: it has a thread.
"""

from __future__ import annotations

import asyncio
import datetime
import os
from collections.abc import Awaitable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from workers.core.errors import TransferError
from workers.core.runner import PageStore
from workers.parallel.nccl import calm_watchdog
from workers.transfer.link import SENDER, HalfLink, Link
from workers.transfer.operations import Operations
from workers.transfer.rendezvous import Meeting, RendezvousStore
from workers.transfer.threads import CallThread, on_thread

MAX_CTAS = 4  # of a copy: a transfer takes little from the forward
POLL_S = 0.0005


class NcclTransport:
    """Whether a peer has CUDA too is found out by asking it."""

    name = "nccl"

    def __init__(
        self, *, device: torch.device, connect_timeout_s: float, chunk_timeout_s: float
    ) -> None:
        self._device = device
        self._connect_timeout_s = connect_timeout_s
        self._chunk_timeout_s = chunk_timeout_s
        calm_watchdog()
        # Read by the library once, for the whole process; there is no option for it either.
        connect_s = str(max(round(connect_timeout_s), 1))
        os.environ.setdefault("TORCH_NCCL_NONBLOCKING_TIMEOUT", connect_s)

    def reaches(self, address: str) -> bool:
        return True

    async def offer(self, side: int, pages: PageStore, num_bytes: int) -> HalfLink:
        """Staging lies on the device of the pages."""
        try:
            staging = pages.new_staging(num_bytes)
        except RuntimeError as error:  # no memory is left there
            raise TransferError(f"nccl: {str(error).splitlines()[0]}") from error
        meeting = Meeting(self.name, partial(self._group, side), self._connect_timeout_s)
        blob = await meeting.blob() if side == SENDER else b"nccl"
        return _Half(blob, meeting, side, staging, self._connect_timeout_s, self._chunk_timeout_s)

    def _group(self, side: int, store: RendezvousStore) -> Any:
        return make_group(store, side, 2, self._device, self._chunk_timeout_s)


def make_group(store: Any, rank: int, size: int, device: torch.device, timeout_s: float) -> Any:
    """The communicator may still be connecting: see _is_initialized(). Raises RuntimeError."""
    options = dist.ProcessGroupNCCL.Options(is_high_priority_stream=True)
    options._timeout = datetime.timedelta(seconds=timeout_s)
    options.config.blocking = 0
    options.config.max_ctas = MAX_CTAS
    group = dist.ProcessGroupNCCL(store, rank, size, options)
    group._set_sequence_number_for_group()
    group.eager_connect_single_device(device)
    return group


class _Half:
    def __init__(
        self,
        blob: bytes,
        meeting: Meeting,
        side: int,
        staging: torch.Tensor,
        connect_timeout_s: float,
        chunk_timeout_s: float,
    ) -> None:
        self.blob = blob
        self.drop = meeting.drop
        self._meeting = meeting
        self._side = side
        self._staging = staging
        self._connect_timeout_s = connect_timeout_s
        self._chunk_timeout_s = chunk_timeout_s

    async def join(self, peer_blob: bytes) -> Link:
        group = await self._meeting.group(peer_blob)
        link = NcclLink(group, 1 - self._side, self._staging, self._chunk_timeout_s)
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                while not group._is_initialized():  # noqa: ASYNC110 - nobody tells us
                    await asyncio.sleep(POLL_S)
        except (RuntimeError, TimeoutError) as error:
            link.close()
            raise TransferError(f"nccl: no pair: {error}") from error
        except asyncio.CancelledError:
            link.close()
            raise
        return link


class NcclLink:
    """Threads: the poster, the group's watchdog and its monitor, NCCL's proxy and its service; how
    many there are and how many sockets NCCL opens has not been measured."""

    posts_first = False
    threads = 5
    fds = 8

    def __init__(self, group: Any, peer: int, staging: torch.Tensor, timeout_s: float) -> None:
        self.staging = staging
        self._group = group
        self._peer = peer
        self._stream = torch.cuda.Stream(staging.device)
        # A step that runs may still use the memory that staging was given.
        self._stream.wait_stream(torch.cuda.default_stream(staging.device))
        self._operations = Operations("nccl", timeout_s, self._end)
        self._poster = CallThread("kvasir-nccl")

    @property
    def failed(self) -> str | None:
        return self._operations.failed

    def send(self, start: int, num_bytes: int, seq: int) -> Awaitable[None]:
        return self._post("send", start, num_bytes)

    def recv(self, start: int, num_bytes: int, seq: int) -> Awaitable[None]:
        return self._post("recv", start, num_bytes)

    def _post(self, what: str, start: int, num_bytes: int) -> Awaitable[None]:
        done = self._operations.begin()
        chunk = self.staging[start : start + num_bytes]
        post = getattr(self._group, what)
        call = partial(_post, post, chunk, self._peer, self._stream)
        self._poster.run(call, partial(self._posted, done))
        return done

    def _posted(self, done: asyncio.Future[None], posted: torch.cuda.Event | str) -> None:
        if isinstance(posted, str):
            self._operations.fail(posted)
        else:
            self._poll(done, posted)

    def _poll(self, done: asyncio.Future[None], event: torch.cuda.Event) -> None:
        """An aborted operation counts as over on the device: `failed` is looked at first."""
        if self.failed is not None:
            return
        if event.query():
            self._operations.finish(done)
        else:
            asyncio.get_running_loop().call_later(POLL_S, self._poll, done, event)

    def close(self) -> None:
        self._operations.fail("closed")

    def _end(self) -> None:
        self._poster.close()
        on_thread(_abort, self._group, self.staging)
        self._group = None


def _post(
    post: Any, chunk: torch.Tensor, peer: int, stream: torch.cuda.Stream
) -> torch.cuda.Event | str:
    """Queue it behind nothing but what was posted before. The event is over when it is, or why it
    could not be posted."""
    try:
        with torch.cuda.device(chunk.device), torch.cuda.stream(stream):
            post([chunk], peer, 0).wait()
            return stream.record_event()
    except RuntimeError as error:
        return str(error).splitlines()[0]


def _abort(group: Any, staging: torch.Tensor) -> str | None:
    """Frees kernels that wait for a peer, and a stuck peer too. `staging` lives until then."""
    try:
        group.abort()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return None
