"""Which ports are free, and which are taken by somebody else."""

from __future__ import annotations

import errno
import random
import socket
from contextlib import ExitStack

from router.config import Address
from workers.core.errors import ConfigError

# Below the range from which Linux takes ports for outgoing connections, so that the port of a
# worker that is being restarted is not taken by a client of somebody else's.
_FIRST, _LAST = 20_000, 32_000


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """`count` different ports of `host` that nobody listens on now. Raises OSError where `host` is
    not an address of this machine."""
    ports: list[int] = []
    with ExitStack() as held:
        for port in random.sample(range(_FIRST, _LAST), k=_LAST - _FIRST):
            if len(ports) == count:
                break
            holder = _bind(host, port)
            if holder is not None:
                held.enter_context(holder)
                ports.append(port)
    if len(ports) < count:
        raise ConfigError(f"found only {len(ports)} free ports on {host}, {count} are needed")
    return ports


def settle(address: Address, key: str) -> Address:
    """`address`, with a free port where it has none.

    Raises ConfigError where its port is taken, or nobody can listen there.
    """
    try:
        if address.port == 0:
            return address.model_copy(update={"port": free_ports(1, address.host)[0]})
        holder = _bind(address.host, address.port)
    except OSError as error:
        raise ConfigError(f"cannot listen on {address} ({key}): {error.strerror}") from None
    except UnicodeError:
        raise ConfigError(f"cannot listen on {address} ({key}): not a host name") from None
    if holder is None:
        raise ConfigError(
            f"port {address.port} on {address.host} ({key}) is already taken; "
            "stop what listens there or choose another port"
        )
    holder.close()
    return address


def _bind(host: str, port: int) -> socket.socket | None:
    """None = taken by somebody else. Raises OSError for any other reason."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    holder = socket.socket(family)
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        holder.bind((host, port))
        # Bound but not listening sockets share with SO_REUSEADDR; only listen() settles it.
        holder.listen(1)
    except (OSError, UnicodeError) as error:
        holder.close()
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            return None
        raise
    return holder
