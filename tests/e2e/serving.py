"""The real `kvasir serve` for tests: started, asked, looked into, and ended."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import yaml

from cluster.admin_client import AdminClient
from cluster.config import example_config
from tests.cluster.processes import children
from workers.core.errors import Unavailable
from workers.wire import admin_pb2 as admin
from workers.wire import worker_pb2 as worker
from workers.wire import worker_pb2_grpc

READY = re.compile(r"^kvasir ready: HTTP (\S+)  gRPC (\S+)  model (\S+)$")
KVASIR = (sys.executable, "-c", "from cluster.cli import main; main()")
ANY_PORTS = ("--http-port=0", "--grpc-port=0", "--admin-port=0")
PATIENCE_S = 60.0  # a restarted worker imports torch, which takes its time on a busy machine
COMMAND_S = 200.0  # of a command that imports as much, and starts workers that do


@dataclass
class Serving:
    process: subprocess.Popen[str]
    url: str
    grpc: str
    model: str
    log_dir: Path
    workers: int

    def pid_of(self, what: str) -> int:
        """Of the child whose command line has `what`: `--role decode`, `redis-server`, ..."""
        found = [pid for pid, command in children(self.process.pid).items() if what in command]
        assert len(found) == 1, f"{what}: {found}"
        return found[0]

    def kill(self, what: str) -> int:
        pid = self.pid_of(what)
        os.kill(pid, signal.SIGKILL)
        return pid

    @property
    def redis_url(self) -> str:
        pid = self.pid_of("redis-server")
        (port,) = re.findall(r":(\d+)", children(self.process.pid)[pid])
        return f"redis://127.0.0.1:{port}/0"

    def status(self) -> admin.StatusResponse:
        with AdminClient(self.grpc) as client:
            return client.status()

    async def all_up(self) -> None:
        """Until all replicas and Redis are there, and the router has heard of it."""
        await self.until(
            lambda now: now.redis_up and [r.up for r in now.replicas] == [True] * self.workers
        )

    async def idle(self) -> None:
        """Until nothing is held any more: every page free or cached, no ticket open."""
        await self.until(
            lambda now: (
                now.requests_in_flight == 0
                and not any(_busy(fresh_report(r.load.replica.address)) for r in now.replicas)
            )
        )
        with AdminClient(self.grpc) as client:
            assert not any(replica.held.tickets for replica in client.tickets().replicas)

    async def until(
        self, holds: Callable[[admin.StatusResponse], object], within_s: float = PATIENCE_S
    ) -> None:
        """Load reports come twice a second, so what is true shows a little later. A router that
        is being started again does not answer at all."""
        now: object = None
        try:
            async with asyncio.timeout(within_s):
                while True:
                    try:
                        now = status = self.status()
                        if holds(status):
                            return
                    except Unavailable as error:
                        now = error
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise AssertionError(f"it never came to be so; at the end:\n{now}") from None


def fresh_report(address: str) -> worker.LoadReport:
    """The worker's own word; what the router knows may be half a second old."""
    with grpc.insecure_channel(address) as channel:
        reports = worker_pb2_grpc.WorkerStub(channel).Watch(worker.WatchRequest(), timeout=10)
        report: worker.LoadReport = next(reports)
        reports.cancel()
        return report


def _busy(load: worker.LoadReport) -> bool:
    return bool(load.running or load.waiting or load.blocks_used or load.tickets_open)


@contextmanager
def kvasir_serve(
    folder: Path, *arguments: str, workers: int = 2, changes: Mapping[str, Any] | None = None
) -> Iterator[Serving]:
    """The example config with `arguments`, which make it so many `workers`, and with a router that
    waits long for a worker, as restarts are slow on a busy machine, and leaves no request to one
    worker alone. `changes`: sections of the config in which keys are set anew, and whole lists.

    Runs until the block ends; its progress and its processes' logs stay in `folder`."""
    config = yaml.safe_load(example_config().read_text())
    config["router"]["limits"] = {"worker_wait_s": PATIENCE_S, "retry_s": PATIENCE_S}
    config["router"]["disaggregation"] = "remote"  # each request is handed over
    for section, keys in (changes or {}).items():
        if isinstance(keys, list):
            config[section] = keys
        else:
            config.setdefault(section, {}).update(keys)
    path = folder / "cluster.yaml"
    path.write_text(yaml.safe_dump(config))
    argv = [*KVASIR, "serve", *ANY_PORTS, f"--log-dir={folder}", f"--config={path}", *arguments]
    with until_ready(folder, argv) as (process, ready):
        yield Serving(process, *ready, folder, workers)


@contextmanager
def until_ready(
    folder: Path,
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    stop_s: float = PATIENCE_S,
) -> Iterator[tuple[subprocess.Popen[str], tuple[str, str, str]]]:
    """`kvasir serve` with its HTTP and gRPC address and its model, once it says them. SIGTERM when
    the block ends, SIGKILL `stop_s` later. What it says else goes to serve.err in `folder`."""
    with (folder / "serve.err").open("w") as errors:
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=errors, text=True, env=env)
    assert process.stdout is not None
    try:
        found = None
        while found is None:
            line = process.stdout.readline()
            assert line, (folder / "serve.err").read_text()
            found = READY.match(line.rstrip("\n"))
        yield process, (found[1], found[2], found[3])
    finally:
        process.terminate()
        try:
            process.wait(stop_s)
        finally:
            process.kill()
            process.stdout.close()
            process.wait()


def refused_serve(*arguments: str) -> str:
    """What `kvasir serve` says on stderr when it cannot start: exit code 2, nothing on stdout."""
    done = subprocess.run(
        [*KVASIR, "serve", *arguments], capture_output=True, text=True, timeout=COMMAND_S
    )
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    return done.stderr


def kvasir(*arguments: str, text: str = "") -> str:
    """What one of the other commands prints; it must succeed."""
    done = subprocess.run(
        [*KVASIR, *arguments], input=text, capture_output=True, text=True, timeout=COMMAND_S
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
