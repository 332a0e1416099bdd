"""A real Prometheus that scrapes what it is told, and what it answers."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from cluster.backends.ports import free_ports

RULES = Path(__file__).parents[2] / "helm" / "kvasir" / "rules"
PATIENCE_S = 60.0


def binary(name: str) -> str:
    path = shutil.which(name)
    assert path is not None, f"{name} is missing: apt-get install prometheus (as .ci/run does)"
    return path


class Prometheus:
    def __init__(self, url: str) -> None:
        self._http = httpx.Client(base_url=url, timeout=20, trust_env=False)

    def api(self, path: str, **params: str) -> Any:
        answer = self._http.get(f"/api/v1/{path}", params=params)
        assert answer.status_code == 200, f"{params}: {answer.text}"
        return answer.json()["data"]

    def query(self, expr: str) -> list[tuple[dict[str, str], float]]:
        """Labels and value of each series."""
        found = self.api("query", query=expr)
        if found["resultType"] == "scalar":
            return [({}, float(found["result"][1]))]
        return [(each["metric"], float(each["value"][1])) for each in found["result"]]

    def value(self, expr: str) -> float | None:
        found = self.query(expr)
        assert len(found) <= 1, f"{expr}: {found}"
        return found[0][1] if found else None

    def until(self, what: Callable[[], object], wanting: Callable[[], object] = str) -> Any:
        """What it gives once that is true: scrapes come once a second. `wanting`: what is told
        where it never is."""
        deadline = time.monotonic() + PATIENCE_S
        while not (found := what()):
            assert time.monotonic() < deadline, f"it never came to be so {wanting()}"
            time.sleep(0.2)
        return found

    def until_all_have_data(self, queries: Mapping[str, str]) -> None:
        """By what they are called: rules are evaluated after the scrapes that they are made of."""
        waiting = dict(queries)

        def over() -> bool:
            for name in [name for name, expr in waiting.items() if self.query(expr)]:
                del waiting[name]
            return not waiting

        self.until(over, lambda: waiting)

    def is_up(self) -> bool:
        try:
            return self._http.get("/-/ready").status_code == 200
        except httpx.TransportError:
            return False


@contextmanager
def prometheus(folder: Path, targets: Mapping[str, list[str] | str]) -> Iterator[Prometheus]:
    """`targets`: host:port of each job, or a URL that says them. Our rules are loaded, and looked
    at once a second."""
    (port,) = free_ports(1)
    config = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(RULES / "*.yaml")],
        "scrape_configs": [
            {
                "job_name": job,
                **(
                    {"http_sd_configs": [{"url": hosts, "refresh_interval": "5s"}]}
                    if isinstance(hosts, str)
                    else {"static_configs": [{"targets": hosts}]}
                ),
            }
            for job, hosts in targets.items()
        ],
    }
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(config))
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen(
            [
                binary("prometheus"),
                f"--config.file={path}",
                f"--storage.tsdb.path={folder / 'tsdb'}",
                f"--web.listen-address=127.0.0.1:{port}",
                "--enable-feature=exemplar-storage",
                "--log.level=warn",
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        server = Prometheus(f"http://127.0.0.1:{port}")
        server.until(server.is_up)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(20)
        finally:
            process.kill()
            process.wait()
