"""What Prometheus is told of replicas."""

from __future__ import annotations

from router.metrics import RouterMetrics
from tests.router.test_ways import roomy


def test_a_replica_that_changed_its_role_is_up_in_one_role_only() -> None:
    metrics, replica = RouterMetrics(), roomy("r", "prefill")
    metrics.reported(replica, replica.load)
    replica.role = "decode"
    metrics.reported(replica, replica.load)
    lines = metrics.render().decode().splitlines()
    told = [line for line in lines if 'replica="r"' in line]
    assert 'kvasir_replica_up{replica="r",role="decode"} 1.0' in told
    assert not [line for line in told if 'role="prefill"' in line]
    metrics.forgotten(replica)
    assert 'replica="r"' not in metrics.render().decode()
