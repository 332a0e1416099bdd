"""What Prometheus is told of replicas and of tokens."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram

from router.counted_histogram import CountedHistogram
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


@given(st.lists(st.tuples(st.floats(0, 10), st.integers(1, 5)), max_size=20))
def test_a_counted_histogram_says_what_one_observation_after_the_other_says(
    observed: list[tuple[float, int]],
) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    buckets = (0.01, 0.5, 1.0, 5.0)
    counted = CountedHistogram("gap_seconds", "gaps", "class", registry=ours, buckets=buckets)
    plain = Histogram("gap_seconds", "gaps", ["class"], registry=theirs, buckets=buckets)
    for number, (amount, count) in enumerate([(0.01, 2), (0.5, 1), *observed]):
        name = f"class {number % 2}"
        counted.observe(name, amount, count)
        for _ in range(count):
            plain.labels(name).observe(amount)
    told, expected = _samples(ours), _samples(theirs)
    assert told == pytest.approx(expected) and len(told) == 2 * (len(buckets) + 3)


def _samples(registry: CollectorRegistry) -> dict[tuple[str, ...], float]:
    (family,) = registry.collect()
    assert (family.name, family.type) == ("gap_seconds", "histogram")
    return {
        (sample.name, *sample.labels.values()): sample.value
        for sample in family.samples
        if not sample.name.endswith("_created")
    }
