"""A running cluster with the demo model, a real Prometheus that scrapes it, and a real receiver of
its traces: what docs/metrics.md, docs/telemetry.md and the dashboards say of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.serving import Serving, kvasir_serve
from tests.telemetry.documented import OPENMETRICS, documented, exported
from tests.telemetry.prometheus import Prometheus, prometheus
from tests.telemetry.receiver import Receiver, Tree, receiver
from tests.telemetry.test_traces import check_sums

ROUNDS, EACH = 2, 4
TOKENS = 12
PROMPT = "the same words again and again " * 12
DASHBOARDS = sorted((Path(__file__).parents[2] / "helm" / "kvasir" / "dashboards").glob("*.json"))
METRICS_AT = re.compile(r"metrics on (?:http://127\.0\.0\.1:|port )(\d+)")


@dataclass
class Scene:
    cluster: Serving
    server: Prometheus
    got: Receiver
    targets: dict[str, list[str]]
    answers: list[httpx.Response]

    @property
    def traces(self) -> list[str]:
        return [answer.headers["traceparent"].split("-")[1] for answer in self.answers]

    def grown(self, expr: str) -> float:
        """Everything here is new, so what counts is the sum of it."""
        return self.server.value(f"sum({expr})") or 0.0


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("telemetry")
    with receiver() as (got, endpoint):
        changes = {
            "telemetry": {"otlp_endpoint": endpoint, "sample_ratio": 1.0, "logs": "json"},
            "planner": {"mode": "advise", "every_s": 1.0, "metrics_port": 0},
        }
        with kvasir_serve(folder, changes=changes) as cluster:
            targets = find_targets(cluster)
            with prometheus(folder, targets) as server:
                scene = Scene(cluster, server, got, targets, [])
                every = sum(len(hosts) for hosts in targets.values())
                server.until(lambda: server.value("sum(up)") == every)
                with httpx.Client(base_url=cluster.url, timeout=60, trust_env=False) as http:
                    for _ in range(ROUNDS):
                        scene.answers += [ask(http, cluster, number) for number in range(EACH)]
                        count = len(scene.answers)
                        ended = 'kvasir_requests_total{outcome="ok"}'
                        server.until(lambda: scene.grown(ended) == count)  # noqa: B023
                yield scene


def ask(http: httpx.Client, cluster: Serving, number: int) -> httpx.Response:
    body = {"model": cluster.model, "prompt": f"{number} {PROMPT}", "max_tokens": TOKENS}
    answer = http.post("/v1/completions", json=body | {"ignore_eos": True})
    assert answer.status_code == 200, answer.text
    return answer


def find_targets(cluster: Serving) -> dict[str, list[str]]:
    """The admin port as the router's log has it; workers and planner say theirs in their logs."""
    found: dict[str, list[str]] = {"router": [cluster.url.removeprefix("http://")]}
    for name, job in (("prefill-0", "worker"), ("decode-0", "worker"), ("planner", "planner")):
        ports = METRICS_AT.findall((cluster.log_dir / f"{name}.log").read_text())
        assert ports, f"{name} does not say where its metrics are"
        found.setdefault(job, []).append(f"127.0.0.1:{ports[-1]}")
    return found


@pytest.mark.parametrize("job", ["router", "worker", "planner"])
def test_what_is_documented_is_exported_and_what_is_exported_is_documented(
    scene: Scene, job: str
) -> None:
    table = documented(job.capitalize())
    for host in scene.targets[job]:
        page = exported(httpx.get(f"http://{host}/metrics", headers=OPENMETRICS).text)
        assert page.keys() == table.keys()
        for name, metric in page.items():
            said = table[name]
            assert (metric.kind, metric.meaning) == (said.kind, said.meaning), name
            assert not metric.labels or set(metric.labels) == set(said.labels), name


def test_metrics_move_as_the_load_says(scene: Scene) -> None:
    count = ROUNDS * EACH
    usage = [answer.json()["usage"] for answer in scene.answers]
    cached = [used["prompt_tokens_details"]["cached_tokens"] for used in usage]
    assert sum(cached) > 0
    expected = {
        "kvasir_ttft_seconds_count": count,
        "kvasir_first_gap_seconds_count": count,
        "kvasir_itl_seconds_count": count * (TOKENS - 1),
        "kvasir_e2e_seconds_count": count,
        "kvasir_output_tokens_total": count * TOKENS,
        "kvasir_prompt_tokens_total": sum(used["prompt_tokens"] for used in usage),
        "kvasir_prefix_hit_tokens_total": sum(cached),
        'kvasir_admissions_total{class="standard",outcome="admitted",tenant="other"}': count,
        "kvasir_slo_results_total": count,
        'kvasir_ways_total{way="split"}': count,
        'kvasir_pair_handoffs_total{sender="prefill-0",receiver="decode-0"}': count,
        "kvasir_worker_prefill_compute_seconds_count": count,
        "kvasir_worker_transfer_seconds_count": count,
        "kvasir_requests_in_flight": 0,
        "kvasir_queued": 0,
        "kvasir_redis_up": 1,
    }
    found = {expr: scene.grown(expr) for expr in expected}
    assert found == expected
    decodes = scene.grown("kvasir_worker_decode_batch_seqs_sum")
    assert decodes == count * (TOKENS - 1)
    computed = scene.grown("kvasir_worker_prefill_tokens_total")
    assert computed == expected["kvasir_prompt_tokens_total"] - sum(cached)
    assert scene.grown("kvasir_planner_plans_total") > 0
    assert scene.grown("kvasir_replica_up") == 2


def test_every_panel_of_every_dashboard_has_data(scene: Scene) -> None:
    asked, empty = 0, []
    for path in DASHBOARDS:
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", ()):
                if target["datasource"]["type"] != "prometheus":
                    continue
                expr = target["expr"].replace("$__rate_interval", "1m")
                expr = re.sub(r"\$(class|replica)\b", ".*", expr)
                asked += 1
                if not scene.server.query(expr):
                    empty.append(f"{path.name}: {panel['title']}: {expr}")
    assert asked > 50
    assert not empty, "\n".join(empty)


def test_rules_are_evaluated_and_nothing_is_alarming(scene: Scene) -> None:
    rules = [rule for group in scene.server.api("rules")["groups"] for rule in group["rules"]]
    assert {rule["type"] for rule in rules} == {"recording", "alerting"}
    assert not [rule["name"] for rule in rules if rule["health"] != "ok"]
    critical = [
        rule["name"]
        for rule in rules
        if rule["type"] == "alerting" and rule["labels"]["severity"] == "critical"
    ]
    assert len(critical) > 4
    firing = {alert["labels"]["alertname"] for alert in scene.server.api("alerts")["alerts"]}
    assert not firing & set(critical)


def test_each_request_is_one_tree_and_its_parts_sum(scene: Scene) -> None:
    for answer, trace in zip(scene.answers, scene.traces, strict=True):
        tree = scene.got.tree(trace)
        request = request_of(tree)
        check_sums(tree, request)
        assert request.attributes["gen_ai.response.id"] == answer.json()["id"]
        assert request.attributes["gen_ai.usage.output_tokens"] == TOKENS
        compute, transfer = tree.one("prefill compute"), tree.one("transfer")
        assert compute.seconds > 0 and transfer.seconds > 0
        assert tree.parent(compute).resource["service.instance.id"] == "prefill-0"
        assert tree.parent(transfer).resource["service.instance.id"] == "decode-0"
        second_s = tree.sum_of("ttft") + tree.sum_of("first_gap")
        assert second_s < answer.elapsed.total_seconds(), "more than its client waited"
        parts: dict[str, Any] = {s.name for s in tree.spans if "kvasir.part" in s.attributes}
        assert {"tokenise", "prefill queue", "prefill compute", "first decode step"} <= set(parts)


def request_of(tree: Tree) -> Any:
    (found,) = [s for s in tree.spans if s.name.startswith("text_completion ")]
    return found


def test_dots_of_dashboards_lead_to_traces_that_came(scene: Scene) -> None:
    now = float(scene.server.api("query", query="time()")["result"][1])
    for metric in ("kvasir_ttft_seconds_bucket", "kvasir_worker_transfer_seconds_bucket"):
        found = scene.server.api(
            "query_exemplars", query=metric, start=str(now - 600), end=str(now)
        )
        ids = {dot["labels"]["trace_id"] for each in found for dot in each["exemplars"]}
        assert ids and ids <= set(scene.traces), metric


def test_every_line_of_the_logs_is_an_object(scene: Scene) -> None:
    for name in ("router", "prefill-0", "decode-0", "planner"):
        lines = (scene.cluster.log_dir / f"{name}.log").read_text().splitlines()
        told = [json.loads(line) for line in lines if not line.startswith("kvasir ")]
        assert told, name
        for line in told:
            assert {"time", "level", "logger", "message"} <= line.keys()
            assert line["process"] == name
