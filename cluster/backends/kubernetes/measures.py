"""What is counted of what the planner does on Kubernetes."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge


class Measures:
    def __init__(self, registry: CollectorRegistry) -> None:
        def count(name: str, what: str, *labels: str) -> Counter:
            return Counter(f"kvasir_planner_kubernetes_{name}", what, labels, registry=registry)

        self.scaled = count("scaled", "Sizes set; direction: up or down", "pool", "direction")
        self.denied = count("denied", "Calls that RBAC does not allow", "call")
        self.conflicts = count("conflicts", "Writes of what somebody else had changed meanwhile")
        self.retries = count("retries", "Calls made again; why: a status, or connection", "why")
        self.relists = count("relists", "Watches begun anew with a list", "resource", "why")
        self.leads = Gauge(
            "kvasir_planner_kubernetes_leads", "1 = holds the Lease", registry=registry
        )
