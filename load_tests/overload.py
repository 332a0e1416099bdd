#!/usr/bin/env python3
"""What happens when more comes than the fleet can serve: the line in front of it, in virtual time.

    python load_tests/overload.py [--seconds 120] [--json FILE]

Goodput counts requests whose TTFT is within the target of their class; refused ones are asked for
too. `no line`: each request is placed at once and nobody is refused.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.simulator.overload import Seen, Stream, play
from router.flow.book import Result
from router.flow.classes import SloConfig

LOADS = (0.5, 1.0, 1.5, 2.0, 3.0)
WORKERS = 4
Row = dict[str, Any]


def one_class(seconds: float) -> list[Row]:
    """Interactive requests of one tenant."""
    rows = []
    for load in LOADS:
        stream = [Stream("interactive", load, end_s=seconds)]
        (held,) = play(SloConfig(), stream, workers=WORKERS)
        (free,) = play(SloConfig(), stream, workers=WORKERS, held=False)
        rows.append(
            {
                "load": load,
                "asked/s": held.asked / seconds,
                "goodput/s": held.results[Result.GOOD] / seconds,
                "good work": held.work_s / (WORKERS * seconds),
                "refused": held.refused,
                "late": held.results[Result.LATE] / held.asked,
                "TTFT p50 s": _quantile(held.ttft_s, 0.5),
                "p99 s": _quantile(held.ttft_s, 0.99),
                "retry p50 s": _quantile(held.retry_s, 0.5),
                "no line: goodput/s": free.results[Result.GOOD] / seconds,
                "p99 s ": _quantile(free.ttft_s, 0.99),
            }
        )
    return rows


def neighbours(seconds: float) -> list[Row]:
    """A calm tenant's interactive requests at 0.3 of capacity beside what others send."""

    def stream(slo_class: str, load: float, tenant: str) -> Stream:
        return Stream(slo_class, load, tenant, end_s=seconds)

    calm = stream("interactive", 0.3, "calm")
    cases = [
        ("nobody", []),
        ("batch at 1.0", [stream("batch", 1.0, "jobs")]),
        ("a tenant at 1.7", [stream("interactive", 1.7, "flood")]),
        ("a tenant at 2.7", [stream("interactive", 2.7, "flood")]),
        ("ten tenants at 0.2 each", [stream("interactive", 0.2, f"t{n}") for n in range(10)]),
        (
            "a tenant at 1.7, standard at 0.5, batch at 1.0",
            [
                stream("interactive", 1.7, "flood"),
                stream("standard", 0.5, "others"),
                stream("batch", 1.0, "jobs"),
            ],
        ),
    ]
    rows = []
    for name, others in cases:
        seen = play(SloConfig(), [calm, *others], workers=WORKERS)
        rows.append(
            {
                "beside": name,
                "attained": seen[0].attained,
                "refused": seen[0].refused,
                "p50 s": _quantile(seen[0].ttft_s, 0.5),
                "p99 s": _quantile(seen[0].ttft_s, 0.99),
                "others attained": _attained(seen[1:], others),
                "batch served in time": _batch(seen[1:], others),
            }
        )
    return rows


def returning(seconds: float) -> list[Row]:
    """A burst on top of a load of 0.5; who is refused comes back once, when he was told to."""
    rows = []
    for load in (1.5, 2.5):
        burst = Stream("interactive", load, end_s=seconds / 4, returns=True)
        calm = Stream("interactive", 0.5, "calm", end_s=3 * seconds)
        seen, other = play(SloConfig(), [burst, calm], workers=WORKERS)
        rows.append(
            {
                "burst": load,
                "refused": len(seen.retry_s),
                "retry p50 s": _quantile(seen.retry_s, 0.5),
                "most s": max(seen.retry_s),
                "served on return": seen.served_on_return / seen.returned,
                "the others attained": other.attained,
            }
        )
    return rows


def _attained(seen: Sequence[Seen], streams: Sequence[Stream]) -> float | None:
    """Of those whose class has a target."""
    counted = [s for s, stream in zip(seen, streams, strict=True) if stream.slo_class != "batch"]
    asked = sum(s.asked for s in counted)
    return sum(s.results[Result.GOOD] for s in counted) / asked if asked else None


def _batch(seen: Sequence[Seen], streams: Sequence[Stream]) -> float | None:
    """Part of the batch requests that were served while all others still came."""
    counted = [s for s, stream in zip(seen, streams, strict=True) if stream.slo_class == "batch"]
    return counted[0].in_time / counted[0].asked if counted else None


def _quantile(values: Sequence[float], part: float) -> float | None:
    return sorted(values)[min(len(values) - 1, int(part * len(values)))] if values else None


def show(rows: Sequence[Row]) -> None:
    """As a table of Markdown."""
    print("\n| " + " | ".join(rows[0]) + " |")
    print("|" + "---|" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(map(_shown, row.values())) + " |")


def _shown(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120.0, help="of each run, virtual")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    tables = {}
    for table in (one_class, neighbours, returning):
        tables[table.__name__] = rows = table(options.seconds)
        show(rows)
    if options.json is not None:
        options.json.write_text(json.dumps(tables, indent=2) + "\n")


if __name__ == "__main__":
    main()
