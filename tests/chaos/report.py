"""The table at the end of a campaign, in virtual time or with real processes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

ZEROS = (
    "wrong tokens",
    "duplicated or missing tokens",
    "leaked pages",
    "stuck tickets",
    "orphan processes",
    "errors",
    "other problems",
)


@dataclass
class Tally:
    """`bad`: what must be 0, by its name in ZEROS; a name that is missing was not looked at."""

    runs: int = 0
    requests: int = 0
    answered: int = 0
    left: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    bad: Counter[str] = field(default_factory=Counter)
    recovered_s: list[float] = field(default_factory=list)
    more: dict[str, object] = field(default_factory=dict)

    def add(self, other: Tally) -> None:
        self.runs += other.runs
        self.requests += other.requests
        self.answered += other.answered
        self.left += other.left
        self.faults.update(other.faults)
        self.bad.update(other.bad)  # update, not +=: a zero stays
        self.recovered_s += other.recovered_s

    @property
    def clean(self) -> bool:
        return not any(self.bad.values())


def table(tally: Tally, clock: str) -> str:
    """`clock`: what the recovery times were measured in."""
    rows: list[tuple[str, object]] = [
        (f"faults: {kind}", count) for kind, count in sorted(tally.faults.items())
    ]
    rows += [
        ("faults", sum(tally.faults.values())),
        ("runs", tally.runs),
        ("requests", tally.requests),
        ("of them answered", tally.answered),
        ("of them left by their client", tally.left),
    ]
    rows += [(name, tally.bad[name]) for name in ZEROS if name in tally.bad]
    rows += [
        (f"time to recover p50 ({clock})", seconds(tally.recovered_s, 0.5)),
        (f"time to recover p99 ({clock})", seconds(tally.recovered_s, 0.99)),
        ("requests that a fault struck", len(tally.recovered_s)),
    ]
    rows += list(tally.more.items())
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def seconds(values: Iterable[float], share: float) -> str:
    """A quantile, the nearest one that was measured."""
    ordered = sorted(values)
    if not ordered:
        return "-"
    return f"{ordered[min(len(ordered) - 1, int(share * len(ordered)))]:.3f} s"
