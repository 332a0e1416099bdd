"""The channel of ranks on one host: a ring of bytes in shared memory, and eventfds as bells.

    page 0         head | tail of follower 0 | tail of follower 1 | ...    bytes written, bytes read
    from page 1    the bytes, at their place modulo the capacity

A counter is read only after its bell rang, so that what it stands for is there on every CPU: the
write to an eventfd and the read of it order the memory around them. A message longer than the ring
flows through it. Nothing has a name in the file system: descriptors are handed over by a socket.
"""

from __future__ import annotations

import mmap
import os
import select
from collections.abc import Sequence
from struct import Struct

from workers.core.clock import Clock, SystemClock
from workers.core.errors import Unavailable
from workers.parallel.channel import Bytes, Kind, Message

CAPACITY = 1 << 20
COUNTERS = mmap.PAGESIZE
LINE = 8  # words between two counters: each has a cache line
SEND_S = 10.0
HEADER = Struct("<BQ")  # kind, length of the payload


class _Ring:
    """The mapping, and its counters as 8-byte words."""

    def __init__(self, memory: int, capacity: int) -> None:
        self.capacity = capacity
        self._map = mmap.mmap(memory, COUNTERS + capacity)
        self._whole = memoryview(self._map)
        self.words = self._whole[:COUNTERS].cast("Q")
        self.data = self._whole[COUNTERS:]

    def close(self) -> None:
        for view in (self.words, self.data, self._whole):
            view.release()
        self._map.close()


class RingSender:
    """Blocks while the slowest follower is a whole ring behind."""

    def __init__(
        self,
        followers: int,
        *,
        capacity: int = CAPACITY,
        deadline_s: float = SEND_S,
        clock: Clock | None = None,
    ) -> None:
        assert followers < COUNTERS // 8 // LINE
        self._memory = os.memfd_create("kvasir-steps")
        os.ftruncate(self._memory, COUNTERS + capacity)
        self._ring = _Ring(self._memory, capacity)
        self._bells = [_bell() for _ in range(followers)]
        self._room_bell = _bell()
        self._room = _poll(self._room_bell)
        self._head = 0
        self._free = capacity
        self._deadline_s = deadline_s
        self._clock = clock or SystemClock()

    def ends(self, follower: int) -> tuple[int, int, int]:
        """The descriptors that the RingReceiver of this follower takes copies of."""
        return self._memory, self._bells[follower], self._room_bell

    def send(self, kind: Kind, *parts: Bytes) -> None:
        until = self._clock.now() + self._deadline_s
        views = [memoryview(part).cast("B") for part in parts]
        self._write(memoryview(HEADER.pack(kind, sum(map(len, views)))), until)
        for view in views:
            self._write(view, until)
        self._publish()

    def close(self) -> None:
        self._ring.close()
        for descriptor in (self._memory, self._room_bell, *self._bells):
            os.close(descriptor)

    def _write(self, view: memoryview, until: float) -> None:
        ring = self._ring
        while view:
            if not self._free:
                self._publish()
                self._wait(until)
            place = self._head % ring.capacity
            count = min(len(view), self._free, ring.capacity - place)
            ring.data[place : place + count] = view[:count]
            self._head += count
            self._free -= count
            view = view[count:]

    def _publish(self) -> None:
        self._ring.words[0] = self._head
        for bell in self._bells:
            os.eventfd_write(bell, 1)

    def _wait(self, until: float) -> None:
        """Until there is room."""
        while not self._free:
            if not _rings(self._room, self._room_bell, until - self._clock.now()):
                last = min(self._tails())
                if self._head - last == self._ring.capacity:
                    late = self._tails().index(last) + 1
                    waited = f"{self._deadline_s:.0f} s"
                    raise Unavailable(f"rank {late} has not read for {waited} what the leader says")
            self._free = self._ring.capacity - (self._head - min(self._tails()))

    def _tails(self) -> list[int]:
        return [self._ring.words[LINE * (1 + place)] for place in range(len(self._bells))]


class RingReceiver:
    """Takes over the descriptors. `follower`: its place among them, from 0."""

    def __init__(
        self,
        ends: Sequence[int],
        follower: int,
        *,
        capacity: int = CAPACITY,
        deadline_s: float = SEND_S,
    ) -> None:
        memory, self._bell, self._room_bell = ends
        self._ring = _Ring(memory, capacity)
        os.close(memory)
        self._poll = _poll(self._bell)
        self._place = LINE * (1 + follower)
        self._tail = 0
        self._head = 0  # as far as is known
        self._deadline_s = deadline_s

    def recv(self, timeout_s: float) -> Message | None:
        if self._head == self._tail and not self._more(timeout_s):
            return None
        header = bytearray(HEADER.size)
        self._read(memoryview(header))
        kind, length = HEADER.unpack(header)
        payload = bytearray(length)
        self._read(memoryview(payload))
        self._give_room()
        return Message(Kind(kind), payload)

    def close(self) -> None:
        self._ring.close()
        os.close(self._bell)
        os.close(self._room_bell)

    def _read(self, target: memoryview) -> None:
        ring = self._ring
        while target:
            if self._head == self._tail:
                self._give_room()
                if not self._more(self._deadline_s):
                    raise Unavailable("the leader stopped in the middle of a message")
            place = self._tail % ring.capacity
            count = min(len(target), self._head - self._tail, ring.capacity - place)
            target[:count] = ring.data[place : place + count]
            self._tail += count
            target = target[count:]

    def _more(self, timeout_s: float) -> bool:
        """Wait for bytes. A bell may have rung for some that are read already."""
        while _rings(self._poll, self._bell, timeout_s):
            self._head = self._ring.words[0]
            if self._head > self._tail:
                return True
        return False

    def _give_room(self) -> None:
        self._ring.words[self._place] = self._tail
        os.eventfd_write(self._room_bell, 1)


def _bell() -> int:
    return os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)


def _poll(bell: int) -> select.poll:
    poll = select.poll()
    poll.register(bell, select.POLLIN)
    return poll


def _rings(poll: select.poll, bell: int, timeout_s: float) -> bool:
    """Whether it rang within `timeout_s`, since it was last asked."""
    if not poll.poll(max(0.0, timeout_s) * 1000):
        return False
    os.eventfd_read(bell)
    return True
