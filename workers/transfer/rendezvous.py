"""How the process group of a pair is made: its two entries travel inside our own RPC, so there is
no TCPStore to lose and no static world."""

from __future__ import annotations

import asyncio
import datetime
import threading
from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from workers.core.errors import TransferError
from workers.transfer.threads import on_thread


class RendezvousStore(dist.Store):  # type: ignore[name-defined]
    """`published(blob)` is called from the constructing thread with what this rank sets; inject()
    hands in the peer's, drop() says that there will be none. Everything else of the Store interface
    is what process groups of two ask.
    """

    def __init__(self, published: Callable[[bytes], None], timeout_s: float) -> None:
        super().__init__()
        self._published = published
        self._timeout_s = timeout_s
        self._values: dict[str, bytes] = {}
        self._dropped = False
        self._changed = threading.Condition()

    def inject(self, blob: bytes) -> None:
        key, _, value = blob.partition(b"\0")
        with self._changed:
            self._values[key.decode(errors="replace")] = value
            self._changed.notify_all()

    def drop(self) -> None:
        with self._changed:
            self._dropped = True
            self._changed.notify_all()

    def set(self, key: str, value: bytes | str) -> None:
        raw = value.encode() if isinstance(value, str) else bytes(value)
        with self._changed:
            self._values[key] = raw
            self._changed.notify_all()
        self._published(key.encode() + b"\0" + raw)

    def get(self, key: str) -> bytes:
        with self._changed:
            self._changed.wait_for(lambda: self._dropped or key in self._values, self._timeout_s)
            if key not in self._values:
                raise RuntimeError(f"the peer did not answer within {self._timeout_s:g} s")
            return self._values[key]

    def wait(self, keys: list[str], timeout: datetime.timedelta | None = None) -> None:
        for key in keys:
            self.get(key)

    def check(self, keys: list[str]) -> bool:
        with self._changed:
            return all(key in self._values for key in keys)

    def add(self, key: str, amount: int) -> int:
        with self._changed:
            total = int(self._values.get(key, b"0")) + amount
            self._values[key] = str(total).encode()
            return total

    def delete_key(self, key: str) -> bool:
        with self._changed:
            return self._values.pop(key, None) is not None

    def num_keys(self) -> int:
        return len(self._values)

    def set_timeout(self, timeout: datetime.timedelta) -> None:
        self._timeout_s = timeout.total_seconds()

    def has_extended_api(self) -> bool:
        return False


class Meeting:
    """A group whose constructor runs on a thread: it publishes our blob and waits there for the
    peer's. `make(store)` returns the group or raises RuntimeError or ValueError."""

    def __init__(self, name: str, make: Callable[[RendezvousStore], Any], timeout_s: float) -> None:
        loop = asyncio.get_running_loop()
        self._name = name
        self._timeout_s = timeout_s
        self._published: asyncio.Future[bytes] = loop.create_future()

        def settle(blob: bytes) -> None:
            if not self._published.done():
                self._published.set_result(blob)

        def publish(blob: bytes) -> None:
            loop.call_soon_threadsafe(settle, blob)

        self._store = RendezvousStore(publish, timeout_s)
        self._made = on_thread(_made_or_why, make, self._store)

    async def blob(self) -> bytes:
        """Ours. Raises TransferError where the constructor has none."""
        await self._either({self._published, self._made})
        if not self._published.done():
            why = self._made.result()[1] if self._made.done() else "it published nothing"
            self.drop()
            raise TransferError(f"{self._name}: no rendezvous: {why}")
        return self._published.result()

    async def group(self, peer_blob: bytes) -> Any:
        """Raises TransferError where the two do not meet in time."""
        self._store.inject(peer_blob)
        await self._either({self._made})
        if not self._made.done():
            self.drop()
            raise TransferError(f"{self._name}: no pair within {self._timeout_s:g} s")
        group, why = self._made.result()
        if group is None:
            raise TransferError(f"{self._name}: no pair: {why}")
        return group

    async def _either(self, futures: set[asyncio.Future[Any]]) -> None:
        try:
            await asyncio.wait(
                futures, timeout=self._timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
        except asyncio.CancelledError:
            self.drop()
            raise

    def drop(self) -> None:
        """The constructor ends; a group that was made nevertheless goes with its last reference."""
        self._store.drop()


def _made_or_why(make: Callable[[RendezvousStore], Any], store: RendezvousStore) -> tuple[Any, str]:
    """The group, or None and the reason: an exception would keep the store, and through its
    traceback whatever it waited for, alive."""
    try:
        return make(store), ""
    except (RuntimeError, ValueError) as error:
        return None, str(error).splitlines()[0]
