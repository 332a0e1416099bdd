"""The HTTP doors: listening sockets, TLS, and connections that neither dawdle nor flood."""

from __future__ import annotations

import asyncio
import functools
import math
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from router.config import Address
from workers.core.errors import ConfigError
from workers.wire.tls import ServerTls

BACKLOG = 2048
MAX_HEAD_BYTES = 64 << 10
# A client that vanished, or takes nothing of its answer for so long, is cut off by the kernel.
SILENT_MS = 60_000
_CERTIFIED = "kvasir.certified"  # where it stands in the scope
PROBE_AFTER_S, PROBE_EVERY_S, PROBES = 30, 10, 3


@dataclass(frozen=True, slots=True)
class Patience:
    """With one connection, and how many there may be. `body_bytes`: of a request, all in all."""

    body_bytes: int
    head_s: float = 10.0
    message_s: float = 60.0
    connections: int = 16384


@contextmanager
def listen(key: str, address: Address) -> Iterator[socket.socket]:
    """A bound socket. Raises ConfigError that names key and port."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _notice_silence(sock)  # inherited by what it accepts
        try:
            sock.bind((address.host, address.port))
            sock.listen(BACKLOG)  # now, so that a second router sees that the port is taken
        except OSError as error:
            raise port_taken(key, address, error) from None
        yield sock


def port_taken(key: str, address: Address, error: Exception) -> ConfigError:
    reason = error.strerror if isinstance(error, OSError) else "is it already taken?"
    return ConfigError(f"{key}: cannot listen on {address.host}, port {address.port}: {reason}")


@asynccontextmanager
async def serve_http(
    app: ASGIApp,
    sock: socket.socket,
    grace_s: float,
    patience: Patience,
    tls: ServerTls | None = None,
) -> AsyncIterator[uvicorn.Server]:
    """Serves `app` beside the block; at its end connections get `grace_s` to finish."""
    protocol: Any = functools.partial(_Connection, patience)
    config = uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        log_config=None,  # its own would close every handler there is, Ray Serve's among them
        log_level="warning",
        access_log=False,
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=math.ceil(grace_s),
    )
    config.load()
    config.ssl = tls.context() if tls is not None else None
    server = _Server(config)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(server.serve([sock]))
        try:
            yield server
        finally:
            server.should_exit = True


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: the process has one owner of signals, __main__."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Connection(HttpToolsProtocol):
    """uvicorn's, with an end to heads and bodies that have none: it waits and collects for ever."""

    def __init__(self, patience: Patience, **given: Any) -> None:
        super().__init__(**given)
        self._patience = patience
        self._in_head = True
        self._in_message = True  # from the connection on
        self._bytes = 0  # of this message
        self._certified = False
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._certified = bool(transport.get_extra_info("peercert"))
        if len(self.connections) > self._patience.connections:
            transport.abort()
            return
        self._timer = self.loop.call_later(self._patience.head_s, self._too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        self._rest()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self._in_message or self.transport.is_closing():
            return
        self._bytes += len(data)
        if self._in_head and self._bytes > MAX_HEAD_BYTES:
            self._end(431, "the head of the request is too large")
        elif self._bytes > MAX_HEAD_BYTES + 2 * self._patience.body_bytes:  # chunks have heads too
            self._end(413, "the body is too large")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope[_CERTIFIED] = self._certified  # type: ignore[literal-required]
        self._in_head = self._in_message = True
        self._bytes = 0
        self._rest()
        self._timer = self.loop.call_later(self._patience.head_s, self._too_slow)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._rest()
        left_s = self._patience.message_s
        self._timer = self.loop.call_later(left_s, self._too_slow)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_message = False
        self._bytes = 0
        self._rest()
        super().on_message_complete()

    @property
    def _answering(self) -> bool:
        """A request before this one."""
        return self._in_head and self.cycle is not None and not self.cycle.response_complete

    def _rest(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        if self.flow.read_paused or self._answering:  # what came before it goes first
            self._timer = self.loop.call_later(self._patience.message_s, self._too_slow)
        else:
            self._end(408, "the request did not come in time")

    def _end(self, status: int, message: str) -> None:
        """Answers where nothing was answered yet, and closes either way."""
        cycle = self.cycle
        answered = cycle is not None and (cycle.response_started or cycle.response_complete)
        if not self._answering and (self._in_head or not answered):
            reply = f"HTTP/1.1 {status} \r\ncontent-type: text/plain\r\nconnection: close\r\n"
            reply += f"content-length: {len(message)}\r\n\r\n{message}"
            self.transport.write(reply.encode())
        self.transport.close()


def certified(scope: Scope) -> bool:
    """Whether the client has shown a certificate of the client CA."""
    return bool(scope.get(_CERTIFIED))


def _notice_silence(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, PROBE_AFTER_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, PROBE_EVERY_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, PROBES)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENT_MS)
