"""A small Kubernetes API server on 127.0.0.1, over real HTTP: Deployments with their scale, pods,
Leases and Events, list and watch with resource versions, and a controller that makes and deletes
pods as the ReplicaSet controller would. It can throttle, forbid, forget old versions and go silent.

Who asks is known by the bearer token, which is the name of the planner.
"""

from __future__ import annotations

import asyncio
import copy
import json
import re
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from aiohttp import web

NAMESPACE = "serving"
RELEASE = "chat"
WORKERS = "app.kubernetes.io/name=kvasir,app.kubernetes.io/component=worker"
PATH = re.compile(
    r"^/(?:api/v1|apis/[a-z0-9.]+/v1)/namespaces/(?P<namespace>[^/]+)"
    r"/(?P<resource>[a-z]+)(?:/(?P<name>[^/]+))?(?:/(?P<sub>[a-z]+))?$"
)
KINDS = {"deployments": "Deployment", "pods": "Pod", "leases": "Lease", "events": "Event"}
VERBS = {"GET": "get", "PUT": "update", "PATCH": "patch", "POST": "create"}
Object = dict[str, Any]


@dataclass
class Trouble:
    """For the next `times` calls of `call`, `update deployments/scale` for one."""

    call: str
    times: int
    status: int
    retry_after: str | None = None


@dataclass
class Asked:
    who: str
    call: str
    name: str | None
    at: float
    body: Any = None
    status: int = 0


@dataclass
class StandIn:
    port: int = 0
    version: int = 100
    oldest: int = 0  # watches from before it are Gone
    objects: dict[str, dict[str, Object]] = field(
        default_factory=lambda: {resource: {} for resource in KINDS}
    )
    asked: list[Asked] = field(default_factory=list)
    troubles: list[Trouble] = field(default_factory=list)
    forbidden: set[str] = field(default_factory=set)  # calls
    silent: set[str] = field(default_factory=set)  # planners that get no answer
    deletes: bool = True  # whether the controller is there
    makes: bool = True
    deleted: list[str] = field(default_factory=list)
    held_by: list[tuple[str, str]] = field(default_factory=list)  # (who scaled, who had the Lease)
    watchers: list[tuple[str, asyncio.Queue[Object | None]]] = field(default_factory=list)
    log: list[tuple[int, str, Object]] = field(default_factory=list)

    # -- what a test does ------------------------------------------------------------------------

    def deploy(self, pool: str, replicas: int) -> None:
        name = f"{RELEASE}-{pool}"
        labels = self._labels(pool)
        self._put("deployments", "ADDED", {
            "metadata": {"name": name, "uid": f"uid-{pool}", "labels": labels, "generation": 1},
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": {"containers": []}},
            },
            "status": {
                "replicas": replicas, "updatedReplicas": replicas, "observedGeneration": 1,
            },
        })  # fmt: skip
        self.control(pool)

    def size(self, pool: str) -> int:
        return int(self.objects["deployments"][f"{RELEASE}-{pool}"]["spec"]["replicas"])

    def pods(self, pool: str) -> list[str]:
        return sorted(
            name
            for name, pod in self.objects["pods"].items()
            if pod["metadata"]["labels"]["kvasir.dev/pool"] == pool
        )

    def change(self, resource: str, name: str, **parts: Object) -> None:
        """Somebody else does: `parts` are merged into it."""
        changed = copy.deepcopy(self.objects[resource][name])
        for part, values in parts.items():
            changed.setdefault(part, {}).update(values)
        self._put(resource, "MODIFIED", changed)

    def remove(self, resource: str, name: str) -> None:
        self._tell(resource, "DELETED", self.objects[resource].pop(name))

    def set_ready(self, pod: str, ready: bool) -> None:
        self.change("pods", pod, status=_status(self.ip(pod), ready))

    def ip(self, pod: str) -> str:
        return str(self.objects["pods"][pod]["status"]["podIP"])

    def scale(self, pool: str, replicas: int) -> None:
        self.change("deployments", f"{RELEASE}-{pool}", spec={"replicas": replicas})
        self.control(pool)

    def calls(self, call: str, who: str | None = None, name: str | None = None) -> list[Asked]:
        return [
            each
            for each in self.asked
            if each.call == call and who in (None, each.who) and name in (None, each.name)
        ]

    def holder(self, name: str = f"{RELEASE}-planner") -> str:
        lease = self.objects["leases"].get(name)
        return lease["spec"].get("holderIdentity") or "" if lease else ""

    def forget(self) -> None:
        """What came before is compacted away; who still watches from there is told."""
        self.oldest = self.version = self.version + 1
        self.log.clear()
        for resource, queue in self.watchers:
            queue.put_nowait(_gone(resource))

    def hang_up(self) -> None:
        """Every watch ends in the middle of a line."""
        for _, queue in self.watchers:
            queue.put_nowait(None)

    def bookmark(self) -> None:
        self.version += 1
        for resource, queue in self.watchers:
            head = {"kind": KINDS[resource], "metadata": {"resourceVersion": str(self.version)}}
            queue.put_nowait({"type": "BOOKMARK", "object": head})

    # -- the controller --------------------------------------------------------------------------

    def control(self, pool: str) -> None:
        wanted = self.size(pool)
        there = [p for p in self.pods(pool) if not self._pod(p).get("deletionTimestamp")]
        for number in range(len(there), wanted if self.makes else 0):
            self._make_pod(pool, number)
        if self.deletes:
            for name in sorted(there, key=self._rank)[: max(0, len(there) - wanted)]:
                self.deleted.append(name)
                self.remove("pods", name)

    def _rank(self, name: str) -> tuple[bool, int, bool, int, int]:
        """The order of Kubernetes' ActivePodsWithRanks, as far as we have what it looks at: not
        assigned, pending, not ready, the lower cost, the newer."""
        pod = self.objects["pods"][name]
        status, notes = pod["status"], pod["metadata"]["annotations"]
        return (
            bool(pod["spec"].get("nodeName")),
            ["Pending", "Unknown", "Running"].index(status["phase"]),
            status["conditions"][0]["status"] == "True",
            int(notes.get("controller.kubernetes.io/pod-deletion-cost", "0")),
            -int(name.rpartition("-")[2], 16),
        )

    def _make_pod(self, pool: str, number: int) -> None:
        self.version += 1
        name = f"{RELEASE}-{pool}-{self.version:x}"
        self._put("pods", "ADDED", {
            "metadata": {"name": name, "labels": self._labels(pool), "annotations": {}},
            "spec": {"nodeName": "node-1", "containers": []},
            "status": _status(f"10.0.{self.version >> 8}.{self.version & 255}", True),
        })  # fmt: skip

    def _pod(self, name: str) -> Object:
        return dict(self.objects["pods"][name]["metadata"])

    def _labels(self, pool: str) -> dict[str, str]:
        return {
            "app.kubernetes.io/name": "kvasir",
            "app.kubernetes.io/instance": RELEASE,
            "app.kubernetes.io/component": "worker",
            "kvasir.dev/pool": pool,
        }

    # -- storage ---------------------------------------------------------------------------------

    def _put(self, resource: str, kind: str, item: Object) -> Object:
        self.version += 1
        item["metadata"]["resourceVersion"] = str(self.version)
        item["metadata"].setdefault("namespace", NAMESPACE)
        self.objects[resource][item["metadata"]["name"]] = item
        self._tell(resource, kind, item)
        return item

    def _tell(self, resource: str, kind: str, item: Object) -> None:
        if kind == "DELETED":
            self.version += 1
            item["metadata"]["resourceVersion"] = str(self.version)
        event = {"type": kind, "object": copy.deepcopy(item)}
        self.log.append((self.version, resource, event))
        for watched, queue in self.watchers:
            if watched == resource:
                queue.put_nowait(event)

    # -- HTTP ------------------------------------------------------------------------------------

    async def handle(self, request: web.Request) -> web.StreamResponse:
        found = PATH.match(request.path)
        assert found is not None, request.path
        assert found["namespace"] == NAMESPACE
        who = request.headers.get("Authorization", "")[len("Bearer ") :]
        resource, name, sub = found["resource"], found["name"], found["sub"]
        verb = VERBS[request.method]
        if verb == "get" and name is None:
            verb = "watch" if request.query.get("watch") else "list"
        call = f"{verb} {resource}/{sub}" if sub else f"{verb} {resource}"
        dry = "dry run: " if "dryRun" in request.query else ""
        body = json.loads(await request.read() or "null")
        asked = Asked(who, dry + call, name, asyncio.get_running_loop().time(), body)
        self.asked.append(asked)
        if who in self.silent:
            await asyncio.sleep(3600)
        response = self._refusal(call, who)
        if response is None and verb == "watch":
            return await self._watch(request, resource)
        if response is None:
            response = self._answer(verb, who, resource, name, sub, body, request.query)
        asked.status = response.status
        return response

    def _refusal(self, call: str, who: str) -> web.Response | None:
        if call in self.forbidden:
            return _failure(403, f'{call} is forbidden: User "{who}" cannot {call}')
        for trouble in self.troubles:
            if trouble.call == call and trouble.times > 0:
                trouble.times -= 1
                return _failure(trouble.status, "not now", trouble.retry_after)
        return None

    def _answer(
        self,
        verb: str,
        who: str,
        resource: str,
        name: str | None,
        sub: str | None,
        body: Any,
        query: Mapping[str, str],
    ) -> web.Response:
        there = self.objects[resource]
        if verb == "list":
            assert query["labelSelector"] == WORKERS
            return _json({
                "kind": f"{KINDS[resource]}List",
                "metadata": {"resourceVersion": str(self.version)},
                "items": list(there.values()),
            })  # fmt: skip
        if verb == "create":
            named = body["metadata"].get("name")
            if named in there:
                return _failure(409, f"{resource} {named!r} already exists")
            self.version += 1
            body["metadata"]["name"] = (
                named or f"{body['metadata']['generateName']}{self.version:x}"
            )
            return _json(self._put(resource, "ADDED", body), 201)
        if name not in there:
            return _failure(404, f"{resource} {name!r} not found")
        if verb == "get":
            return _json(_scale(there[name]) if sub == "scale" else there[name])
        if verb == "patch":
            notes = body["metadata"]["annotations"]
            self.change(resource, name, metadata={"annotations": notes})
            return _json(there[name])
        if body["metadata"]["resourceVersion"] != there[name]["metadata"]["resourceVersion"]:
            return _failure(409, f"{name}: the object has been modified")
        if query.get("dryRun") == "All":
            return _json(_scale(there[name]))
        if sub == "scale":
            self.held_by.append((who, self.holder()))
            self.scale(name.removeprefix(f"{RELEASE}-"), body["spec"].get("replicas", 0))
            return _json(_scale(there[name]))
        return _json(self._put(resource, "MODIFIED", body))

    async def _watch(self, request: web.Request, resource: str) -> web.StreamResponse:
        since = int(request.query["resourceVersion"])
        response = web.StreamResponse()
        response.content_type = "application/json"
        await response.prepare(request)
        queue: asyncio.Queue[Object | None] = asyncio.Queue()
        entry = (resource, queue)
        if since < self.oldest:
            queue.put_nowait(_gone(resource))
        for version, kind, event in self.log:
            if kind == resource and version > since:
                queue.put_nowait(event)
        self.watchers.append(entry)
        try:
            with suppress(ConnectionError):
                while (event := await queue.get()) is not None:
                    await response.write(json.dumps(event).encode() + b"\n")
                    if event["type"] == "ERROR":
                        return response
                await response.write(b'{"type": "ADDED", "obj')
        finally:
            self.watchers.remove(entry)
        return response


def _status(ip: str, ready: bool) -> Object:
    conditions = [{"type": "Ready", "status": "True" if ready else "False"}]
    return {"phase": "Running", "podIP": ip, "conditions": conditions}


def _scale(deployment: Object) -> Object:
    meta = deployment["metadata"]
    return {
        "kind": "Scale",
        "metadata": {key: meta[key] for key in ("name", "namespace", "uid", "resourceVersion")},
        "spec": {"replicas": deployment["spec"]["replicas"]},
        "status": {"replicas": deployment["spec"]["replicas"]},
    }


def _gone(resource: str) -> Object:
    status = {"kind": "Status", "code": 410, "reason": "Expired", "message": f"{resource}: too old"}
    return {"type": "ERROR", "object": status}


def _json(body: Object, status: int = 200) -> web.Response:
    return web.json_response(body, status=status)


def _failure(status: int, message: str, retry_after: str | None = None) -> web.Response:
    body = {"kind": "Status", "code": status, "message": message}
    headers = {"Retry-After": retry_after} if retry_after else {}
    return web.json_response(body, status=status, headers=headers)


@asynccontextmanager
async def stand_in(certificate: ssl.SSLContext | None = None) -> AsyncIterator[StandIn]:
    server = StandIn()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=certificate)
    await site.start()
    server.port = runner.addresses[0][1]
    try:
        yield server
    finally:
        await runner.cleanup()


def kubeconfig(folder: Path, server: StandIn, who: str) -> Path:
    path = folder / f"{who}.kubeconfig"
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.port}"}}],
        "users": [{"name": "u", "user": {"token": who}}],
    }
    path.write_text(yaml.safe_dump(config))
    return path
