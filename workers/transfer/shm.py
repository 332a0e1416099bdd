"""Links between two processes of one host: both map the same staging, so gather and scatter are the
only copies, and a socket says what lies where.

sender                               receiver
offer: memory, listening socket  ->  (the name and a secret, by Connect)
                                 <-  join: connects, says the secret
join: accepts, hands the memory over ->  maps it
"these bytes are there"          ->  recv is done

The socket is an abstract one: it has no file, and whoever dies closes it, which the other notices
at once. It is seen in its network namespace only; a peer in another cannot connect, and the next
transport is tried. Nothing here needs a thread: the event loop wakes sooner by a readable socket
than by another thread's word.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import secrets
import socket
import struct
from collections.abc import Awaitable

import torch
from torch import Tensor

from workers.core.errors import TransferError
from workers.core.runner import PageStore
from workers.transfer.link import SENDER, HalfLink, Link
from workers.transfer.operations import Operations
from workers.transfer.segment import make_memory, map_memory
from workers.transfer.threads import on_thread

SECRET_BYTES = 16
HELLO_S = 1.0  # for who connects to say the secret
SIZE = struct.Struct("<Q")
ARRIVED = struct.Struct("<QQQ")  # seq, start, num_bytes
GOODBYE = b"goodbye"
LONGEST = 64  # bytes of a message


class ShmTransport:
    """`host`: the address that this worker listens at; `device`: where its pages are."""

    name = "shm"

    def __init__(
        self, *, host: str, device: torch.device, connect_timeout_s: float, chunk_timeout_s: float
    ) -> None:
        self._host = host
        self._device = device
        self._connect_timeout_s = connect_timeout_s
        self._chunk_timeout_s = chunk_timeout_s

    def reaches(self, address: str) -> bool:
        """Whether the address is one of this machine's. A name other than our own is taken for
        another machine's: asking for its address may take seconds."""
        host = address.rpartition(":")[0].strip("[]")
        if host in (self._host, "localhost", socket.gethostname()):
            return True
        try:
            family = socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET
        except ValueError:
            return False
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            try:
                probe.bind((host, 0))
            except OSError:
                return False
        return True

    async def offer(self, side: int, pages: PageStore, num_bytes: int) -> HalfLink:
        if side != SENDER:
            return _ReceiverHalf(
                num_bytes, self._device, self._connect_timeout_s, self._chunk_timeout_s
            )
        try:
            return _SenderHalf(
                num_bytes, self._device, self._connect_timeout_s, self._chunk_timeout_s
            )
        except OSError as error:
            raise TransferError(f"shm: {error}") from error


class _SenderHalf:
    def __init__(
        self,
        num_bytes: int,
        device: torch.device,
        connect_timeout_s: float,
        chunk_timeout_s: float,
    ) -> None:
        self._device = device
        name, self._secret = b"\0kvasir-" + secrets.token_hex(8).encode(), _secret()
        self.blob = self._secret + name
        self._num_bytes = num_bytes
        self._connect_timeout_s = connect_timeout_s
        self._chunk_timeout_s = chunk_timeout_s
        self._listener = _socket()
        try:
            self._listener.bind(name)
            self._listener.listen()
            self._memory = make_memory(num_bytes)
        except OSError:
            self._listener.close()
            raise

    async def join(self, peer_blob: bytes) -> Link:
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                memory = os.dup(self._memory)
                staging = await on_thread(map_memory, memory, self._num_bytes, self._device)
                peer = await self._accept()
        except (OSError, TimeoutError) as error:
            raise TransferError(f"shm: nobody came for the memory: {error}") from error
        finally:
            self.drop()
        return ShmLink(peer, staging, self._chunk_timeout_s)

    async def _accept(self) -> socket.socket:
        """The first who knows the secret, with the memory handed over."""
        while True:
            peer, _ = await asyncio.get_running_loop().sock_accept(self._listener)
            with contextlib.ExitStack() as stack:
                stack.callback(peer.close)
                if await self._knows(peer):
                    socket.send_fds(peer, [SIZE.pack(self._num_bytes)], [self._memory])
                    stack.pop_all()
                    return peer

    async def _knows(self, peer: socket.socket) -> bool:
        try:
            async with asyncio.timeout(HELLO_S):
                said = await asyncio.get_running_loop().sock_recv(peer, LONGEST)
        except (OSError, TimeoutError):
            return False
        return secrets.compare_digest(said, self._secret)

    def drop(self) -> None:
        self._listener.close()
        if self._memory >= 0:
            os.close(self._memory)
            self._memory = -1


class _ReceiverHalf:
    def __init__(
        self,
        num_bytes: int,
        device: torch.device,
        connect_timeout_s: float,
        chunk_timeout_s: float,
    ) -> None:
        self._device = device
        self.blob = b"shm"  # a receiver has nothing to say before it connects
        self._num_bytes = num_bytes
        self._connect_timeout_s = connect_timeout_s
        self._chunk_timeout_s = chunk_timeout_s

    async def join(self, peer_blob: bytes) -> Link:
        with contextlib.ExitStack() as stack:
            peer = _socket()
            stack.callback(peer.close)
            try:
                async with asyncio.timeout(self._connect_timeout_s):
                    staging = await self._staging(peer, peer_blob)
            except (OSError, TimeoutError) as error:
                raise TransferError(f"shm: the sender is not on this host: {error}") from error
            stack.pop_all()
        return ShmLink(peer, staging, self._chunk_timeout_s)

    async def _staging(self, peer: socket.socket, blob: bytes) -> Tensor:
        """What the sender hands over, never more than offered. Raises OSError, TransferError."""
        loop = asyncio.get_running_loop()
        await loop.sock_connect(peer, blob[SECRET_BYTES:])
        await loop.sock_sendall(peer, blob[:SECRET_BYTES])
        await _readable(peer)
        said, fds, _, _ = socket.recv_fds(peer, SIZE.size, 1, socket.MSG_CMSG_CLOEXEC)
        num_bytes = SIZE.unpack(said)[0] if len(said) == SIZE.size else 0
        if len(fds) != 1 or not 0 < num_bytes <= self._num_bytes:
            for fd in fds:
                os.close(fd)
            raise TransferError(f"shm: the sender handed over {num_bytes} bytes")
        return await on_thread(map_memory, fds[0], num_bytes, self._device)

    def drop(self) -> None:
        """Nothing is held before join()."""


class ShmLink:
    """Holds the socket and, beneath the mapping, a second handle of its memory."""

    posts_first = True
    threads = 0
    fds = 2

    def __init__(self, peer: socket.socket, staging: Tensor, timeout_s: float) -> None:
        self.staging = staging
        self._peer = peer
        self._operations = Operations("shm", timeout_s, self._end)
        self._expected: dict[int, tuple[int, int, asyncio.Future[None]]] = {}
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(peer, self._read)

    @property
    def failed(self) -> str | None:
        return self._operations.failed

    def send(self, start: int, num_bytes: int, seq: int) -> Awaitable[None]:
        done = self._operations.begin()
        try:
            self._peer.send(ARRIVED.pack(seq, start, num_bytes))
        except OSError as error:  # a full socket too: it has room for hundreds of slots
            self._operations.fail(f"the peer does not listen: {error}")
        else:
            self._operations.finish(done)
        return done

    def recv(self, start: int, num_bytes: int, seq: int) -> Awaitable[None]:
        done = self._operations.begin()
        self._expected[seq] = (start, num_bytes, done)
        return done

    def close(self) -> None:
        self._operations.fail("closed")

    def _read(self) -> None:
        while self.failed is None:
            try:
                said = self._peer.recv(LONGEST)
            except BlockingIOError:
                return
            except OSError as error:
                self._operations.fail(f"the peer is gone: {error}")
                return
            self._heard(said)

    def _heard(self, said: bytes) -> None:
        if said == GOODBYE:
            self._operations.fail("the peer closed the pair")
        elif len(said) != ARRIVED.size:
            self._operations.fail("the peer is gone")
        else:
            seq, start, num_bytes = ARRIVED.unpack(said)
            expected = self._expected.pop(seq, None)
            if expected is None or expected[:2] != (start, num_bytes):
                what = f"{num_bytes} bytes at {start} as {seq}, which nobody waits for"
                self._operations.fail(f"the peer sent {what}")
            else:
                self._operations.finish(expected[2])

    def _end(self) -> None:
        self._expected.clear()
        self._loop.remove_reader(self._peer)
        with contextlib.suppress(OSError):
            self._peer.send(GOODBYE)
        self._peer.close()


def _secret() -> bytes:
    return secrets.token_bytes(SECRET_BYTES)


def _socket() -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    made.setblocking(False)
    return made


async def _readable(peer: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(peer, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(peer)
