"""A Kubernetes Event for each size that is set: `kubectl describe` and many tools show them."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

from kubernetes.aio.client import CoreV1Event, V1EventSource, V1ObjectMeta, V1ObjectReference

from cluster.backends.kubernetes.api import Api, Conflict
from workers.core.clock import unix_time
from workers.core.errors import Unavailable

log = logging.getLogger("kvasir.kubernetes")

LATE_S = 2.0  # nobody waits for an Event
LONGEST = 1024  # characters of a message


class Events:
    """`why`: what the plan says, for all pools."""

    def __init__(self, api: Api, reporter: str) -> None:
        self.why: tuple[str, ...] = ()
        self._api = api
        self._reporter = reporter

    async def scaled(self, deployment: str, uid: str | None, was: int, replicas: int) -> None:
        """Without the right to it there are no Events, and all goes on. By the `uid` of the
        Deployment `kubectl describe` finds them."""
        now = datetime.fromtimestamp(unix_time(), UTC).replace(microsecond=0)
        message = f"{was} -> {replicas} replicas" + "".join(f"; {why}" for why in self.why)
        event = CoreV1Event(
            metadata=V1ObjectMeta(generate_name=f"{deployment}."),
            involved_object=V1ObjectReference(
                api_version="apps/v1",
                kind="Deployment",
                name=deployment,
                uid=uid,
                namespace=self._api.namespace,
            ),
            type="Normal",
            reason="ScaledUp" if replicas > was else "ScaledDown",
            message=message[:LONGEST],
            source=V1EventSource(component=self._reporter),
            first_timestamp=now,
            last_timestamp=now,
            count=1,
        )
        make = self._api.core.create_namespaced_event
        try:
            await self._api.call("create events", make, self._api.namespace, event, within_s=LATE_S)
        except (Conflict, Unavailable) as error:
            log.debug("no Event: %s", error)
