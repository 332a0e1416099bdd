"""A running cluster with the demo model, a real Prometheus that scrapes it, and a real receiver of
its traces: what docs/metrics.md, docs/telemetry.md and the dashboards say of them."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.serving import PATIENCE_S, Serving, kvasir_serve
from tests.telemetry.documented import OPENMETRICS, documented, exported
from tests.telemetry.prometheus import Prometheus, prometheus
from tests.telemetry.receiver import Receiver, Tree, receiver
from tests.telemetry.test_traces import check_sums

ROUNDS, EACH = 2, 4
TOKENS = 12
PROMPT = "the same words again and again " * 12
DASHBOARDS = sorted((Path(__file__).parents[2] / "helm" / "kvasir" / "dashboards").glob("*.json"))
ADMIN_AT = re.compile(r"admin (127\.0\.0\.1:\d+)")

pytestmark = pytest.mark.timeout(300)  # a cluster, a Prometheus, and their first minute


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
            jobs = {"router": targets["router"], "others": others_at(targets)}
            with prometheus(folder, jobs) as server:
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
    """The router says in its log where it is, and knows where the others are: the planner after
    its first plan."""
    (admin,) = ADMIN_AT.findall((cluster.log_dir / "router.log").read_text())
    found: dict[str, list[str]] = {}
    deadline = time.monotonic() + PATIENCE_S
    while found.keys() != {"router", "worker", "planner"}:
        assert time.monotonic() < deadline, found
        time.sleep(0.2)
        found = {"router": [admin]}
        for group in httpx.get(others_at(found)).json():
            job = "worker" if "replica" in group["labels"] else "planner"
            found.setdefault(job, []).extend(group["targets"])
    return found


def others_at(targets: Mapping[str, list[str]]) -> str:
    return f"http://{targets['router'][0]}/metrics/targets"


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
    prompts = sum(used["prompt_tokens"] for used in usage)
    assert sum(cached) > 0
    expected = {
        "kvasir_ttft_seconds_count": count,
        "kvasir_first_gap_seconds_count": count,
        "kvasir_itl_seconds_count": count * (TOKENS - 1),
        "kvasir_e2e_seconds_count": count,
        "kvasir_output_tokens_total": count * TOKENS,
        "kvasir_prompt_tokens_total": prompts,
        "kvasir_prefix_hit_tokens_total": sum(cached),
        'kvasir_admissions_total{class="standard",outcome="admitted",tenant="other"}': count,
        "kvasir_slo_results_total": count,
        'kvasir_ways_total{way="split"}': count,
        'kvasir_pair_handoffs_total{sender="prefill-0",receiver="decode-0"}': count,
        "kvasir_worker_prefill_compute_seconds_count": count,
        "kvasir_worker_transfer_seconds_count": count,
        "kvasir_worker_decode_batch_seqs_sum": count * (TOKENS - 1),
        "kvasir_worker_prefill_tokens_total": prompts - sum(cached),
        "kvasir_replica_up": 2,
        "kvasir_requests_in_flight": 0,
        "kvasir_queued": 0,
        "kvasir_redis_up": 1,
    }

    def found() -> dict[str, float]:
        return {expr: scene.grown(expr) for expr in expected}

    scene.server.until(lambda: found() == expected, found)  # each is scraped at its own moment
    scene.server.until(lambda: scene.grown("kvasir_planner_plans_total") > 0)


def test_workers_and_the_planner_are_found_through_the_router(scene: Scene) -> None:
    """By Prometheus itself, which names workers on each of their series."""
    found = {
        (labels.get("pool"), labels.get("replica")): up
        for labels, up in scene.server.query('up{job="others"}')
    }
    assert found == {("prefill", "prefill-0"): 1, ("decode", "decode-0"): 1, (None, None): 1}
    by_replica = scene.server.query("kvasir_worker_prefill_compute_seconds_count > 0")
    assert [labels["replica"] for labels, _ in by_replica] == ["prefill-0"]


def test_every_panel_of_every_dashboard_has_data(scene: Scene) -> None:
    queries = {}
    for path in DASHBOARDS:
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", ()):
                if target["datasource"]["type"] != "prometheus":
                    continue
                expr = target["expr"].replace("$__rate_interval", "1m")
                expr = re.sub(r"\$(class|replica)\b", ".*", expr)
                queries[f"{path.name}: {panel['title']}: {expr}"] = expr
    assert len(queries) > 50
    scene.server.until_all_have_data(queries)


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
    span = {"start": str(now - 600), "end": str(now + 600)}

    def dots(metric: str) -> set[str]:
        found = scene.server.api("query_exemplars", query=metric, **span)
        return {dot["labels"]["trace_id"] for each in found for dot in each["exemplars"]}

    for metric in ("kvasir_ttft_seconds_bucket", "kvasir_worker_transfer_seconds_bucket"):
        assert scene.server.until(lambda: dots(metric)) <= set(scene.traces)  # noqa: B023


def test_every_line_of_the_logs_is_an_object(scene: Scene) -> None:
    for name in ("router", "prefill-0", "decode-0", "planner"):
        lines = (scene.cluster.log_dir / f"{name}.log").read_text().splitlines()
        told = [json.loads(line) for line in lines if not line.startswith("kvasir ")]
        assert told, name
        for line in told:
            assert {"time", "level", "logger", "message"} <= line.keys()
            assert line["process"] == name
