"""`python -m workers.parallel.follower`: the process of one follower, started by a RankLauncher."""

from __future__ import annotations

import argparse
import ctypes
import logging
import os
import queue
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from typing import NoReturn, get_args

from workers.core.errors import KvasirError, Unavailable
from workers.logs import LogStyle, Voice, log_as_rank
from workers.parallel.control import Gone, Line, Wire, connect
from workers.parallel.launcher import TOKEN, Invitation
from workers.parallel.team import BEAT_S

log = logging.getLogger("kvasir.rank")
CONNECT_S = 10.0
ANSWER_S = 60.0  # for what the leader says at once
_PR_SET_PDEATHSIG = 1


class Leader:
    """A follower's line to its leader. Its thread beats, and ends the process with the line."""

    def __init__(self, wire: Wire, invitation: Invitation) -> None:
        self._wire = wire
        self._invitation = invitation
        self._heard: queue.Queue[Line] = queue.Queue()
        threading.Thread(target=self._listen, name="kvasir-leader", daemon=True).start()

    def say(self, what: str) -> None:
        self._send({"say": what})

    def hear(self, what: str) -> Line:
        """The next line, which must be of this kind. Raises Unavailable."""
        try:
            line = self._heard.get(timeout=ANSWER_S)
        except queue.Empty:
            raise Unavailable(f"the leader has not said {what!r} for {ANSWER_S:.0f} s") from None
        assert line["say"] == what, f"{line['say']!r} instead of {what!r}"
        return line

    @property
    def own_host(self) -> str | None:
        """This host's address on the way to the leader; None where it is the leader's host."""
        return self._wire.own_host

    def open_beside(self) -> socket.socket:
        """A second line, on which nothing is said yet. Raises OSError and Gone."""
        wire = connect(self._invitation.address, CONNECT_S)
        wire.send(_introduction("beside", self._invitation))
        return wire.detach()

    def take_fds(self) -> tuple[int, ...]:
        """Descriptors that came with lines, in their order; now the caller's."""
        fds, self._wire.fds = tuple(self._wire.fds), []
        return fds

    def fail(self, error: BaseException) -> NoReturn:
        """Tell the leader why, and end the process."""
        message = error.message if isinstance(error, KvasirError) else repr(error)
        self._send({"say": "failed", "kind": type(error).__name__, "message": message})
        _leave(1)

    def _send(self, line: Line) -> None:
        try:
            self._wire.send(line)
        except Gone:
            _leave(1)

    def _listen(self) -> None:
        try:
            while True:
                line = self._wire.receive(BEAT_S / 2)
                if line is None:
                    self._send({"say": "beat"})
                else:
                    self._heard.put(line)
        except Gone:
            _leave(1)


def follow(invitation: Invitation) -> NoReturn:
    """All that a follower does, to its end and that of its process."""
    # Here and not above: whoever is no longer wanted has left before libraries are read.
    from workers.runner.part import serve_part

    log_as_rank(invitation.voice, invitation.rank)
    try:
        wire = connect(invitation.address, CONNECT_S)
        wire.send(_introduction("hello", invitation))
    except (OSError, Gone) as error:
        log.error("rank %d does not reach its leader: %s", invitation.rank, error)
        _leave(1)
    leader = Leader(wire, invitation)
    try:
        serve_part(leader)
    except Exception as error:  # the edge of the process: the leader must know
        if not isinstance(error, KvasirError):
            log.exception("rank %d broke", invitation.rank)
        leader.fail(error)


def _introduction(say: str, invitation: Invitation) -> Line:
    return {"say": say, "rank": invitation.rank, "token": invitation.token}


def main(argv: Sequence[str] | None = None) -> NoReturn:
    parser = argparse.ArgumentParser(prog="python -m workers.parallel.follower")
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--leader", required=True, help="address")
    parser.add_argument("--parent", type=int, required=True, help="process id")
    parser.add_argument("--logs", choices=get_args(LogStyle), default="text")
    parser.add_argument("--replica", default="", help="whose rank it is")
    args = parser.parse_args(argv)
    _die_with(args.parent)
    voice = Voice(args.logs, args.replica)
    follow(Invitation(args.rank, args.leader, os.environ[TOKEN], voice))


def _die_with(parent: int) -> None:
    """A second belt beside the line: the kernel kills us when the parent's thread is gone."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it was gone before the kernel knew
        _leave(1)


def _leave(code: int) -> NoReturn:
    """Not sys.exit: another thread may compute, or wait in a group, for ever."""
    logging.shutdown()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
