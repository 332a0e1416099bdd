"""The line between a leader and one follower: JSON lines over a stream socket, and on one host
file descriptors beside them. Its end tells either side that the other is gone."""

from __future__ import annotations

import array
import json
import secrets
import select
import socket
import struct
import threading
from typing import Any, TypeAlias

Line: TypeAlias = dict[str, Any]

MAX_LINE = 1 << 20  # bytes: more is no line of ours
VANISHED_S = 10.0  # a host that answers nothing for so long is gone
MOST_FDS = 8
_UNIX = "unix:"


def listen(host: str | None) -> tuple[socket.socket, str]:
    """A listener and the address to give to followers. `host` None: this machine alone, under an
    abstract name, which needs no file and goes with the socket."""
    if host is not None:
        listener = socket.create_server((host, 0))
        return listener, f"{host}:{listener.getsockname()[1]}"
    listener = socket.socket(socket.AF_UNIX)
    name = f"kvasir-{secrets.token_hex(8)}"
    listener.bind(f"\0{name}")
    listener.listen()
    return listener, _UNIX + name


def connect(address: str, timeout_s: float) -> Wire:
    """Raises OSError."""
    if address.startswith(_UNIX):
        wire = socket.socket(socket.AF_UNIX)
        wire.settimeout(timeout_s)
        wire.connect(f"\0{address.removeprefix(_UNIX)}")
    else:
        host, _, port = address.rpartition(":")
        wire = socket.create_connection((host, int(port)), timeout_s)
    return Wire(wire)


class Gone(Exception):
    """The other side closed the line, or its host vanished."""


class Wire:
    """Any thread may send; one receives."""

    def __init__(self, wire: socket.socket) -> None:
        self.fds: list[int] = []  # that came
        self._wire = wire
        self._here = wire.family == socket.AF_UNIX
        self._buffer = b""
        self._sending = threading.Lock()
        self._poll = select.poll()
        self._poll.register(wire, select.POLLIN)
        wire.settimeout(VANISHED_S)
        if not self._here:
            wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(VANISHED_S * 1000))

    def fileno(self) -> int:
        return self._wire.fileno()

    @property
    def own_host(self) -> str | None:
        """The address of this end; None where both are on one host."""
        return None if self._here else str(self._wire.getsockname()[0])

    def send(self, line: Line, fds: tuple[int, ...] = ()) -> None:
        """Raises Gone."""
        data = json.dumps(line).encode() + b"\n"
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            with self._sending:
                sent = self._wire.sendmsg([data], rights)
                if sent < len(data):
                    self._wire.sendall(data[sent:])
        except OSError as error:
            raise Gone(str(error)) from error

    def receive(self, timeout_s: float) -> Line | None:
        """The next line; None where none is complete in time. Raises Gone."""
        if b"\n" not in self._buffer:
            if not self._poll.poll(timeout_s * 1000):
                return None
            try:
                data, rights, _, _ = self._wire.recvmsg(
                    1 << 16, socket.CMSG_SPACE(MOST_FDS * 4) if self._here else 0
                )
            except OSError as error:
                raise Gone(str(error)) from error
            if not data:
                raise Gone("closed")
            self._buffer += data
            for _, _, packed in rights:
                self.fds += struct.unpack(f"{len(packed) // 4}i", packed)
        line, newline, rest = self._buffer.partition(b"\n")
        if not newline:
            if len(line) > MAX_LINE:
                raise Gone("no line ends here")
            return None
        self._buffer = rest
        decoded: Line = json.loads(line)
        return decoded

    def close(self) -> None:
        self._wire.close()

    def detach(self) -> socket.socket:
        """The socket, for another way of speaking; the Wire is of no more use."""
        assert not self._buffer, "lines are still to be received"
        return self._wire
