"""Who may speak to whom, as a cluster with NetworkPolicies would have it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helm.conftest import Object, Outcome, Pods, Rendered, pods_of, selects
from tests.helm.variants import EXAMPLES, OPTIONS

OPEN = ("open",)  # variants without policies


@pytest.fixture(params=[name for name in (*OPTIONS, *EXAMPLES) if name not in OPEN])
def rendered(request: pytest.FixtureRequest, outcome: Outcome) -> Rendered:
    return outcome.variants[request.param]


@pytest.fixture
def policies(rendered: Rendered) -> list[Object]:
    return rendered.of_kind("NetworkPolicy")


def test_policies_can_be_left_out(outcome: Outcome) -> None:
    for name in OPEN:
        assert not outcome.variants[name].of_kind("NetworkPolicy")


def test_policies_select_every_pod_in_both_directions(
    rendered: Rendered, policies: list[Object]
) -> None:
    pods = [*pods_of(rendered), _test_pod(rendered)]
    for each in pods:
        kinds = {kind for policy in _of(policies, each) for kind in policy["spec"]["policyTypes"]}
        assert kinds == {"Ingress", "Egress"}, each.name


def test_requests_find_their_way(rendered: Rendered, policies: list[Object]) -> None:
    ports = rendered.config().get("ports", {})
    worker, low, high = ports.get("worker", 9100), 1024, 65535
    if ports.get("transfer"):
        low, high = map(int, ports["transfer"].split("-"))
    ray = bool(rendered.of_kind("RayService"))
    for workers in _of_component(rendered, "worker"):
        for router in _of_component(rendered, "router"):
            assert _may(policies, router, workers, 30000 if ray else worker)
        for other in _of_component(rendered, "worker"):
            assert _may(policies, workers, other, worker)
            assert _may(policies, workers, other, low)
            assert _may(policies, workers, other, high)
    for planner in _of_component(rendered, "planner"):
        for router in _of_component(rendered, "router"):
            assert _may(policies, planner, router, 9000)
        for workers in _of_component(rendered, "worker"):
            assert _may(policies, planner, workers, worker)
    for router in _of_component(rendered, "router"):
        assert _may(policies, _test_pod(rendered), router, 8000)
    for redis in _of_component(rendered, "redis"):
        for component in ("worker", "router", "planner", "head"):
            for pods in _of_component(rendered, component):
                assert _may(policies, pods, redis, 6379), pods.name


def test_nothing_else_does(outcome: Outcome) -> None:
    rendered = outcome.variants["planner"]
    policies = rendered.of_kind("NetworkPolicy")
    (router,) = _of_component(rendered, "router")
    (redis,) = _of_component(rendered, "redis")
    (planner,) = _of_component(rendered, "planner")
    workers = _of_component(rendered, "worker")
    stranger = Pods("stranger", {"app": "else"}, {}, {})
    assert not _may(policies, router, workers[0], 20000)
    assert not _may(policies, workers[0], router, 8001)
    assert not _may(policies, workers[0], workers[1], 22)
    assert not _may(policies, redis, workers[0], 9100)
    assert not _may(policies, planner, workers[0], 20000)
    assert not _may(policies, stranger, workers[0], 9100)
    assert not _may(policies, stranger, redis, 6379)
    assert not _may(policies, stranger, router, 8001)
    assert _may(policies, stranger, router, 8000)


def test_clients_may_be_named(outcome: Outcome) -> None:
    policy = outcome.variants["ingress"].get("NetworkPolicy", "kv-router")
    clients, *_ = policy["spec"]["ingress"]
    assert clients["from"] == [{"namespaceSelector": {}}]


def test_traces_and_downloads_may_leave(outcome: Outcome) -> None:
    def leaves(variant: str, port: int) -> bool:
        policy = outcome.variants[variant].get("NetworkPolicy", "kv-worker")
        return any("to" not in rule and _covers(rule, port) for rule in policy["spec"]["egress"])

    assert leaves("planner", 4317) and not leaves("default", 4317)
    assert leaves("download", 443) and not leaves("default", 443)


def _may(policies: list[Object], source: Pods, target: Pods, port: int) -> bool:
    """Egress of the one and ingress of the other allow it."""
    return _side(policies, source, "egress", "to", target, port) and _side(
        policies, target, "ingress", "from", source, port
    )


def _side(policies: list[Object], pods: Pods, side: str, key: str, other: Pods, port: int) -> bool:
    own = _of(policies, pods)
    if not own:
        return True  # who is not selected may do all
    rules = [rule for policy in own for rule in policy["spec"].get(side, [])]
    return any(_covers(rule, port) and _names(rule.get(key), other) for rule in rules)


def _covers(rule: dict[str, Any], port: int) -> bool:
    return "ports" not in rule or any(
        each.get("protocol", "TCP") == "TCP"
        and each["port"] <= port <= each.get("endPort", each["port"])
        for each in rule["ports"]
    )


def _names(peers: list[dict[str, Any]] | None, pods: Pods) -> bool:
    return peers is None or any(
        "podSelector" in peer and "namespaceSelector" not in peer
        and selects(peer["podSelector"], pods.labels)
        for peer in peers
    )  # fmt: skip


def _of(policies: list[Object], pods: Pods) -> list[Object]:
    return [each for each in policies if selects(each["spec"]["podSelector"], pods.labels)]


def _of_component(rendered: Rendered, component: str) -> list[Pods]:
    return [
        pods
        for pods in pods_of(rendered)
        if pods.labels["app.kubernetes.io/component"] == component
    ]


def _test_pod(rendered: Rendered) -> Pods:
    pod = rendered.get("Pod", "kv-test")
    return Pods("kv-test", pod["metadata"]["labels"], pod["spec"], pod)
