"""How the processes of followers come to be: here as children of the leader."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from workers.logs import PLAIN, Voice

TOKEN = "KVASIR_RANK_TOKEN"


@dataclass(frozen=True, slots=True)
class Invitation:
    """All that a follower needs to find its leader; `token` proves that it was invited. `voice`:
    how it logs."""

    rank: int
    address: str
    token: str
    voice: Voice = PLAIN


class RankProcess(Protocol):
    def ended(self) -> str | None:
        """Why it is not there any more; None while it is."""

    def kill(self) -> None:
        """At once; ended() tells when it is gone. Idempotent, and waits for nothing."""


class RankLauncher(Protocol):
    """For one replica."""

    host: str | None  # where followers of other hosts reach this one; None: all are on it

    def reserve(self, ranks: int, on_gpu: bool) -> None:
        """Room for the leader and the others, before any is started. Raises ConfigError."""

    def start(self, invitation: Invitation) -> RankProcess:
        """Has a process call workers.parallel.follower.follow(invitation). Raises OSError."""

    def close(self) -> None:
        """Gives back what was reserved, once all that was started is gone. Idempotent."""


class ProcessLauncher:
    """Plain processes. They ask the kernel to kill them when the thread that called start() is
    gone: it must be one that lives as long as they shall."""

    def __init__(self, envs: Sequence[Mapping[str, str]], host: str | None = None) -> None:
        """`envs`: what each rank, from 1 on, has on top of the leader's environment. `host`: an
        address of this machine to speak over, as if they were on others."""
        self.host = host
        self._envs = envs

    def reserve(self, ranks: int, on_gpu: bool) -> None:
        assert len(self._envs) == ranks - 1

    def start(self, invitation: Invitation) -> RankProcess:
        module = ("-m", "workers.parallel.follower")
        place = ("--rank", str(invitation.rank), "--leader", invitation.address)
        voice = ("--logs", invitation.voice.style, "--replica", invitation.voice.replica)
        return _Child(
            subprocess.Popen(
                [sys.executable, *module, *place, *voice, "--parent", str(os.getpid())],
                env={**os.environ, **self._envs[invitation.rank - 1], TOKEN: invitation.token},
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C in the terminal is the leader's
            )
        )

    def close(self) -> None:
        pass


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
