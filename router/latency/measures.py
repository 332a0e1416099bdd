"""How right predictions are, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from router.latency.errors import Errors, ErrorTrack, Kind


class LatencyMeasures(Collector):
    """Read when Prometheus asks: replicas that are there, and a handful of kinds each. Requests are
    of no replica."""

    def __init__(self, errors: Errors, requests: Callable[[], dict[Kind, ErrorTrack]]) -> None:
        self._errors = errors
        self._requests = requests

    def collect(self) -> Iterator[Metric]:
        labels = ["replica", "kind"]
        error = GaugeMetricFamily(
            "kvasir_prediction_error", "median of |predicted - actual| / actual", labels=labels
        )
        bias = GaugeMetricFamily(
            "kvasir_prediction_bias", "median of (predicted - actual) / actual", labels=labels
        )
        requests = (("", kind, track) for kind, track in self._requests().items())
        for replica, kind, track in (*self._errors, *requests):
            error.add_metric([replica, kind], track.error)
            bias.add_metric([replica, kind], track.bias)
        yield error
        yield bias
