"""Links over Gloo, for CPUs: private process groups of two ranks, one for each lane of a pair.

Made directly (never init_process_group). What was measured of Gloo and shaped this file: a
timed-out wait kills the group; a receive shorter than the message aborts the process, so sizes are
agreed first; neither abort() nor shutdown() wakes a blocked wait(), so a peer's death in
mid-message is noticed by a pending one-byte receive, the sentinel; a work cannot be polled, so
threads wait; a send writes on the thread that posts it until the socket is full, so that is not the
event loop's.
"""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Awaitable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from workers.core.errors import ConfigError, TransferError
from workers.core.runner import PageStore
from workers.kernels.huge_pages import huge_zeros
from workers.transfer.link import HalfLink, Link
from workers.transfer.operations import Operations
from workers.transfer.rendezvous import Meeting, RendezvousStore
from workers.transfer.threads import CallThread, on_thread

SENTINEL_TAG = 1
FIRST_DATA_TAG = 2
TAGS = 1 << 20
FOREVER = datetime.timedelta(days=20)
POST_BYTES = 1 << 20  # written on the event loop, 0.4 ms at most: 1 MiB went at 0.95, not 0.64 GB/s
GOODBYE = datetime.timedelta(seconds=1)


class GlooTransport:
    """`host` is the address that this worker's sockets bind to and peers connect to. All links
    share one device, that is one listening socket and one thread that moves bytes."""

    name = "gloo"

    def __init__(self, *, host: str, connect_timeout_s: float, chunk_timeout_s: float) -> None:
        """Raises ConfigError where `host` is no address of this machine."""
        self._connect_timeout_s = connect_timeout_s
        self._chunk_timeout_s = chunk_timeout_s
        try:
            self._device = dist.ProcessGroupGloo.create_device(hostname=host)
        except RuntimeError as error:
            raise ConfigError(f"gloo on {host}: {str(error).splitlines()[0]}") from error

    def reaches(self, address: str) -> bool:
        return True

    async def offer(self, side: int, pages: PageStore, num_bytes: int) -> HalfLink:
        try:
            staging = host_staging(num_bytes)
        except (OSError, RuntimeError) as error:  # no memory is left
            raise TransferError(f"gloo: {str(error).splitlines()[0]}") from error
        meeting = Meeting(self.name, partial(self._group, side), self._connect_timeout_s)
        blob = await meeting.blob()
        return _Half(blob, meeting, side, staging, self._chunk_timeout_s)

    def _group(self, side: int, store: RendezvousStore) -> Any:
        options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        options._timeout = datetime.timedelta(seconds=self._connect_timeout_s)
        options._devices = [self._device]
        options._threads = 1  # for collectives, which nobody asks for here
        return dist.ProcessGroupGloo(store, side, 2, options)


def host_staging(num_bytes: int) -> torch.Tensor:
    """uint8 [num_bytes] on the CPU: pinned where pages may lie on a GPU, else in huge pages."""
    if torch.cuda.is_available():
        return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)
    return huge_zeros(num_bytes)


class _Half:
    def __init__(
        self, blob: bytes, meeting: Meeting, side: int, staging: torch.Tensor, timeout_s: float
    ) -> None:
        self.blob = blob
        self.drop = meeting.drop
        self._meeting = meeting
        self._side = side
        self._staging = staging
        self._timeout_s = timeout_s

    async def join(self, peer_blob: bytes) -> Link:
        group = await self._meeting.group(peer_blob)
        return GlooLink(group, 1 - self._side, self._staging, self._timeout_s)


class GlooLink:
    """A peer that dies or says goodbye ends the sentinel, and with it everything pending.

    Threads: the group's own, the sentinel's, and one that waits for operations in their order, in
    which they also end; with a thread for each, every message woke two more.
    """

    posts_first = True
    threads = 3
    fds = 1

    def __init__(self, group: Any, peer: int, staging: torch.Tensor, timeout_s: float) -> None:
        self.staging = staging
        self._group = group
        self._peer = peer
        self._timeout = datetime.timedelta(seconds=timeout_s)
        self._operations = Operations("gloo", timeout_s, self._end)
        self._waiter = CallThread("kvasir-gloo")
        on_thread(_watch, group, peer).add_done_callback(self._watched)

    @property
    def failed(self) -> str | None:
        return self._operations.failed

    def send(self, start: int, num_bytes: int, seq: int) -> Awaitable[None]:
        if num_bytes > POST_BYTES:
            done, chunk = self._operations.begin(), self._chunk(start, num_bytes)
            call = partial(_send, self._group, chunk, self._peer, _tag(seq), self._timeout)
            self._waiter.run(call, partial(self._returned, done))
            return done
        return self._post("send", start, num_bytes, seq)

    def recv(self, start: int, num_bytes: int, seq: int) -> Awaitable[None]:
        return self._post("recv", start, num_bytes, seq)

    def _post(self, what: str, start: int, num_bytes: int, seq: int) -> Awaitable[None]:
        done, chunk = self._operations.begin(), self._chunk(start, num_bytes)
        try:
            work = getattr(self._group, what)(chunk, self._peer, _tag(seq))
        except RuntimeError as error:
            self._operations.fail(_why(error))
            raise self._operations.error() from error
        self._waiter.run(partial(_wait, work, self._timeout), partial(self._returned, done))
        return done

    def _chunk(self, start: int, num_bytes: int) -> list[torch.Tensor]:
        return [self.staging[start : start + num_bytes]]

    def close(self) -> None:
        self._operations.fail("closed")

    def _returned(self, done: asyncio.Future[None], error: str | None) -> None:
        if error is None:
            self._operations.finish(done)
        else:
            self._operations.fail(error)

    def _watched(self, ended: asyncio.Future[str]) -> None:
        self._operations.fail(ended.result())

    def _end(self) -> None:
        """Say goodbye, so that the peer's sentinel ends, and its answer ends ours. A goodbye that
        is not taken in time kills the group, and with it our sentinel and every wait."""
        self._waiter.close()
        on_thread(_goodbye, self._group, self._peer)
        self._group = None  # destroyed where it is last used: on a thread


def _tag(seq: int) -> int:
    return FIRST_DATA_TAG + seq % TAGS


# On threads. They return the error's text: an exception's traceback would keep the group alive.


def _send(
    group: Any, chunk: list[torch.Tensor], peer: int, tag: int, timeout: datetime.timedelta
) -> str | None:
    try:
        group.send(chunk, peer, tag).wait(timeout)
    except RuntimeError as error:
        return _why(error)
    return None


def _wait(work: Any, timeout: datetime.timedelta) -> str | None:
    try:
        work.wait(timeout)
    except RuntimeError as error:
        return _why(error)
    return None


def _watch(group: Any, peer: int) -> str:
    try:
        group.recv([torch.zeros(1, dtype=torch.uint8)], peer, SENTINEL_TAG).wait(FOREVER)
    except RuntimeError as error:
        return f"the peer is gone: {_why(error)}"
    return "the peer closed the pair"


def _goodbye(group: Any, peer: int) -> str | None:
    return _send(group, [torch.zeros(1, dtype=torch.uint8)], peer, SENTINEL_TAG, GOODBYE)


def _why(error: RuntimeError) -> str:
    """Without the place in Gloo's sources and its advice."""
    text = str(error).splitlines()[0]
    return text.rpartition(".cc:")[2].partition("] ")[2].partition(". This is")[0] or text
