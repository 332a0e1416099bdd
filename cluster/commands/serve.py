"""`kvasir serve`: a cluster on this machine, until Ctrl-C or SIGTERM."""

from __future__ import annotations

import asyncio
import functools
import signal
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Annotated, Protocol

import typer
from rich.console import Console
from rich.markup import escape
from rich.status import Status

from cluster.backends.local import LocalCluster, base_url
from cluster.config import ClusterConfig, Overrides, example_config, load_config
from cluster.live_config import LiveConfig
from cluster.model_source import resolve_model
from router.flow.classes import SloConfig
from workers.core.clock import SystemClock
from workers.core.errors import ConfigError

QUIET_S = 5.0  # without a terminal, progress is a line now and then
Port = Annotated[int | None, typer.Option(min=0, max=65535, help="0 = any free port")]


def serve(
    config: Annotated[
        Path | None, typer.Option(help="cluster.yaml; without it the shipped example")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="a checkpoint directory, a Hugging Face id, or demo")
    ] = None,
    served_name: Annotated[str | None, typer.Option(help="what clients call the model")] = None,
    prefill: Annotated[int | None, typer.Option(min=1, help="prefill replicas")] = None,
    decode: Annotated[int | None, typer.Option(min=1, help="decode replicas")] = None,
    aggregated: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="replicas that do both; where the config has none: instead of its pools, or "
            "beside them if --prefill or --decode is given too",
        ),
    ] = None,
    http_port: Port = None,
    grpc_port: Port = None,
    admin_port: Port = None,
    redis_url: Annotated[str | None, typer.Option(help="use this Redis server")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, bfloat16, float32 or float16")] = None,
    log_dir: Annotated[Path | None, typer.Option(help="keep the processes' logs here")] = None,
    backend: Annotated[
        str, typer.Option(help="process, or ray: Ray Serve places and replaces the replicas")
    ] = "process",
    address: Annotated[
        str | None, typer.Option(help="of a Ray cluster to join instead of one of our own")
    ] = None,
) -> None:
    """Start Redis, the workers and the router on this machine and keep them running."""
    overrides = Overrides(
        model=model,
        served_name=served_name,
        prefill=prefill,
        decode=decode,
        aggregated=aggregated,
        http_port=http_port,
        grpc_port=grpc_port,
        admin_port=admin_port,
        redis_url=redis_url,
        dtype=dtype,
    )
    path = config or example_config()
    settings = load_config(path, overrides)
    model_dir = resolve_model(settings.model)
    screen = _Screen()
    cluster: Cluster
    if backend == "ray":
        cluster = _on_ray(settings, model_dir, screen, address)
    elif backend == "process" and address is None:
        cluster = LocalCluster(settings, model_dir, screen, log_dir=log_dir)
    else:
        raise ConfigError("--backend is process or ray; --address goes with ray")
    asyncio.run(_serve(cluster, path, overrides, settings, screen))


class Cluster(Protocol):
    """What runs while its block does."""

    def running(self) -> AbstractAsyncContextManager[ClusterConfig]: ...

    async def set_slo(self, slo: SloConfig) -> None: ...


def _on_ray(
    settings: ClusterConfig, model_dir: Path, screen: _Screen, address: str | None
) -> Cluster:
    try:
        from cluster.backends.ray_local import RayLocalCluster
    except ImportError as error:
        raise ConfigError("Ray Serve is not here: install kvasir[ray]") from error
    return RayLocalCluster(settings, model_dir, screen, address)


async def _serve(
    cluster: Cluster,
    path: Path,
    overrides: Overrides,
    settings: ClusterConfig,
    screen: _Screen,
) -> None:
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None

    def stop() -> None:
        screen.say("stopping")
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # else nohup asked us to stay
        loop.add_signal_handler(signal.SIGHUP, stop)
    try:
        with screen:
            async with cluster.running() as settled:
                screen.ready(settled)
                read = functools.partial(load_config, path, overrides)
                await LiveConfig(path, settings, read, cluster.set_slo, screen.say).follow()
    except asyncio.CancelledError:
        screen.say("stopped; nothing is left running")


class _Screen:
    """Progress on stderr (a spinner where that is a terminal), the ready line on stdout."""

    def __init__(self) -> None:
        self._clock = SystemClock()
        self._began = self._clock.now()
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._spinner = Status("starting", console=self._console)
        self._said_at = self._began
        self._waited_for = ""

    def __enter__(self) -> None:
        if self._console.is_terminal:
            self._spinner.start()

    def __exit__(self, *_: object) -> None:
        self._spinner.stop()

    def say(self, line: str) -> None:
        self._said_at = self._clock.now()
        elapsed = self._said_at - self._began
        self._console.print(f"[{elapsed:6.1f} s] {line}", markup=False)

    def waiting(self, what: str) -> None:
        if self._console.is_terminal:
            self._spinner.update(escape(what))
        elif what != self._waited_for and self._clock.now() - self._said_at > QUIET_S:
            self._waited_for = what
            self.say(what)

    def ready(self, settled: ClusterConfig) -> None:
        self._spinner.stop()
        door, grpc = settled.router, settled.router.grpc
        url = base_url(door.http, door.tls)
        key = ' -H "authorization: Bearer $KVASIR_API_KEY"' if door.api_keys is not None else ""
        print(f"kvasir ready: HTTP {url}  gRPC {grpc}  model {settled.model_name}")
        print(
            f"\n  curl -N {url}/v1/chat/completions -H 'content-type: application/json'{key} \\\n"
            f'    -d \'{{"model": "{settled.model_name}", "stream": true, "messages": '
            '[{"role": "user", "content": "What is the capital of France?"}]}\'\n',
            flush=True,
        )
