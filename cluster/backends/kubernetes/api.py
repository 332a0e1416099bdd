"""Calls to the Kubernetes API: each with a deadline, made again where the server asks for it."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
from kubernetes.aio import config as kube_config
from kubernetes.aio.client import (
    ApiClient,
    ApiException,
    AppsV1Api,
    Configuration,
    CoordinationV1Api,
    CoreV1Api,
)

from cluster.backends.kubernetes.measures import Measures
from workers.core.clock import Clock
from workers.core.errors import ConfigError, Unavailable

log = logging.getLogger("kvasir.kubernetes")
T = TypeVar("T")
Make = Callable[..., Awaitable[T]]

CALL_S = 5.0  # one attempt
DEADLINE_S = 20.0  # all of them
FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 5.0
AGAIN = (429, 500, 502, 503, 504)
READ_BYTES = 1 << 20  # a line of a watch is an object with all that its managers noted


class Missing(Unavailable):
    """There is no such object."""


class Denied(Unavailable):
    """RBAC does not allow it."""


class Conflict(Exception):
    """Somebody else has changed it since it was read, or made it."""


class Gone(Exception):
    """The server no longer knows that resource version."""


class Api:
    """`apps`, `core` and `coordination` name the calls, `call` makes them."""

    def __init__(
        self,
        client: ApiClient,
        namespace: str,
        measures: Measures,
        clock: Clock,
        rng: random.Random,
    ) -> None:
        self.client = client
        self.namespace = namespace
        self.apps = AppsV1Api(client)
        self.core = CoreV1Api(client)
        self.coordination = CoordinationV1Api(client)
        self._measures = measures
        self._clock = clock
        self._rng = rng
        self._said: set[str] = set()  # what was denied

    async def call(
        self, resource: str, make: Make[T], *args: Any, within_s: float = DEADLINE_S, **more: Any
    ) -> T:
        """make(*args), again after 429, 5xx and broken connections, as late as the server wants and
        with jitter. `resource`: as RBAC has it, with the verb. Raises Missing, Denied, Conflict,
        Gone, and Unavailable once `within_s` is over."""
        deadline, attempt = self._clock.now() + within_s, 0
        while True:
            try:
                left = max(0.05, min(CALL_S, deadline - self._clock.now()))
                made = await make(*args, **more, _request_timeout=left)
                self._said.discard(resource)
                return made
            except ApiException as error:
                why, asked_s = self._meant(resource, error), _retry_after(error)
            except (aiohttp.ClientError, TimeoutError) as error:
                why, asked_s = f"connection: {error or 'no answer in time'}", 0.0
            self._measures.retries.labels(why.partition(":")[0]).inc()
            most = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**attempt)
            pause = max(asked_s, most * self._rng.uniform(0.5, 1.0))
            attempt += 1
            if self._clock.now() + pause >= deadline:
                raise Unavailable(f"{resource}: the Kubernetes API does not serve us: {why}")
            await asyncio.sleep(pause)

    def _meant(self, resource: str, error: ApiException) -> str:
        """Why another attempt may do. Raises what else it means."""
        message = _message(error)
        if error.status in AGAIN:
            return f"{error.status}: {message}"
        if error.status == 404:
            raise Missing(f"{resource}: {message}") from None
        if error.status == 409:
            self._measures.conflicts.inc()
            raise Conflict(message) from None
        if error.status == 410:
            raise Gone(message) from None
        if error.status == 403:
            raise self.denied(resource, message) from None
        if error.status == 401:  # an old token, until the kubelet's new one is read
            raise Unavailable(f"{resource}: the Kubernetes API does not know us: {message}")
        raise Unavailable(f"{resource}: refused with {error.status}: {message}") from None

    def denied(self, resource: str, message: str) -> Denied:
        """Counted, and said once, until it is allowed."""
        self._measures.denied.labels(resource).inc()
        if resource not in self._said:
            self._said.add(resource)
            log.error(
                "not allowed: %s in namespace %s; the planner goes on advising. Its Role lacks the "
                "rule: %s",
                *(resource, self.namespace, message),
            )
        return Denied(f"{resource}: {message}")


@asynccontextmanager
async def connected(
    namespace: str,
    kubeconfig: Path | None,
    measures: Measures,
    clock: Clock,
    rng: random.Random,
) -> AsyncIterator[Api]:
    """`kubeconfig` None: with the service account of our pod, else as kubectl would. Raises
    ConfigError."""
    settings = Configuration()
    try:
        if kubeconfig is None and "KUBERNETES_SERVICE_HOST" in os.environ:
            kube_config.load_incluster_config(settings)
        else:
            usual = os.environ.get("KUBECONFIG") or Path.home() / ".kube" / "config"
            await kube_config.load_kube_config(
                str(kubeconfig or usual), client_configuration=settings
            )
    except (kube_config.ConfigException, OSError) as error:
        raise ConfigError(f"no way to the Kubernetes API: {error}") from None
    settings.client_session_kwargs = {"read_bufsize": READ_BYTES}
    async with ApiClient(settings) as client:
        yield Api(client, namespace, measures, clock, rng)


def _retry_after(error: ApiException) -> float:
    """Seconds that the server asks for."""
    try:
        return max(0.0, float((error.headers or {}).get("Retry-After", 0)))
    except ValueError:
        return 0.0  # a date: no API server says one


def _message(error: ApiException) -> str:
    """Of the Status object, where there is one."""
    try:
        return str(json.loads(error.body or "")["message"])
    except (ValueError, KeyError, TypeError):
        return str(error.reason)
