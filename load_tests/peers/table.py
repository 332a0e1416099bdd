"""Rows of repeats as Markdown: medians with their range, and ratios against one system."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from load_tests.peers.workloads import INTERFERENCES

Row = dict[str, Any]

BATCH_COLUMNS = {
    "tok_s": ("tok/s", 1),
    "ttft_p50_ms": ("TTFT p50 ms", 0),
    "ttft_max_ms": ("TTFT max ms", 0),
    "token_ms": ("ms/token", 1),
    "itl_p50_ms": ("ITL p50 ms", 1),
    "itl_p99_ms": ("ITL p99 ms", 1),
    "cpu_s": ("CPU s", 1),
    "memory_gb": ("GB", 1),
}
INTERFERENCE_COLUMNS = {
    **{f"quiet_itl_p{q}_ms": (f"quiet ITL p{q} ms", 0) for q in (50, 90, 99)},
    **{f"loaded_itl_p{q}_ms": (f"loaded ITL p{q} ms", 0) for q in (50, 90, 99)},
    "quiet_tok_s": ("quiet tok/s", 1),
    "loaded_tok_s": ("loaded tok/s", 1),
    "ttft_p50_ms": ("prompts' TTFT p50 ms", 0),
    "ttft_max_ms": ("max ms", 0),
}
# What is set in relation to `against`: this system's median / the other's.
BATCH_RATIOS = {"tok_s": "tok/s", "ttft_p50_ms": "TTFT"}
INTERFERENCE_RATIOS = {"loaded_itl_p99_ms": "ITL p99", "ttft_p50_ms": "TTFT"}


def table(rows: Sequence[Row], workload: str, against: str | None) -> str:
    """One line for each system, in the order in which they came first. `rows` hold `system`,
    `workload`, `others` and the figures; rows of other workloads are passed over."""
    mine = [row for row in rows if row["workload"] == workload]
    by_system = {row["system"]: [r for r in mine if r["system"] == row["system"]] for row in mine}
    disturbed = workload in INTERFERENCES
    columns = INTERFERENCE_COLUMNS if disturbed else BATCH_COLUMNS
    ratios = INTERFERENCE_RATIOS if disturbed else BATCH_RATIOS
    base = by_system.get(against) if against else None
    head = [workload, *(title for title, _ in columns.values()), "others %", "repeats"]
    if base:
        head += [f"{title} / {against}" for title in ratios.values()]
    lines = [_line(head), _line(["---"] * len(head))]
    for system, repeats in by_system.items():
        cells = [system]
        cells += [spread([r[key] for r in repeats], places) for key, (_, places) in columns.items()]
        cells += [spread([100 * row["others"] for row in repeats], 0), str(len(repeats))]
        if base:
            cells += [f"{_median(repeats, key) / _median(base, key):.2f}" for key in ratios]
        lines.append(_line(cells))
    return "\n".join(lines)


def spread(values: Sequence[float], places: int) -> str:
    """`median (min-max)`; the value alone where there is only one."""
    median = f"{statistics.median(values):,.{places}f}"
    if len(values) == 1:
        return median
    return f"{median} ({min(values):,.{places}f}-{max(values):,.{places}f})"


def _median(rows: Sequence[Row], key: str) -> float:
    return statistics.median(row[key] for row in rows)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
