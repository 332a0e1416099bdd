"""How the processes of followers come to be: here as children of the leader."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

TOKEN = "KVASIR_RANK_TOKEN"
KILL_S = 5.0


@dataclass(frozen=True, slots=True)
class Invitation:
    """All that a follower needs to find its leader; `token` proves that it was invited."""

    rank: int
    address: str
    token: str


class RankProcess(Protocol):
    def ended(self) -> str | None:
        """Why it is not there any more; None while it is."""

    def kill(self) -> None:
        """At once; returns when it is gone. Idempotent."""


class RankLauncher(Protocol):
    def start(self, invitation: Invitation) -> RankProcess:
        """Has a process call workers.parallel.follower.follow(invitation). Raises OSError."""


class ProcessLauncher:
    """Plain processes. They ask the kernel to kill them when the thread that called start() is
    gone: it must be one that lives as long as they shall."""

    def __init__(self, envs: Sequence[Mapping[str, str]]) -> None:
        """`envs`: what each rank, from 1 on, has on top of the leader's environment."""
        self._envs = envs

    def start(self, invitation: Invitation) -> RankProcess:
        module = ("-m", "workers.parallel.follower")
        place = ("--rank", str(invitation.rank), "--leader", invitation.address)
        return _Child(
            subprocess.Popen(
                [sys.executable, *module, *place, "--parent", str(os.getpid())],
                env={**os.environ, **self._envs[invitation.rank - 1], TOKEN: invitation.token},
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C in the terminal is the leader's
            )
        )


class _Child:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.pid = process.pid

    def ended(self) -> str | None:
        code = self._process.poll()
        if code is None:
            return None
        return f"ended with code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"

    def kill(self) -> None:
        self._process.kill()  # a stopped process dies of it too
        with contextlib.suppress(subprocess.TimeoutExpired):  # the kernel holds it: not ours to end
            self._process.wait(KILL_S)
