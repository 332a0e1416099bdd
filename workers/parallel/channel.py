"""What a leader tells its followers, in order: the inputs of each step, and page copies."""

from __future__ import annotations

import array
import queue
from enum import IntEnum
from typing import NamedTuple, Protocol, TypeAlias

import torch

from workers.parallel.group import Group

Bytes: TypeAlias = "bytes | bytearray | memoryview | array.array[int]"


class Kind(IntEnum):
    STEP = 1
    GATHER = 2
    SCATTER = 3
    BALANCE = 4


class Message(NamedTuple):
    kind: Kind
    payload: bytearray


class Sender(Protocol):
    """The leader's end; for one thread at a time."""

    def send(self, kind: Kind, *parts: Bytes) -> None:
        """To every follower; `parts` are one payload. They may change once it returns. Raises
        Unavailable where a follower does not take it in time."""

    def close(self) -> None: ...


class Receiver(Protocol):
    """A follower's end."""

    def recv(self, timeout_s: float) -> Message | None:
        """None where nothing came in time."""

    def close(self) -> None: ...


class QueueSender:
    """Followers in threads of the same process, for tests."""

    def __init__(self, followers: int) -> None:
        self.receivers = [QueueReceiver() for _ in range(followers)]

    def send(self, kind: Kind, *parts: Bytes) -> None:
        for receiver in self.receivers:
            receiver.messages.put(Message(kind, bytearray().join(parts)))

    def close(self) -> None:
        pass


class QueueReceiver:
    def __init__(self) -> None:
        self.messages: queue.Queue[Message] = queue.Queue()

    def recv(self, timeout_s: float) -> Message | None:
        try:
            return self.messages.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def close(self) -> None:
        pass


class GroupSender:
    """Over a group on CPUs, where followers are on other hosts: a broadcast of kind and length, and
    one of the payload. The group must serve nothing else."""

    def __init__(self, group: Group) -> None:
        self._group = group

    def send(self, kind: Kind, *parts: Bytes) -> None:
        payload = bytearray().join(parts)
        self._group.broadcast(torch.tensor([kind, len(payload)]))
        if payload:
            self._group.broadcast(torch.frombuffer(payload, dtype=torch.uint8))

    def close(self) -> None:
        pass


class GroupReceiver:
    """A broadcast cannot be waited for twice: recv ends with a message, or raises Unavailable when
    the leader is gone or the group's own deadline is over, which should be a long one."""

    def __init__(self, group: Group) -> None:
        self._group = group

    def recv(self, timeout_s: float) -> Message | None:
        kind, length = self._group.broadcast(torch.zeros(2, dtype=torch.int64)).tolist()
        payload = bytearray(length)
        if payload:
            self._group.broadcast(torch.frombuffer(payload, dtype=torch.uint8))
        return Message(Kind(kind), payload)

    def close(self) -> None:
        pass
