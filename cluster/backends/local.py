"""A whole cluster as plain processes of this machine: Redis, workers, router."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import httpx

from cluster.access import Access, own_access
from cluster.admin_client import AdminClient
from cluster.autoscaler.config import PlannerConfig, planner_slice
from cluster.backends.local_pools import INSTALLED_ONLY, LocalPools
from cluster.backends.ports import free_ports, settle
from cluster.backends.process import Child, ChildSpec
from cluster.backends.run_folder import MARK, run_folder
from cluster.backends.supervisor import Supervisor
from cluster.config import ClusterConfig
from cluster.redis_server import (
    check,
    check_unused,
    forget_orders,
    registered,
    server_spec,
    wait_until_up,
)
from router.config import Address, RouterConfig
from router.flow.classes import SloConfig
from workers.config import WorkerConfig
from workers.core.errors import ConfigError, KvasirError
from workers.wire.redis_endpoint import RedisEndpoint

REDIS_START_S = 10.0
POLL_S = 0.1
ROUTER = "router"
PLANNER = "planner"
PLANNER_STOP_S = 5.0


class Audience(Protocol):
    """Who watches the cluster come up."""

    def say(self, line: str) -> None:
        """Something happened."""

    def waiting(self, what: str) -> None:
        """Still waiting, and for what; called many times a second."""


@asynccontextmanager
async def own_redis(
    config: ClusterConfig, supervisor: Supervisor, folder: Path
) -> AsyncIterator[RedisEndpoint]:
    """The external server, else one that runs as long as the block."""
    if config.redis.given:
        await check(config.redis)
        await check_unused(config.redis, config.name)
        await forget_orders(config.redis, config.name)
        yield config.redis
        return
    (port,) = free_ports(1)
    own = RedisEndpoint(url=f"redis://127.0.0.1:{port}/0")
    async with supervisor.tier([server_spec(port, folder)]):
        await wait_until_up(own, REDIS_START_S)
        supervisor.say(f"redis listens on 127.0.0.1:{port}")
        yield own


class LocalCluster:
    """`model_dir` is a local checkpoint; `log_dir` None = a folder that goes with us."""

    def __init__(
        self,
        config: ClusterConfig,
        model_dir: Path,
        audience: Audience,
        *,
        log_dir: Path | None = None,
    ) -> None:
        self.config = config
        self.model_dir = model_dir
        self._audience = audience
        self._log_dir = log_dir
        self._router_file: dict[Path, str] = {}  # its slice, also when it is started again
        self._planner_file: dict[Path, str] = {}  # the same
        self._children: Mapping[str, Child] = {}
        self._admin = ""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[ClusterConfig]:
        """Yields the config with its real ports once requests are answered; then ends everything.

        Raises ConfigError: a port is taken, Redis is unreachable, or a process cannot start.
        """
        config = with_ports(self.config)
        try:
            with run_folder() as folder:
                logs = _made(self._log_dir or folder / "logs")
                supervisor = Supervisor(logs, self._audience.say)
                async with own_redis(config, supervisor, folder) as redis:
                    pools = LocalPools(config, self.model_dir, redis, folder, supervisor)
                    router_slice = config.router_slice(model=str(self.model_dir), redis=redis)
                    self._router_file[folder / MARK] = router_slice.model_dump_json(indent=2)
                    self._admin = str(nearby(config.router.grpc))
                    doors = [_router_spec(self._router_file)]
                    if config.planner.mode != "off":
                        doors.append(self._planner_spec(config, redis, folder))
                    names = [slice_.replica for slice_ in pools.first]
                    self._audience.say(
                        f"starting {', '.join(names)} and the router; logs in {logs}"
                    )
                    async with pools.running() as workers, supervisor.tier(doors):
                        await self._until_ready(config, supervisor, redis, pools.first)
                        supervisor.ready = True
                        self._children = supervisor.children
                        async with _beside(pools.follow(workers)):
                            yield config
        except BaseExceptionGroup as group:
            raise first_fault(group) from None

    def _access(self) -> Access:
        return own_access(self.config.router.tls, self.config.router.api_keys)

    async def set_slo(self, slo: SloConfig) -> None:
        """New service classes for the router that runs, and for one that is started in its place.
        Raises Unavailable where it does not answer now."""
        for path, text in self._router_file.items():
            router = RouterConfig.model_validate_json(text).model_copy(update={"slo": slo})
            self._router_file[path] = router.model_dump_json(indent=2)
        await asyncio.to_thread(_tell, self._admin, self._access(), slo.model_dump_json())
        for path, text in self._planner_file.items():
            planner = PlannerConfig.model_validate_json(text).model_copy(update={"slo": slo})
            self._planner_file[path] = planner.model_dump_json(indent=2)
            # It begins anew: what it learnt for long stands in Redis.
            await self._children[PLANNER].stop(PLANNER_STOP_S)

    def _planner_spec(self, config: ClusterConfig, redis: RedisEndpoint, folder: Path) -> ChildSpec:
        slice_ = planner_slice(
            config,
            model=str(self.model_dir),
            redis=redis,
            routers=[str(nearby(config.router.grpc))],
        )
        path = folder / "planner.json"
        self._planner_file[path] = slice_.model_dump_json(indent=2)
        return ChildSpec(
            PLANNER,
            [sys.executable, "-m", "cluster.autoscaler", "--config", str(path)],
            env=INSTALLED_ONLY,
            files=self._planner_file,
        )

    async def _until_ready(
        self,
        config: ClusterConfig,
        supervisor: Supervisor,
        redis: RedisEndpoint,
        slices: Sequence[WorkerConfig],
    ) -> None:
        """Until every replica has registered and the router can answer. The end of one of them
        cancels us."""
        # By address too: a lease may be left from somebody who had the same name.
        missing = {slice_.replica: f"{slice_.host}:{slice_.port}" for slice_ in slices}
        while missing:
            up = missing.items() & (await registered(redis, config.name)).items()
            for replica, _ in sorted(up):
                self._audience.say(f"{replica} is up")
                del missing[replica]
            if missing:
                self._audience.waiting(supervisor.last_line(min(missing)))
                await asyncio.sleep(POLL_S)
        url = base_url(config.router.http, config.router.tls)
        verify = own_access(config.router.tls, None).context()
        async with httpx.AsyncClient(base_url=url, trust_env=False, verify=verify) as client:
            while True:
                if await _is_healthy(client):
                    return
                self._audience.waiting(supervisor.last_line(ROUTER))
                await asyncio.sleep(POLL_S)


async def _is_healthy(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get("/health")).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False  # not listening yet


def base_url(address: Address, tls: object | None = None) -> str:
    """Where a client on this machine reaches `address`."""
    return f"{'https' if tls else 'http'}://{nearby(address)}"


def nearby(address: Address) -> Address:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address.host, address.host)
    return Address(host=host, port=address.port)


def _tell(router: str, access: Access, slo: str) -> None:
    with AdminClient(router, access) as client:
        client.set_slo(slo)


def with_ports(config: ClusterConfig) -> ClusterConfig:
    """The router's ports settled. Raises ConfigError where one of them is taken."""
    router = config.router
    wanted = {"grpc": router.grpc, "http": router.http, "admin": router.admin}
    settled = {key: settle(address, f"router.{key}") for key, address in wanted.items()}
    if len({address.port for address in settled.values()}) < len(settled):
        raise ConfigError("router.grpc, router.http and router.admin must have different ports")
    settled_config = config.model_copy(update={"router": router.model_copy(update=settled)})
    if config.planner.mode == "off":
        return settled_config
    port = settle(
        Address(host=config.planner.host, port=config.planner.metrics_port), "planner.metrics_port"
    ).port
    planner = config.planner.model_copy(update={"metrics_port": port})
    return settled_config.model_copy(update={"planner": planner})


@asynccontextmanager
async def _beside(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """`work` runs while the block does."""
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(work)
        try:
            yield
        finally:
            task.cancel()


def _router_spec(files: Mapping[Path, str]) -> ChildSpec:
    """`files`: its slice."""
    (path,) = files
    return ChildSpec(
        ROUTER,
        [sys.executable, "-m", "router", "--config", str(path)],
        env=INSTALLED_ONLY,
        files=files,
    )


def _made(logs: Path) -> Path:
    try:
        logs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot write to {logs}: {error.strerror}") from None
    return logs.resolve()


def first_fault(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Tiers fail as groups; the caller wants the one error of ours in it, or else all of them."""
    ours = group.subgroup(KvasirError)
    while isinstance(ours, BaseExceptionGroup):
        ours = ours.exceptions[0]  # type: ignore[assignment]
    return ours or group
