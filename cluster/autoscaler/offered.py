"""What was asked of the cluster since the last plan, as routers tell it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping

from cluster.planner.lengths import Lengths
from cluster.planner.signals import ClassSignals
from workers.wire import admin_pb2 as admin


class Offered:
    """Of all routers together. Classes of `slo_classes` are told of also while nobody asks."""

    def __init__(self, slo_classes: Collection[str]) -> None:
        self._slo_classes = slo_classes
        self._arrivals: Counter[str] = Counter()
        self._prompts: defaultdict[str, list[int]] = defaultdict(list)
        self._uncached: defaultdict[str, list[int]] = defaultdict(list)
        self._outputs: defaultdict[str, list[int]] = defaultdict(list)
        self._held: Counter[str] = Counter()

    def note(self, batch: admin.RecordedBatch) -> None:
        for came in batch.arrivals:
            self._arrivals[came.slo_class] += 1
            self._prompts[came.slo_class].append(came.prompt_tokens)
        for ended in batch.requests:
            name = ended.slo_class
            if not ended.prompt_tokens:  # refused at the door: it is no arrival of before
                self._arrivals[name] += 1
            if ended.HasField("ttft_s"):
                cached = min(ended.cached_tokens, ended.prompt_tokens)
                self._uncached[name].append(ended.prompt_tokens - cached)
            if ended.output_tokens:
                self._outputs[name].append(ended.output_tokens)
                self._held[name] += ended.prompt_tokens * ended.output_tokens

    def take(self, queued: Mapping[str, int]) -> tuple[ClassSignals, ...]:
        """By class, and from now on anew. `queued`: who waits now."""
        names = {*self._slo_classes, *self._arrivals, *self._outputs, *self._uncached}
        told = tuple(
            ClassSignals(
                name,
                self._arrivals[name],
                queued.get(name, 0),
                Lengths.of(self._prompts[name]),
                Lengths.of(self._uncached[name]),
                Lengths.of(self._outputs[name]),
                float(self._held[name]),
            )
            for name in sorted(names)
        )
        for counted in (
            self._arrivals,
            self._prompts,
            self._uncached,
            self._outputs,
            self._held,
        ):
            counted.clear()
        return told
