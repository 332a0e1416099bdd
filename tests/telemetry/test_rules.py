"""Rules, alerts and dashboards as their tools read them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from cluster.backends.kubernetes.measures import Measures
from tests.telemetry.documented import documented
from tests.telemetry.prometheus import RULES, binary

ROOT = Path(__file__).parents[2]
DASHBOARDS = sorted((ROOT / "helm" / "kvasir" / "dashboards").glob("*.json"))
RUNBOOK = ROOT / "docs" / "guide" / "runbook.md"
CASES: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "alerts.yaml").read_text())
ALERTS: dict[str, Any] = {
    rule["alert"]: rule
    for group in yaml.safe_load((RULES / "alerts.yaml").read_text())["groups"]
    for rule in group["rules"]
}


def promtool(*arguments: object) -> None:
    done = subprocess.run(
        [binary("promtool"), *map(str, arguments)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_takes_the_rules() -> None:
    promtool("check", "rules", *sorted(RULES.glob("*.yaml")))


def test_each_alert_fires_on_what_it_is_for_and_not_before(tmp_path: Path) -> None:
    """Where it fires is what its case says and nothing else, so a replica, class or instance that
    is well beside one that is not stays silent."""
    assert CASES.keys() == ALERTS.keys()
    tests = {
        "rule_files": [str(RULES / "recording.yaml"), str(without_annotations(tmp_path))],
        "evaluation_interval": "1m",
        "tests": [case(name) for name in ALERTS],
    }
    path = tmp_path / "tests.yaml"
    path.write_text(yaml.safe_dump(tests))
    promtool("test", "rules", path)


def without_annotations(folder: Path) -> Path:
    """What alerts say to people has the value in it; promtool would compare it."""
    rules = [{k: v for k, v in rule.items() if k != "annotations"} for rule in ALERTS.values()]
    path = folder / "alerts.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "alerts", "rules": rules}]}))
    return path


def case(name: str) -> dict[str, Any]:
    minutes = int(CASES[name]["for"].removesuffix("m"))
    rule, labels = ALERTS[name], CASES[name].get("labels", {})
    labels = {"severity": rule["labels"]["severity"], **labels}
    series = [{"series": key, "values": values} for key, values in CASES[name]["series"].items()]
    return {
        "interval": "1m",
        "input_series": series or [{"series": "nothing", "values": "0x60"}],
        # A minute later: what it looks at must itself have been recorded first.
        "alert_rule_test": [
            {"eval_time": f"{minutes - 1}m", "alertname": name, "exp_alerts": []},
            {
                "eval_time": f"{minutes + 2}m",
                "alertname": name,
                "exp_alerts": [{"exp_labels": labels}],
            },
        ],
    }


@pytest.mark.parametrize("name", ALERTS)
def test_each_alert_has_a_place_in_the_runbook(name: str) -> None:
    annotations = ALERTS[name]["annotations"]
    assert annotations["runbook"] == f"docs/guide/runbook.md#{name.lower()}"
    headings = [line.lstrip("# ") for line in RUNBOOK.read_text().splitlines() if line[:1] == "#"]
    assert name in headings


def test_metrics_of_the_planner_on_kubernetes_are_documented() -> None:
    registry = CollectorRegistry()
    Measures(registry)
    found = {
        f"{family.name}_total" if family.type == "counter" else family.name: family
        for family in registry.collect()
    }
    said = documented("Planner on Kubernetes")
    assert found.keys() == said.keys()
    for name, family in found.items():
        assert (family.type, family.documentation) == (said[name].kind, said[name].meaning)


def test_dashboards_ask_for_documented_metrics_and_recorded_figures() -> None:
    """That their queries give data is shown on a running cluster."""
    assert len(DASHBOARDS) == 4
    ids = set()
    for path in DASHBOARDS:
        page = json.loads(path.read_text())
        ids.add(page["uid"])
        panels = [panel for panel in page["panels"] if panel["type"] != "row"]
        assert panels and len({panel["id"] for panel in page["panels"]}) == len(page["panels"])
        for panel in panels:
            assert panel["title"] and panel["targets"]
            assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
            for target in panel["targets"]:
                assert target["datasource"]["uid"].startswith("${"), "the reader's own source"
    assert len(ids) == len(DASHBOARDS)
