"""The followers of one replica, as their leader sees them: started, listened to, ended together."""

from __future__ import annotations

import contextlib
import os
import secrets
import selectors
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TypeVar

from workers.core.clock import Clock, SystemClock
from workers.core.errors import CheckpointError, ConfigError, KvasirError, Unavailable
from workers.logs import PLAIN, Voice
from workers.parallel.control import Gone, Line, Wire, listen
from workers.parallel.launcher import Invitation, RankLauncher, RankProcess

T = TypeVar("T")

BEAT_S = 1.0
SILENCE_S = 2.75  # without a beat a rank counts as dead, hung or stopped
LOADING_S = 10.0  # ... until it is ready: reading a library may hold its interpreter for seconds
START_S = 120.0  # from its process' start to its first word: libraries are read from the disk
TICK_S = 0.25
KILL_S = 5.0  # a process that the kernel holds for longer is not ours to end
FAULTS: tuple[type[KvasirError], ...] = (CheckpointError, ConfigError)

# What a follower of this rank is told first, and the descriptors that go with it.
Plan = Callable[[int], tuple[Line, tuple[int, ...]]]


@dataclass
class _Rank:
    process: RankProcess
    wire: Wire | None = None
    silence: float = 0.0
    said: dict[str, Line] = field(default_factory=dict)
    beside: socket.socket | None = None  # its second line, until somebody takes it


class Team:
    """Ranks 1..followers. One thread starts them and then watches: as long as it lives so may they.

    A rank that ends, closes its line, fails or falls silent is a loss of all: the others are
    killed, and `loss` is done with the error that names the rank.
    """

    def __init__(
        self,
        followers: int,
        launcher: RankLauncher,
        plan: Plan,
        *,
        voice: Voice = PLAIN,
        clock: Clock | None = None,
    ) -> None:
        """`launcher` is closed with the team. `voice`: how followers log. Raises OSError where its
        host is not ours."""
        self.loss: Future[KvasirError] = Future()
        self._launcher = launcher
        self._plan = plan
        self._clock = clock or SystemClock()
        self._ranks: dict[int, _Rank] = {}
        self._size = followers
        self._voice = voice
        self._token = secrets.token_hex(16)
        self._changed = threading.Condition()
        self._closing = False
        self._wake: int | None = os.eventfd(0, os.EFD_CLOEXEC)  # None: the watch has ended
        self._listener, self._address = listen(launcher.host)
        self._thread = threading.Thread(target=self._watch, name="kvasir-ranks", daemon=True)
        self._thread.start()

    def collect(self, what: str, timeout_s: float) -> list[Line]:
        """The line that each follower says of this kind, in rank order. Raises the loss, or
        Unavailable naming the rank that has not said it."""

        def missing() -> list[int]:
            there = self._ranks
            return [
                r for r in range(1, self._size + 1) if r not in there or what not in there[r].said
            ]

        with self._changed:
            self._changed.wait_for(lambda: self.loss.done() or not missing(), timeout_s)
            if self.loss.done():
                raise self.loss.result()
            if missing():
                raise Unavailable(
                    f"rank {missing()[0]} has not said {what!r} for {timeout_s:.0f} s"
                )
            return [self._ranks[rank].said[what] for rank in range(1, self._size + 1)]

    def lines_beside(self, timeout_s: float) -> list[socket.socket]:
        """The second line that each follower opens, in rank order; the caller's from now on. Once;
        raises like collect()."""
        self.collect("beside", timeout_s)
        with self._changed:
            found = [self._ranks[rank].beside for rank in range(1, self._size + 1)]
            for rank in self._ranks.values():
                rank.beside = None
        lines = [line for line in found if line is not None]
        assert len(lines) == len(found), "they were taken before"
        return lines

    def guard(self, work: Callable[[], T]) -> T:
        """work(), on a thread that is left behind when a rank is lost meanwhile, as it may wait
        for that one; then the loss is raised."""
        done: Future[T] = Future()

        def settle(error: BaseException | None, result: Callable[[], T] | None) -> None:
            with self._changed:
                if done.done():
                    return
                if error is not None:
                    done.set_exception(error)
                elif result is not None:
                    done.set_result(result())

        def run() -> None:
            try:
                value = work()
            except BaseException as error:
                settle(error, None)
                return
            settle(None, lambda: value)

        threading.Thread(target=run, name="kvasir-guarded", daemon=True).start()
        self.loss.add_done_callback(lambda loss: settle(loss.result(), None))
        try:
            return done.result()
        except Unavailable as error:
            # A broken group is mostly noticed before the rank that broke it is known.
            raise self.blame(error) from error

    def blame(self, error: KvasirError) -> KvasirError:
        """The loss behind a group's error, which ends the team in any case."""
        with contextlib.suppress(TimeoutError):
            return self.loss.result(SILENCE_S + 2 * TICK_S)
        self.give_up(error)
        return error

    def give_up(self, error: KvasirError) -> None:
        """End all; `error` is the loss unless there was one before. The watch does the rest."""
        with self._changed:
            if not self.loss.done() and not self._closing:
                self.loss.set_result(error)
            self._changed.notify_all()
            self._wake_watch()

    def close(self) -> None:
        """Idempotent. Followers are killed: they have nothing that is not the leader's too."""
        with self._changed:
            self._closing = True
            self._wake_watch()
        self._thread.join(2 * KILL_S)

    def _wake_watch(self) -> None:
        """With the lock held."""
        if self._wake is not None:
            os.eventfd_write(self._wake, 1)

    # -- on the watch's thread -------------------------------------------------------------------

    def _watch(self) -> None:
        selector = selectors.DefaultSelector()
        selector.register(self._listener, selectors.EVENT_READ)
        assert self._wake is not None
        selector.register(self._wake, selectors.EVENT_READ)
        try:
            for rank in range(1, self._size + 1):
                if self._closing:
                    break
                invitation = Invitation(rank, self._address, self._token, self._voice)
                self._ranks[rank] = _Rank(self._launcher.start(invitation))
            last = self._clock.now()
            while not self._closing and not self.loss.done():
                events = selector.select(TICK_S)
                for key, _ in events:
                    self._hear(key.fileobj, selector)
                now = self._clock.now()
                # At most two ticks: a machine that was asleep does not make its ranks silent.
                self._judge(min(now - last, 2 * TICK_S))
                last = now
        except OSError as error:
            self.give_up(Unavailable(f"a rank cannot be started: {error}"))
        except Exception as error:  # the edge of the thread: who waits for ranks must know
            self.give_up(Unavailable(f"watching the ranks failed: {error!r}"))
            raise
        finally:
            self._end(selector)

    def _hear(self, source: object, selector: selectors.BaseSelector) -> None:
        if source is self._listener:
            connection, _ = self._listener.accept()
            selector.register(Wire(connection), selectors.EVENT_READ)
        elif isinstance(source, Wire):
            try:
                while (line := source.receive(0)) is not None:
                    if line["say"] == "beside":
                        self._take_beside(line, source)
                        selector.unregister(source)
                        return
                    self._take(line, source)
            except (Gone, ValueError, LookupError, TypeError) as error:
                selector.unregister(source)
                self._closed(source, error)

    def _take(self, line: Line, wire: Wire) -> None:
        said = line["say"]
        if said == "hello":
            rank = self._invited(line)
            rank.wire = wire
            with contextlib.suppress(Gone):  # what it said last is still to be read
                wire.send(*self._plan(line["rank"]))
        for number, rank in self._ranks.items():
            if rank.wire is wire:
                rank.silence = 0.0
                if said == "failed":
                    self.give_up(_error(number, line))
                elif said != "beat":
                    with self._changed:
                        rank.said[said] = line
                        self._changed.notify_all()

    def _take_beside(self, line: Line, wire: Wire) -> None:
        rank = self._invited(line)
        with self._changed:
            rank.beside = wire.detach()
            rank.said["beside"] = line
            self._changed.notify_all()

    def _invited(self, line: Line) -> _Rank:
        if not secrets.compare_digest(line["token"], self._token):
            raise Gone("not invited")
        return self._ranks[line["rank"]]

    def _closed(self, wire: Wire, error: Exception) -> None:
        wire.close()
        for number, rank in self._ranks.items():
            if rank.wire is wire:
                self._lose(number, self._ending(rank.process) or f"its line ended: {error}")

    def _judge(self, seconds: float) -> None:
        for number, rank in self._ranks.items():
            rank.silence += seconds
            if rank.wire is None:
                reason = rank.process.ended()
                if reason is None and rank.silence > START_S:
                    reason = f"said nothing for {START_S:.0f} s"
            else:
                silent = rank.silence > (SILENCE_S if "ready" in rank.said else LOADING_S)
                reason = f"is silent for {rank.silence:.1f} s" if silent else None
            if reason is not None:
                self._lose(number, reason)

    def _ending(self, process: RankProcess) -> str | None:
        """Its line ends a moment before the process can be seen to have ended."""
        pause = threading.Event()
        for _ in range(20):
            reason = process.ended()
            if reason is not None:
                return reason
            pause.wait(0.01)
        return None

    def _lose(self, number: int, reason: str) -> None:
        self.give_up(Unavailable(f"rank {number} of {self._size + 1} is lost: {reason}"))

    def _end(self, selector: selectors.BaseSelector) -> None:
        ranks = self._ranks.values()
        for rank in ranks:
            rank.process.kill()
        until = self._clock.now() + KILL_S
        pause = threading.Event()
        while any(rank.process.ended() is None for rank in ranks) and self._clock.now() < until:
            pause.wait(0.01)
        for key in list(selector.get_map().values()):
            if isinstance(key.fileobj, Wire):  # invited or not
                key.fileobj.close()
        selector.close()
        self._listener.close()
        self._launcher.close()
        with self._changed:
            for rank in ranks:
                if rank.beside is not None:
                    rank.beside.close()
            wake, self._wake = self._wake, None
        if wake is not None:
            os.close(wake)


def _error(number: int, line: Line) -> KvasirError:
    """What a follower failed with, as the class that it was there."""
    for fault in FAULTS:
        if line["kind"] == fault.__name__:
            return fault(line["message"])
    return Unavailable(f"rank {number} failed: {line['message']}")
