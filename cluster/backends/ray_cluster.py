"""A cluster on Ray: joined or started here, its applications applied, awaited and taken away.

Calls of Ray block: whoever has an event loop gives them to a thread. Ray's own patience is endless
in places, so each wait here has a deadline.
"""

from __future__ import annotations

import asyncio
import atexit
import shutil
import socket
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray import serve
from ray.serve import context
from ray.serve.schema import ApplicationStatus, ServeDeploySchema

from cluster.backends.ray_apps import App
from workers.core.errors import ConfigError

REACH_S = 5.0
START_S = 300.0  # a model of many GB is loaded
POLL_S = 0.2
STORE_BYTES = 100 << 20  # nothing of ours goes through Ray's object store
NAMESPACE = "serve"


@contextmanager
def joined(address: str) -> Iterator[None]:
    """Raises ConfigError where no cluster answers there."""
    if ":" in address and "://" not in address:
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), REACH_S).close()
        except (OSError, ValueError) as error:
            raise ConfigError(f"no Ray cluster answers at {address}: {error}") from None
    try:
        ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level="error")
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        raise ConfigError(f"cannot join the Ray cluster at {address}: {error}") from None
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def started(num_cpus: float) -> Iterator[None]:
    """A Ray of our own on this machine; `num_cpus` is only what it counts with."""
    folder = tempfile.mkdtemp(prefix="kvasir-ray-")  # its sockets have short names
    # A Ray that does not come up ends its processes when we exit, before this.
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    _start(max(1, round(num_cpus)), folder)
    try:
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def _start(num_cpus: int, folder: str) -> None:
    """Raises ConfigError: Ray gives its node 30 s, which can be too little on a busy machine."""
    try:
        ray.init(
            num_cpus=num_cpus,
            include_dashboard=False,
            object_store_memory=STORE_BYTES,
            namespace=NAMESPACE,
            _temp_dir=folder,
            log_to_driver=False,
            logging_level="error",
        )
    except Exception as error:
        raise ConfigError(f"no Ray can be started here: {error}") from error


class Applications:
    """Those that Serve's config names, ours and others'. `open()` first."""

    async def open(self) -> None:
        # Our routers have doors of their own.
        await asyncio.to_thread(serve.start, proxy_location="Disabled")

    async def nodes(self) -> list[dict[str, float]]:
        """What each node that is alive has in all."""
        found = await asyncio.to_thread(ray.nodes)
        return [dict(node["Resources"]) for node in found if node["Alive"]]

    async def there(self) -> dict[str, App]:
        """By name, as they were applied."""
        details = await asyncio.to_thread(lambda: _client().get_serve_details())
        found = {name: app.get("deployed_app_config") for name, app in _apps(details).items()}
        return {name: config for name, config in found.items() if config}

    async def apply(self, new: Sequence[App], *, without: Collection[str] = ()) -> None:
        """Adds or changes `new` and removes `without`; all others stay as they are."""
        kept = {name: app for name, app in (await self.there()).items() if name not in without}
        wanted = kept | {app["name"]: app for app in new}
        schema = ServeDeploySchema.model_validate({"applications": list(wanted.values())})
        await asyncio.to_thread(lambda: _client().deploy_apps(schema))

    async def wait_running(self, names: Collection[str], timeout_s: float = START_S) -> None:
        """Raises ConfigError with Serve's reason where one of them does not come up."""
        late = ""
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    found = [await self._status(name) for name in names]
                    late = "; ".join(
                        f"{name}: {why}" for name, (_, why) in zip(names, found, strict=True)
                    )
                    states = {state for state, _ in found}
                    if ApplicationStatus.DEPLOY_FAILED in states:
                        raise ConfigError(f"Ray Serve cannot start it: {late}")
                    if states == {ApplicationStatus.RUNNING}:
                        return
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            raise ConfigError(f"not up within {timeout_s:g} s: {late}") from None

    async def wait_gone(self, names: Collection[str], timeout_s: float) -> None:
        """Raises ConfigError where one still drains after `timeout_s`."""
        left: set[str] = set()
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    left = set(names) & set((await _statuses()).applications)
                    if not left:
                        return
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            raise ConfigError(
                f"still there after {timeout_s:g} s: {', '.join(sorted(left))}"
            ) from None

    async def close_if_empty(self) -> None:
        """Serve's own processes go too where nobody needs them."""
        if not (await _statuses()).applications:
            await asyncio.to_thread(serve.shutdown)

    async def _status(self, name: str) -> tuple[str, str]:
        app = (await _statuses()).applications.get(name)
        if app is None:
            return ApplicationStatus.NOT_STARTED, f"{name}: not there yet"
        reasons = [app.message, *(each.message for each in app.deployments.values())]
        why = " ".join(filter(None, reasons)) or str(app.status)
        return app.status, f"{name}: {why}"


def _apps(details: dict[str, Any]) -> dict[str, dict[str, Any]]:
    apps: dict[str, dict[str, Any]] = details["applications"]
    return apps


def _client() -> Any:
    return context._get_global_client()


async def _statuses() -> Any:
    return await asyncio.to_thread(serve.status)
