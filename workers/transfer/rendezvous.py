"""A torch.distributed Store whose two entries travel inside our own RPC: no TCPStore to lose."""

from __future__ import annotations

import datetime
import threading
from collections.abc import Callable

import torch.distributed as dist


class RendezvousStore(dist.Store):  # type: ignore[name-defined]
    """`published(blob)` is called from the constructing thread with what this rank sets; inject()
    hands in the peer's. Everything else of the Store interface is what process groups of two ask.
    """

    def __init__(self, rank: int, published: Callable[[bytes], None], timeout_s: float) -> None:
        super().__init__()
        self._rank = rank
        self._published = published
        self._timeout_s = timeout_s
        self._values: dict[str, bytes] = {}
        self._peer_blob: bytes | None = None
        self._changed = threading.Condition()

    def inject(self, blob: bytes) -> None:
        with self._changed:
            self._peer_blob = blob
            self._changed.notify_all()

    def set(self, key: str, value: bytes | str) -> None:
        raw = value.encode() if isinstance(value, str) else bytes(value)
        with self._changed:
            self._values[key] = raw
            self._changed.notify_all()
        self._published(key.encode() + b"\0" + raw)

    def get(self, key: str) -> bytes:
        with self._changed:
            if not self._changed.wait_for(lambda: self._find(key) is not None, self._timeout_s):
                raise RuntimeError(f"the peer did not answer within {self._timeout_s:.0f} s")
            found = self._find(key)
        assert found is not None
        return found

    def _find(self, key: str) -> bytes | None:
        if key in self._values:
            return self._values[key]
        if self._peer_blob is not None:
            name, _, value = self._peer_blob.partition(b"\0")
            if name.decode() == key:
                return value
        return None

    def wait(self, keys: list[str], timeout: datetime.timedelta | None = None) -> None:
        for key in keys:
            self.get(key)

    def check(self, keys: list[str]) -> bool:
        with self._changed:
            return all(self._find(key) is not None for key in keys)

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
