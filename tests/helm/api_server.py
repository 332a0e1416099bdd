"""A stand-in for a Kubernetes API server: enough of it for Helm's engine to install a chart.

It has the objects it is told of, and takes every one that comes.
"""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

CORE = "Pod Service ServiceAccount ConfigMap Secret PersistentVolumeClaim Namespace".split()
BUILT_IN = {
    "apps/v1": "Deployment StatefulSet".split(),
    "batch/v1": ["Job"],
    "policy/v1": ["PodDisruptionBudget"],
    "networking.k8s.io/v1": "NetworkPolicy Ingress".split(),
    "rbac.authorization.k8s.io/v1": "Role RoleBinding".split(),
    "coordination.k8s.io/v1": ["Lease"],
}
CUSTOM = {
    "ray.io/v1": ["RayService"],
    "monitoring.coreos.com/v1": "ServiceMonitor PodMonitor PrometheusRule".split(),
}

KUBECONFIG = """\
apiVersion: v1
kind: Config
current-context: c
clusters: [{{name: c, cluster: {{server: "{url}"}}}}]
contexts: [{{name: c, context: {{cluster: c, user: u}}}}]
users: [{{name: u, user: {{}}}}]
"""


class ApiServer:
    """On a free port of 127.0.0.1 until stop(). `minor`: of Kubernetes 1.x. `objects`: those that
    are there already, by path."""

    def __init__(self, minor: int, objects: dict[str, object]) -> None:
        groups = {"v1": CORE, **BUILT_IN, **CUSTOM}

        class Handler(_Handler):
            answers = _discovery(minor, groups) | objects

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def kubeconfig(self) -> str:
        return KUBECONFIG.format(url=self.url)

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    answers: dict[str, object]

    def do_GET(self) -> None:
        answer = self.answers.get(self.path.partition("?")[0])
        if answer is None:
            status = {"kind": "Status", "apiVersion": "v1", "status": "Failure"}
            self._say(404, json.dumps(status | {"reason": "NotFound", "code": 404}).encode())
        else:
            self._say(200, json.dumps(answer).encode())

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self._say(201, body, self.headers["Content-Type"])

    def do_PATCH(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def do_DELETE(self) -> None:
        self._say(200, b'{"kind": "Status", "apiVersion": "v1", "status": "Success"}')

    def _say(self, status: int, body: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def _discovery(minor: int, groups: dict[str, list[str]]) -> dict[str, object]:
    answers: dict[str, object] = {
        "/version": {"major": "1", "minor": str(minor), "gitVersion": f"v1.{minor}.0"},
        "/api": {"kind": "APIVersions", "versions": ["v1"]},
    }
    listed = []
    for version, kinds in groups.items():
        path = f"/apis/{version}" if "/" in version else f"/api/{version}"
        answers[path] = {
            "kind": "APIResourceList",
            "groupVersion": version,
            "resources": [_resource(kind) for kind in kinds],
        }
        if "/" in version:
            name, _, short = version.partition("/")
            here = {"groupVersion": version, "version": short}
            listed.append({"name": name, "versions": [here], "preferredVersion": here})
    answers["/apis"] = {"kind": "APIGroupList", "apiVersion": "v1", "groups": listed}
    return answers


def _resource(kind: str) -> dict[str, object]:
    plural = kind.lower()
    plural = plural[:-1] + "ies" if plural.endswith("y") else plural + "s"
    verbs = ["create", "delete", "get", "list", "patch", "update", "watch"]
    return {
        "name": plural,
        "singularName": kind.lower(),
        "namespaced": True,
        "kind": kind,
        "verbs": verbs,
    }
