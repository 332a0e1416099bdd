"""Routers of a cluster tell each other what they gave to which replica, through Redis.

Within EVERY_S of a decision its router says so, in absolute values of all replicas whose load
moved; once a second, and when somebody new is heard, it says everything, and that alone while it
hears nobody. Redis away, flushed or slow costs no request anything: what is due is computed when it
can be said, so nothing piles up, and meanwhile the loads of others come from the workers' own
reports, as those of routers that say nothing.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import struct
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Protocol

from google.protobuf.message import DecodeError

from router.replica import Replica
from router.sharing.blocks import ToldIndex
from router.sharing.channel import ChannelLost
from router.sharing.foreign import NOTHING, Load
from router.sharing.peers import SILENT_S, Life, Peers
from workers.core.clock import Clock
from workers.wire import admin_pb2 as admin
from workers.wire import router_pb2 as wire
from workers.wire import worker_pb2 as worker
from workers.wire.redis_keys import pack_ids, unpack_ids

log = logging.getLogger(__name__)

EVERY_S = 0.025  # between two messages, at least
WHOLE_EVERY_S = 1.0
SETTLE_S = 6 * EVERY_S  # after a worker's report: what is told later was decided after it
PAUSE_S = 0.5  # after a failure
LOOK_EVERY_S = 0.1  # whether somebody has fallen silent
FAREWELL_S = 0.2
DRIFT = 1 / 16  # of the KV tokens last told: growing answers alone are not worth a message


class Line(Protocol):
    """What Sharing needs of a Channel."""

    async def say(self, message: bytes) -> None: ...

    def listen(self, silence_s: float) -> AsyncGenerator[bytes]: ...


class Sharing:
    """A PoolListener. run() until cancelled."""

    def __init__(self, line: Line, clock: Clock, index: ToldIndex) -> None:
        self.id = secrets.token_hex(4)
        self.peers = Peers()
        self._line = line
        self._clock = clock
        self._index = index
        self._said: dict[Life, Load] = {}
        self._number = 0
        self._whole_due = 0.0  # when everything is to be said again
        self._met: dict[str, _Met] = {}

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._speak())
            tasks.create_task(self._listen())
            tasks.create_task(self._notice_silence())

    def others(self) -> list[admin.OtherRouter]:
        """Who tells us, for people."""
        now = self._clock.now()
        return [
            admin.OtherRouter(id=name, heard_s=now - peer.heard_at, **peer.total._asdict())
            for name, peer in self.peers
        ]

    # what we say

    async def _speak(self) -> None:
        try:
            while True:
                pause_s = EVERY_S
                news = self._news()
                if news is not None:
                    try:
                        await self._line.say(news.SerializeToString())
                    except ChannelLost as error:
                        log.debug("cannot tell other routers: %s", error.message)
                        self._whole_due, pause_s = 0.0, PAUSE_S
                await asyncio.sleep(pause_s)
        finally:
            with suppress(ChannelLost, TimeoutError):
                async with asyncio.timeout(FAREWELL_S):
                    await self._line.say(self._message(leaving=True).SerializeToString())

    def _news(self) -> wire.RouterNews | None:
        """What is to be said now, and counts as said."""
        now = self._clock.now()
        whole = now >= self._whole_due
        if not whole and not self.peers:
            return None  # nobody is there: whoever comes is told everything
        loads = {(r.id, r.incarnation): _own(r) for r in self._replicas()}
        if whole:
            self._whole_due = now + WHOLE_EVERY_S
            rows = {life: load for life, load in loads.items() if load != NOTHING}
            self._said = dict(rows)
        else:
            rows = dict(_moved(self._said, loads))
            self._said.update(rows)
        expected = self._index.take_untold()
        if not whole and not rows and not expected:
            return None
        news = self._message(whole=whole)
        for (replica, incarnation), load in rows.items():
            news.held.add(
                replica=replica,
                incarnation=incarnation,
                pending_tokens=load.pending_tokens,
                kv_tokens=load.kv_tokens,
                seqs=load.seqs,
            )
        for name, blocks in expected:
            news.expected.add(replica=name, block_ids=pack_ids(blocks))
        return news

    def _message(self, *, whole: bool = False, leaving: bool = False) -> wire.RouterNews:
        self._number += 1
        return wire.RouterNews(router=self.id, number=self._number, whole=whole, leaving=leaving)

    # what others say

    async def _listen(self) -> None:
        up = True
        while True:
            try:
                async with aclosing(self._line.listen(SILENT_S)) as messages:
                    async for message in messages:
                        if not up:
                            log.info("other routers are heard again")
                        up = True
                        self.hear(message)
            except ChannelLost as error:
                if up:
                    log.warning("other routers are not heard: %s", error.message)
                up = False
            await asyncio.sleep(PAUSE_S)

    def hear(self, message: bytes) -> None:
        """One message of the channel, ours too."""
        try:
            news = wire.RouterNews.FromString(message)
            expected = [(sent.replica, unpack_ids(sent.block_ids)) for sent in news.expected]
        except (DecodeError, struct.error) as error:
            log.warning("a message of another router cannot be read: %s", error)
            return
        if not news.router or news.router == self.id:
            return
        if news.leaving:
            self._fell_silent(self.peers.leave(news.router))
            return
        if news.router not in self.peers:
            log.info("router %s is there", news.router)
            self._whole_due = 0.0  # it knows nothing of us
        now = self._clock.now()
        rows = {
            (row.replica, row.incarnation): Load(row.pending_tokens, row.kv_tokens, row.seqs)
            for row in news.held
        }
        changed = self.peers.hear(news.router, news.number, rows, whole=news.whole, now=now)
        for met, told in self._told(changed):
            met.replica.foreign.tell(told, settled=now - met.reported_at > SETTLE_S)
        for name, blocks in expected:
            if name in self._met and self._met[name].replica.alive:
                self._index.hear(name, blocks)

    async def _notice_silence(self) -> None:
        while True:
            self._fell_silent(self.peers.silent(self._clock.now()))
            await asyncio.sleep(LOOK_EVERY_S)

    def _fell_silent(self, changed: Iterable[Life]) -> None:
        for met, told in self._told(changed):
            met.replica.foreign.unsay(told)

    def _told(self, lives: Iterable[Life]) -> Iterator[tuple[_Met, Load]]:
        """Of these lives, those that go on, and what the others say of them."""
        for life in lives:
            met = self._met.get(life[0])
            if met is not None and met.replica.alive and met.replica.incarnation == life[1]:
                yield met, self.peers.told(life)

    # as a PoolListener

    def reported(self, replica: Replica, load: worker.LoadReport) -> None:
        self._met[replica.id] = _Met(replica, self._clock.now())
        told = self.peers.told((replica.id, replica.incarnation))
        if told != replica.foreign.told:  # we have just met it, or its new life
            replica.foreign.tell(told, settled=False)

    def lost(self, replica: Replica) -> None: ...

    def forgotten(self, replica: Replica) -> None:
        self._met.pop(replica.id, None)

    def _replicas(self) -> Iterator[Replica]:
        return (met.replica for met in self._met.values())


@dataclass(frozen=True, slots=True)
class _Met:
    """A replica of the pool, and when its last report came."""

    replica: Replica
    reported_at: float


def _own(replica: Replica) -> Load:
    held = replica.assignments
    return Load(held.pending_tokens, held.kv_tokens, held.seqs)


def _moved(said: dict[Life, Load], loads: dict[Life, Load]) -> Iterator[tuple[Life, Load]]:
    """Those that others must hear of, lives that are over too."""
    for life, load in loads.items():
        before = said.get(life, NOTHING)
        if load == before:
            continue
        drift = abs(load.kv_tokens - before.kv_tokens)
        if load[::2] != before[::2] or drift > DRIFT * before.kv_tokens:
            yield life, load
    for life in said.keys() - loads.keys():
        yield life, NOTHING
