"""KV handed from replica to replica, counted: how often, how much, in how many seconds."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from workers.wire import worker_pb2 as worker

MOST_PAIRS = 4096  # of a large cluster those that were used last
FIGURES = (
    ("handoffs", "tickets that the receiver redeemed at the sender"),
    ("transfer_bytes", "KV bytes that went from sender to receiver"),
    ("transfer_seconds", "what that took"),
    ("transfer_exposed_seconds", "what of it no prefill hid"),
)


@dataclass(slots=True)
class PairTotals:
    """Since the router started. `num_bytes` came in `seconds` of transfer, of which `exposed_s` had
    no prefill beside them. `transport`: the last one."""

    handoffs: int = 0
    num_bytes: int = 0
    seconds: float = 0.0
    exposed_s: float = 0.0
    transport: str = ""


class PairBook(Collector):
    """By (sender, receiver), replica ids."""

    def __init__(self) -> None:
        self.handoffs = 0
        self.num_bytes = 0
        self._pairs: OrderedDict[tuple[str, str], PairTotals] = OrderedDict()

    def __iter__(self) -> Iterator[tuple[tuple[str, str], PairTotals]]:
        return iter(self._pairs.items())

    def forget(self, replica: str) -> None:
        for pair in [pair for pair in self._pairs if replica in pair]:
            del self._pairs[pair]

    def collect(self) -> Iterator[Metric]:
        families = [
            CounterMetricFamily(f"kvasir_pair_{name}", text, labels=["sender", "receiver"])
            for name, text in FIGURES
        ]
        for pair, totals in self:
            figures = (totals.handoffs, totals.num_bytes, totals.seconds, totals.exposed_s)
            for family, figure in zip(families, figures, strict=True):
                family.add_metric(pair, figure)
        yield from families

    def fetched(self, sender: str, receiver: str, said: worker.Admitted) -> None:
        self.handoffs += 1
        self.num_bytes += said.fetched_bytes
        pair = self._pairs.setdefault((sender, receiver), PairTotals())
        self._pairs.move_to_end((sender, receiver))
        if len(self._pairs) > MOST_PAIRS:
            self._pairs.popitem(last=False)
        pair.handoffs += 1
        pair.num_bytes += said.fetched_bytes
        pair.seconds += said.transfer_s
        pair.exposed_s += said.exposed_s
        pair.transport = said.transport
