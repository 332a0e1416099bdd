"""A whole cluster as plain processes of this machine: Redis, workers, router."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

import httpx

from cluster.admin_client import AdminClient
from cluster.backends.gpus import gpu_env, visible_gpus
from cluster.backends.ports import free_ports, settle
from cluster.backends.process import ChildSpec
from cluster.backends.run_folder import MARK, run_folder
from cluster.backends.supervisor import Supervisor
from cluster.config import ClusterConfig
from cluster.redis_server import check, check_unused, registered, server_spec, wait_until_up
from router.config import Address, RouterConfig
from router.flow.classes import SloConfig
from workers.config import WorkerConfig
from workers.core.errors import ConfigError, KvasirError

REDIS_START_S = 10.0
POLL_S = 0.1
ROUTER = "router"
# `python -m workers` shall find our package, not a folder of that name where the user stands.
INSTALLED_ONLY = {"PYTHONSAFEPATH": "1"}


class Audience(Protocol):
    """Who watches the cluster come up."""

    def say(self, line: str) -> None:
        """Something happened."""

    def waiting(self, what: str) -> None:
        """Still waiting, and for what; called many times a second."""


@asynccontextmanager
async def own_redis(
    config: ClusterConfig, supervisor: Supervisor, folder: Path
) -> AsyncIterator[str]:
    """The URL of the external server, else of one that runs as long as the block."""
    if config.redis.url is not None:
        await check(config.redis.url)
        await check_unused(config.redis.url, config.name)
        yield config.redis.url
        return
    (port,) = free_ports(1)
    url = f"redis://127.0.0.1:{port}/0"
    async with supervisor.tier([server_spec(port, folder)]):
        await wait_until_up(url, REDIS_START_S)
        supervisor.say(f"redis listens on 127.0.0.1:{port}")
        yield url


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
                async with own_redis(config, supervisor, folder) as redis_url:
                    slices = config.worker_slices(
                        model_dir=self.model_dir,
                        redis_url=redis_url,
                        ports=free_ports(config.num_workers),
                    )
                    workers = _worker_specs(slices, folder)
                    router_slice = config.router_slice(
                        model=str(self.model_dir), redis_url=redis_url
                    )
                    self._router_file[folder / MARK] = router_slice.model_dump_json(indent=2)
                    self._admin = str(nearby(config.router.grpc))
                    router = _router_spec(self._router_file)
                    names = [slice_.replica for slice_ in slices]
                    self._audience.say(
                        f"starting {', '.join(names)} and the router; logs in {logs}"
                    )
                    async with supervisor.tier(workers), supervisor.tier([router]):
                        await self._until_ready(config, supervisor, redis_url, slices)
                        supervisor.ready = True
                        yield config
        except BaseExceptionGroup as group:
            raise first_fault(group) from None

    async def set_slo(self, slo: SloConfig) -> None:
        """New service classes for the router that runs, and for one that is started in its place.
        Raises Unavailable where it does not answer now."""
        for path, text in self._router_file.items():
            router = RouterConfig.model_validate_json(text).model_copy(update={"slo": slo})
            self._router_file[path] = router.model_dump_json(indent=2)
        await asyncio.to_thread(_tell, self._admin, slo.model_dump_json())

    async def _until_ready(
        self,
        config: ClusterConfig,
        supervisor: Supervisor,
        redis_url: str,
        slices: Sequence[WorkerConfig],
    ) -> None:
        """Until every replica has registered and the router can answer. The end of one of them
        cancels us."""
        # By address too: a lease may be left from somebody who had the same name.
        missing = {slice_.replica: f"{slice_.host}:{slice_.port}" for slice_ in slices}
        while missing:
            up = missing.items() & (await registered(redis_url, config.name)).items()
            for replica, _ in sorted(up):
                self._audience.say(f"{replica} is up")
                del missing[replica]
            if missing:
                self._audience.waiting(supervisor.last_line(min(missing)))
                await asyncio.sleep(POLL_S)
        url = base_url(config.router.http)
        async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
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


def base_url(address: Address) -> str:
    """Where a client on this machine reaches `address`."""
    return f"http://{nearby(address)}"


def nearby(address: Address) -> Address:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address.host, address.host)
    return Address(host=host, port=address.port)


def _tell(router: str, slo: str) -> None:
    with AdminClient(router) as client:
        client.set_slo(slo)


def with_ports(config: ClusterConfig) -> ClusterConfig:
    """The router's ports settled. Raises ConfigError where one of them is taken."""
    router = config.router
    wanted = {"grpc": router.grpc, "http": router.http, "admin": router.admin}
    settled = {key: settle(address, f"router.{key}") for key, address in wanted.items()}
    if len({address.port for address in settled.values()}) < len(settled):
        raise ConfigError("router.grpc, router.http and router.admin must have different ports")
    return config.model_copy(update={"router": router.model_copy(update=settled)})


def _worker_specs(slices: Sequence[WorkerConfig], folder: Path) -> list[ChildSpec]:
    """Every worker keeps its port when it is started again."""
    gpus = visible_gpus(os.environ)
    specs, first = [], 0
    for slice_ in slices:
        ranks = max(slice_.engine.tensor_parallel, slice_.engine.expert_parallel)
        specs.append(_worker_spec(slice_, folder, gpu_env(gpus, first, ranks)))
        first += ranks
    return specs


def _worker_spec(slice_: WorkerConfig, folder: Path, gpu: Mapping[str, str]) -> ChildSpec:
    # The file says the role too; on the command line it shows in the process list.
    path = folder / f"{slice_.replica}.json"
    return ChildSpec(
        slice_.replica,
        [sys.executable, "-m", "workers", "--role", slice_.role, "--config", str(path)],
        env={"OMP_NUM_THREADS": str(slice_.engine.threads), **gpu, **INSTALLED_ONLY},
        files={path: slice_.model_dump_json(indent=2)},
    )


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
