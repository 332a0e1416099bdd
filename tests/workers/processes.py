"""Worker processes for tests: started as a backend starts them, ended by their own pids."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio

from router.worker_client import CHANNEL_OPTIONS
from tests.redis_server import free_port
from workers.wire import worker_pb2 as worker
from workers.wire import worker_pb2_grpc as worker_grpc
from workers.wire.decode_client import DecodeClient

START_S = 150.0
GRACE_S = 2.0  # a test that failed has left requests there


class WorkerProcess:
    """One `python -m workers`. `stub` speaks to it; `decode` starts a call of its Decode
    stream."""

    def __init__(self, folder: Path, replica: str, role: str, model: Path, **config: Any) -> None:
        self.port = free_port()
        slice_file = folder / f"{replica}-{self.port}.json"
        slice_file.write_text(
            json.dumps(
                {
                    "replica": replica,
                    "pool": role,
                    "role": role,
                    "model": str(model),
                    "port": self.port,
                    "grace_s": GRACE_S,
                }
                | config
            )
        )
        self.log = slice_file.with_suffix(".log")
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "workers", "--config", str(slice_file)],
                stdout=log,
                stderr=log,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
        self._channel = grpc.aio.insecure_channel(f"127.0.0.1:{self.port}", CHANNEL_OPTIONS)
        self.stub = worker_grpc.WorkerStub(self._channel)
        self._decodes = DecodeClient(self.stub.Decode)
        self.decode = self._decodes.start

    async def ready(self) -> None:
        try:
            await asyncio.wait_for(self._channel.channel_ready(), START_S)
        except TimeoutError:
            raise AssertionError(f"no worker: {self.log.read_text()}") from None

    async def report(self) -> worker.LoadReport:
        watch = self.stub.Watch(worker.WatchRequest())
        report: worker.LoadReport = await watch.read()
        watch.cancel()
        return report

    async def idle(self) -> worker.LoadReport:
        """Wait until no page is referenced and no ticket open."""
        async with asyncio.timeout(20):
            while True:
                report = await self.report()
                if not report.blocks_used and not report.tickets_open:
                    return report
                await asyncio.sleep(0.1)

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        self.process.send_signal(number)

    async def end(self) -> int:
        """SIGTERM and its exit code; SIGKILL after ten seconds, which fails."""
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        await self._decodes.close()
        await self._channel.close()
        try:
            return await asyncio.to_thread(self.process.wait, 10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"it would not end: {self.log.read_text()}") from None


@asynccontextmanager
async def workers(folder: Path, model: Path, **roles: dict[str, Any]) -> AsyncIterator[Any]:
    """`workers(tmp, model, p={"role": "prefill"}, d={"role": "decode", ...})` by name."""
    started = {
        name: WorkerProcess(folder, name, model=model, **config) for name, config in roles.items()
    }
    try:
        await asyncio.gather(*(process.ready() for process in started.values()))
        yield started
    finally:
        codes = await asyncio.gather(*(process.end() for process in started.values()))
        for (name, process), code in zip(started.items(), codes, strict=True):
            assert code in (0, -signal.SIGKILL), f"{name}: {code}: {process.log.read_text()}"
