"""Starts a system, waits until it serves, and ends every process of it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from cluster.bench.client import Sample, Target
from cluster.bench.runner import Run
from cluster.bench.workload import Job
from load_tests.peers import machine, workloads
from load_tests.peers.systems import MODEL_NAME, System
from workers.core.clock import SystemClock

START_S, STOP_S, SILENCE_S, CONNECT_S = 900.0, 30.0, 900.0, 60.0


class PeerFailed(RuntimeError):
    """A system that did not come up, or broke while it was measured."""


@dataclass(slots=True)
class Running:
    """A system that serves. `target` is None where it has no port; then only batches can be run.
    `samples(jobs)`: all at once, one sample each, in any order."""

    pid: int
    start_s: float
    samples: Callable[[Sequence[Job]], Any]
    target: Target | None


@asynccontextmanager
async def running(system: System, port: int, log: Path) -> AsyncIterator[Running]:
    """Raises PeerFailed with the end of the log."""
    _prepare(system, log)
    clock = SystemClock()
    began = clock.now()
    process = _start(system, log)
    try:
        if system.ready is None:
            await _answer(process, log)
            batch = _Batches(process, log, clock)
            yield Running(process.pid, clock.now() - began, batch.samples, None)
        else:
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
            async with httpx.AsyncClient(
                base_url=f"http://127.0.0.1:{port}",
                timeout=httpx.Timeout(SILENCE_S, connect=CONNECT_S),
                limits=limits,
                trust_env=False,
            ) as client:
                await _until_ready(client, system.ready, process, log, clock)
                target = Target(client, clock, MODEL_NAME)
                server = _Server(target, clock)
                yield Running(process.pid, clock.now() - began, server.samples, target)
    finally:
        await _stop(process)


def _start(system: System, log: Path) -> subprocess.Popen[bytes]:
    lines = subprocess.PIPE if system.ready is None else None
    with log.open("ab") as output:
        return subprocess.Popen(
            system.command,
            env={**os.environ, **system.env},
            stdin=lines or subprocess.DEVNULL,
            stdout=lines or output,
            stderr=output,
            start_new_session=True,
        )


def _prepare(system: System, log: Path) -> None:
    if system.prepare and not (system.makes and system.makes.exists()):
        with log.open("ab") as output:
            done = subprocess.run(system.prepare, stdout=output, stderr=output)
        if done.returncode:
            raise PeerFailed(f"{system.name}: cannot be prepared\n{_tail(log)}")


async def _until_ready(
    client: httpx.AsyncClient,
    path: str,
    process: subprocess.Popen[bytes],
    log: Path,
    clock: SystemClock,
) -> None:
    deadline = clock.now() + START_S
    while clock.now() < deadline:
        if process.poll() is not None:
            raise PeerFailed(f"ended with {process.returncode} while starting\n{_tail(log)}")
        try:
            if (await client.get(path, timeout=5.0)).status_code == 200:
                return
        except httpx.HTTPError:
            pass  # nobody listens yet
        await asyncio.sleep(0.2)
    raise PeerFailed(f"not ready after {START_S:.0f} s\n{_tail(log)}")


async def _stop(process: subprocess.Popen[bytes]) -> None:
    """Asks as a terminal would; what of it is left after STOP_S is killed."""
    tree = machine.descendants(process.pid)
    if process.stdin is not None:
        process.stdin.close()
    elif process.poll() is None:
        process.send_signal(signal.SIGINT)
    try:
        await asyncio.to_thread(process.wait, STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for _ in range(20):  # children end after their parent
        left = [pid for pid, started in tree.items() if machine.still_there(pid, started)]
        if not left:
            return
        await asyncio.sleep(0.1)
    for pid in left:
        os.kill(pid, signal.SIGKILL)


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-15:])


class _Server:
    def __init__(self, target: Target, clock: SystemClock) -> None:
        self._target = target
        self._clock = clock

    async def samples(self, jobs: Sequence[Job]) -> list[Sample]:
        run = Run(self._target, self._clock, lambda: None)
        await run.open_loop(jobs)
        return run.samples


class _Batches:
    def __init__(self, process: subprocess.Popen[bytes], log: Path, clock: SystemClock) -> None:
        self._process = process
        self._log = log
        self._clock = clock

    async def samples(self, jobs: Sequence[Job]) -> list[Sample]:
        assert self._process.stdin is not None
        work = {"prompts": workloads.prompts(jobs), "output_tokens": jobs[0].output_tokens}
        self._process.stdin.write(json.dumps(work).encode() + b"\n")
        self._process.stdin.flush()
        answer = await _answer(self._process, self._log)
        return [
            Sample(
                due=answer["sent"],
                sent=answer["sent"],
                arrivals=arrivals,
                ended=answer["ended"],
                input_tokens=job.input_tokens,
                output_tokens=len(arrivals),
            )
            for job, arrivals in zip(jobs, answer["arrivals"], strict=True)
        ]


async def _answer(process: subprocess.Popen[bytes], log: Path) -> dict[str, Any]:
    assert process.stdout is not None
    line = await asyncio.to_thread(process.stdout.readline)
    if not line:
        raise PeerFailed(f"ended without an answer\n{_tail(log)}")
    answer: dict[str, Any] = json.loads(line)
    return answer
