"""A whole cluster on a Ray that goes with us, or on one that was joined; as LocalCluster, for
`kvasir serve --backend ray`."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path

from cluster.access import Access, own_access
from cluster.admin_client import AdminClient
from cluster.backends.local import Audience, first_fault, nearby, own_redis, with_ports
from cluster.backends.ray_cluster import Applications, joined, started
from cluster.backends.ray_deploy import Deployment, delete, deploy
from cluster.backends.ray_resources import asks
from cluster.backends.run_folder import run_folder
from cluster.backends.supervisor import Supervisor
from cluster.config import ClusterConfig
from cluster.redis_server import forget
from router.flow.classes import SloConfig
from workers.core.errors import ConfigError
from workers.wire.redis_endpoint import RedisEndpoint

LOOPBACK = "127.0.0.1"


class RayLocalCluster:
    """`address` None: a Ray of our own, whose CPUs are only counted."""

    def __init__(
        self, config: ClusterConfig, model_dir: Path, audience: Audience, address: str | None
    ) -> None:
        self.config = config
        self.model_dir = model_dir
        self._audience = audience
        self._address = address
        self._admin = ""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[ClusterConfig]:
        """Yields the config with its real ports once requests are answered; then ends all of it."""
        if self._address is not None and not self.config.redis.given:
            raise ConfigError("replicas on other nodes need a Redis that they reach: set redis.url")
        config = with_ports(self.config)
        self._admin = str(nearby(config.router.grpc))
        try:
            with run_folder() as folder:
                supervisor = Supervisor(folder, self._audience.say)
                async with (
                    own_redis(config, supervisor, folder) as redis,
                    _in_thread(self._ray(config)),
                ):
                    _retake_signals()
                    async with self._deployed(config, redis):
                        supervisor.ready = True
                        yield config
        except BaseExceptionGroup as group:
            raise first_fault(group) from None

    @asynccontextmanager
    async def _deployed(self, config: ClusterConfig, redis: RedisEndpoint) -> AsyncIterator[None]:
        self._audience.say("Ray is up; Serve places the replicas")
        where = LOOPBACK if self._address is None else None
        model = str(self.model_dir) if where else config.model
        apps = Applications()
        await apps.open()
        try:
            wanted = Deployment(config, model, self.model_dir, redis, where)
            await deploy(wanted, apps, self._audience.say)
            yield
        finally:
            await delete(config, apps)
            await forget(redis, config.name)

    async def set_slo(self, slo: SloConfig) -> None:
        access = own_access(self.config.router.tls, self.config.router.api_keys)
        await asyncio.to_thread(_tell, self._admin, access, slo.model_dump_json())

    def _ray(self, config: ClusterConfig) -> AbstractContextManager[None]:
        if self._address is not None:
            return joined(self._address)
        twice = asks(config, lambda pool: 2 * pool.most)  # two versions side by side
        return started(sum(ask.count * ask.cpus for ask in twice))


@asynccontextmanager
async def _in_thread(blocking: AbstractContextManager[None]) -> AsyncIterator[None]:
    """Off the main thread Ray leaves Python's signal handlers alone."""
    await asyncio.to_thread(blocking.__enter__)
    try:
        yield
    finally:
        await asyncio.to_thread(blocking.__exit__, None, None, None)


def _retake_signals() -> None:
    """Ray's own handler in C++ prints a stack, and aborts a process that takes its time."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.getsignal(number))


def _tell(router: str, access: Access, slo: str) -> None:
    with AdminClient(router, access) as client:
        client.set_slo(slo)
