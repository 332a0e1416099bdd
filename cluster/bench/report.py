"""From samples to figures: percentiles, throughput and goodput, as JSON and as a table."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group
from rich.table import Table

from cluster.bench.client import Sample
from workers.core.errors import ConfigError

QUANTILES = {"p50": 0.50, "p90": 0.90, "p99": 0.99}
_UNITS = {"ms": 0.001, "s": 1.0, "": 0.001}
_TARGET = re.compile(r"^(ttft|itl)=(\d+(?:\.\d+)?)(ms|s|)$")


@dataclass(frozen=True, slots=True)
class Slo:
    """Seconds. A request is good if its TTFT and its mean ITL are both within."""

    ttft: float = math.inf
    itl: float = math.inf

    @classmethod
    def parse(cls, text: str) -> Slo:
        """`ttft=1s,itl=50ms`; a bare number is milliseconds. Raises ConfigError."""
        targets: dict[str, float] = {}
        for part in text.replace(" ", "").split(","):
            found = _TARGET.match(part)
            if found is None:
                raise ConfigError(f"--slo: {part!r} is not like ttft=1s or itl=50ms")
            targets[found[1]] = float(found[2]) * _UNITS[found[3]]
        return cls(**targets)

    def holds(self, sample: Sample) -> bool:
        return sample.error is None and sample.ttft <= self.ttft and sample.mean_itl <= self.itl


def percentile(values: Sequence[float], quantile: float) -> float:
    """Linear between neighbours, as numpy does it; `values` need not be sorted."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * quantile
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def summarise(samples: Sequence[Sample], slo: Slo | None) -> dict[str, Any]:
    """The report. Times in milliseconds; rates over the time from the first send to the last end.

    `goodput` is good requests a second, null without SLO. Where no request came through, the
    figures that need one are null.
    """
    done = [sample for sample in samples if sample.error is None]
    began = min((sample.sent for sample in samples), default=0.0)
    duration = max((sample.ended for sample in samples), default=0.0) - began
    good = sum(slo.holds(sample) for sample in done) if slo else None
    inputs = sum(sample.input_tokens for sample in done)
    outputs = sum(sample.output_tokens for sample in done)

    def per_second(count: float) -> float:
        return count / duration if duration > 0 else 0.0

    return {
        "requests": len(samples),
        "errors": len(samples) - len(done),
        "duration_s": duration,
        "requests_per_s": per_second(len(done)),
        "input_tokens": inputs,
        "input_tokens_per_s": per_second(inputs),
        "cached_tokens": sum(sample.cached_tokens for sample in done),
        "output_tokens": outputs,
        "output_tokens_per_s": per_second(outputs),
        "goodput": None if good is None else per_second(good),
        "good_requests": good,
        "ttft_ms": _spread([sample.ttft for sample in done]),
        "itl_ms": _spread([gap for sample in done for gap in sample.gaps]),
        "e2e_ms": _spread([sample.e2e for sample in done]),
        "send_lag_ms": _spread([sample.sent - sample.due for sample in samples]),
        "error_messages": dict(Counter(s.error for s in samples if s.error).most_common(5)),
    }


def _spread(seconds: Sequence[float]) -> dict[str, float | None]:
    if not seconds:
        return dict.fromkeys(("mean", *QUANTILES))
    mean = sum(seconds) / len(seconds)
    spread = {name: percentile(seconds, quantile) for name, quantile in QUANTILES.items()}
    return {name: value * 1000 for name, value in {"mean": mean, **spread}.items()}


def as_table(report: dict[str, Any]) -> Group:
    times = Table()
    times.add_column("ms")
    for name in ("mean", *QUANTILES):
        times.add_column(name, justify="right")
    rows = {"TTFT": "ttft_ms", "ITL": "itl_ms", "E2E": "e2e_ms", "send lag": "send_lag_ms"}
    for title, key in rows.items():
        values = report[key].values()
        times.add_row(title, *("-" if value is None else f"{value:,.1f}" for value in values))
    figures = Table(show_header=False)
    figures.add_row("requests", f"{report['requests']}, {report['errors']} of them errors")
    figures.add_row("duration", f"{report['duration_s']:.1f} s")
    figures.add_row("requests/s", f"{report['requests_per_s']:.2f}")
    figures.add_row("input tokens/s", f"{report['input_tokens_per_s']:,.0f}")
    figures.add_row(
        "  of them cached", f"{report['cached_tokens']:,} of {report['input_tokens']:,}"
    )
    figures.add_row("output tokens/s", f"{report['output_tokens_per_s']:,.0f}")
    if report["goodput"] is not None:
        good, whole = report["good_requests"], report["requests"]
        figures.add_row("goodput", f"{report['goodput']:.2f} requests/s ({good} of {whole} good)")
    for message, count in report["error_messages"].items():
        figures.add_row(f"{count} x", message)
    return Group(times, figures)
