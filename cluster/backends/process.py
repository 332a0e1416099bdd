"""One child process: started so that it cannot outlive us, logged, and ended with its group."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """What to start. `env` comes on top of our own environment; `files` are written before each
    start, as what cleans temporary folders may have taken them."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[Path, str] = field(default_factory=dict)


class Child:
    """A running process. Its output goes to `log`, which keeps what earlier ones wrote."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path, log_start: int) -> None:
        self.log = log
        self._process = process
        self._log_start = log_start

    @classmethod
    async def start(cls, spec: ChildSpec, log_dir: Path) -> Child:
        """Raises OSError where argv[0] cannot be run, or a file or the log cannot be written."""
        _lay_out(spec, log_dir)
        log = log_dir / f"{spec.name}.log"
        parent = os.getpid()
        with log.open("ab") as out:
            log_start = out.tell()
            process = await asyncio.create_subprocess_exec(
                *spec.argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=asyncio.subprocess.STDOUT,
                env={**os.environ, **spec.env},
                start_new_session=True,  # Ctrl-C in the terminal is ours alone
                preexec_fn=lambda: _die_with(parent),
            )
        return cls(process, log, log_start)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def wait(self) -> int:
        """Exit code; negative = the signal that ended it."""
        return await self._process.wait()

    async def stop(self, grace_s: float) -> None:
        """SIGTERM, and SIGKILL for the whole group when `grace_s` is over or we are cancelled."""
        if self._process.returncode is not None:
            return
        self._process.terminate()
        try:
            async with asyncio.timeout(grace_s):
                await self._process.wait()
        except TimeoutError:
            pass  # `finally` does what is left to do
        finally:
            if self._process.returncode is None:
                os.killpg(self.pid, signal.SIGKILL)
                await self._process.wait()

    def last_words(self, lines: int = 20) -> str:
        """The end of what this process, not an earlier one, has written."""
        try:
            with self.log.open("rb") as log:
                log.seek(self._log_start)
                text = log.read().decode(errors="replace")
        except OSError as error:
            return f"(the log cannot be read: {error})"
        return "\n".join([line for line in text.splitlines() if line.strip()][-lines:])


def _lay_out(spec: ChildSpec, log_dir: Path) -> None:
    for path, text in spec.files.items():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.write_text(text)
    log_dir.mkdir(parents=True, exist_ok=True)


def exit_reason(code: int) -> str:
    """`ended with code 3` or `was killed by SIGKILL`."""
    if code >= 0:
        return f"ended with code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def _die_with(parent: int) -> None:
    """Runs in the child before exec: the kernel kills it as soon as our process is gone."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it was gone before the kernel knew
        os._exit(1)
