"""Worker processes for measuring, started as a backend starts them."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from workers.peer_client import CHANNEL_OPTIONS
from workers.wire import worker_pb2 as worker
from workers.wire import worker_pb2_grpc as worker_grpc
from workers.wire.decode_client import DecodeClient, DecodeStream
from workers.wire.tls import open_channel

HOST = "127.0.0.1"
START_S = 120.0
END_S = 10.0


class BenchWorker:
    """One `python -m workers`, whose log stands in `folder`. `stub` speaks to it."""

    def __init__(self, folder: Path, name: str, model: str, config: Mapping[str, Any]) -> None:
        self.port = config.get("port") or _free_port()
        self.stub: Any = None
        self._decodes: DecodeClient | None = None
        slice_file = folder / f"{name}-{self.port}.json"
        named = {"replica": name, "pool": name, "model": model, "port": self.port}
        slice_file.write_text(json.dumps(named | dict(config)))
        self._log = slice_file.with_suffix(".log")
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "workers", "--config", str(slice_file)],
                stdout=log,
                stderr=log,
            )

    async def ready(self) -> None:
        self._channel = open_channel(f"{HOST}:{self.port}", CHANNEL_OPTIONS, None)
        self.stub = worker_grpc.WorkerStub(self._channel)
        self._decodes = DecodeClient(self.stub.Decode)
        up = asyncio.ensure_future(self._channel.channel_ready())
        async with asyncio.timeout(START_S):
            while not up.done():
                await asyncio.wait({up}, timeout=0.1)
                assert self._process.poll() is None, f"no worker: {self._log.read_text()}"

    def decode(self, request: worker.DecodeRequest) -> DecodeStream:
        """A call of its Decode stream."""
        assert self._decodes is not None
        return self._decodes.start(request)

    async def idle(self) -> None:
        """Until no page is referenced and no ticket open."""
        watch = self.stub.Watch(worker.WatchRequest(interval_s=0.01))
        async for report in watch:
            if not report.blocks_used and not report.tickets_open:
                break
        watch.cancel()

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        self._process.send_signal(number)

    async def end(self) -> None:
        if self._decodes is not None:
            await self._decodes.close()
            await self._channel.close()
        self.kill(signal.SIGCONT)
        self.kill(signal.SIGTERM)
        try:
            await asyncio.to_thread(self._process.wait, END_S)
        except subprocess.TimeoutExpired:
            self.kill()
            self._process.wait()


@asynccontextmanager
async def workers(
    folder: Path, model: str, **configs: Mapping[str, Any]
) -> AsyncIterator[dict[str, BenchWorker]]:
    """By name; `configs` are slices of WorkerConfig with at least a role."""
    made = {name: BenchWorker(folder, name, model, config) for name, config in configs.items()}
    try:
        await asyncio.gather(*(each.ready() for each in made.values()))
        yield made
    finally:
        await asyncio.gather(*(each.end() for each in made.values()))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
