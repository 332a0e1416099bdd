"""What a list and a watch say is there, kept up to date whatever becomes of the watch."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Any

import aiohttp
from kubernetes.aio.client import ApiException
from kubernetes.aio.watch import Watch

from cluster.backends.kubernetes.api import Api, Denied, Gone, Make
from cluster.backends.kubernetes.measures import Measures
from workers.core.errors import Unavailable

log = logging.getLogger("kvasir.kubernetes")

WATCH_S = 60  # then the server ends it, and it goes on from there
SILENT_S = 15.0  # beyond that: the connection is dead
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0


class Mirror:
    """Objects of one kind with the labels `selector`, by name. `changed` hears of each change."""

    def __init__(
        self,
        api: Api,
        resource: str,
        make: Make[Any],
        selector: str,
        changed: Callable[[], None],
        measures: Measures,
        rng: random.Random,
    ) -> None:
        """`make`: a list_namespaced_... of the API."""
        self.objects: dict[str, Any] = {}
        self.listed = asyncio.Event()
        self._api = api
        self._resource = resource
        self._make = make
        self._selector = selector
        self._changed = changed
        self._measures = measures
        self._rng = rng

    async def run(self) -> None:
        """List, watch from there on, and again with a list where the server has forgotten what we
        saw last. Until cancelled; what is there stays known meanwhile."""
        failures = 0
        while True:
            try:
                version = await self._list()
                while True:
                    version = await self._follow(version)
                    failures = 0  # not before: a list is dear to who refuses watches
            except Gone:
                self._measures.relists.labels(self._resource, "gone").inc()
            except Denied:
                failures += 1
            except Unavailable as error:
                log.warning("%s cannot be followed now: %s", self._resource, error)
                self._measures.relists.labels(self._resource, "unavailable").inc()
                failures += 1
            most = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**failures)
            await asyncio.sleep(most * self._rng.uniform(0.5, 1.0))

    async def _list(self) -> str:
        """The version to watch from."""
        found = await self._api.call(
            f"list {self._resource}",
            self._make,
            self._api.namespace,
            label_selector=self._selector,
        )
        self.objects = {item.metadata.name: item for item in found.items}
        self.listed.set()
        self._changed()
        return str(found.metadata.resource_version)

    async def _follow(self, version: str) -> str:
        """One watch, and the version at its end. Raises Gone, Denied and Unavailable."""
        watch = Watch()
        try:
            events = watch.stream(
                self._make,
                self._api.namespace,
                label_selector=self._selector,
                resource_version=version,
                allow_watch_bookmarks=True,
                timeout_seconds=WATCH_S,
                _request_timeout=WATCH_S + SILENT_S,
            )
            async for event in events:
                if not isinstance(event, dict):
                    break  # half a line: the server went away while it wrote
                self._take(event["type"], event["object"])
        except ApiException as error:
            if error.status == 410:
                raise Gone(str(error.reason)) from None
            if error.status == 403:
                raise self._api.denied(f"watch {self._resource}", str(error.reason)) from None
            raise Unavailable(f"watch {self._resource}: {error.reason}") from None
        except (KeyError, ValueError) as error:  # an object of which it would break each time
            raise Unavailable(
                f"watch {self._resource}: what came cannot be read: {error}"
            ) from None
        except (aiohttp.ClientError, TimeoutError) as error:
            # It broke off: what was seen last still holds, or is Gone.
            log.debug("the watch of %s broke off: %s", self._resource, error)
            self._measures.retries.labels("watch").inc()
        finally:
            await watch.close()
        await asyncio.sleep(FIRST_PAUSE_S * self._rng.uniform(0.5, 1.0))
        return str(watch.resource_version)

    def _take(self, kind: str, item: Any) -> None:
        if kind in ("ADDED", "MODIFIED"):
            self.objects[item.metadata.name] = item
            self._changed()
        elif kind == "DELETED":
            self.objects.pop(item.metadata.name, None)
            self._changed()
