#!/usr/bin/env python3
"""Every policy on every trace with hashes, beside what no router can have.

    python load_tests/route_table.py  # all of it: half an hour on one core
    python load_tests/route_table.py --part second --workers 8 --cache 1000000
    python load_tests/route_table.py --sustainable         # the largest load each policy carries

Rows are kept in --keep as they are made, so that a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from cluster.simulator.arrivals import Arrivals, Part, read_arrivals
from cluster.simulator.references import optimum, pooled
from cluster.simulator.route import Setup, simulate
from router.placement.policies.names import POLICY_NAMES

TRACES = {
    "conversation": "mooncake_conversation_min00-15",
    "synthetic": "mooncake_synthetic_first25pct",
    "agentic": "agentic_weka_60sess_30min_bs512",
    "agentic, blocks of 64": "agentic_weka_20sess_15min_bs64",
    "sharegpt": "sharegpt_300_bs16",
}
# Published rules know a block when its worker has told of it, but for those that keep a tree of
# their own decisions. What is given `decisions` here hears of both.
EVENTS_ONLY = ("weighted", "longest_prefix", "active_blocks", "pending_prefill")
SUSTAINED = 4.0  # times the mean service time without cache: TTFT p90 under it is sustained


Cell = tuple[int, int]  # workers, tokens in the cache of each


def setups(workers: int, cache: int) -> Iterator[tuple[str, Setup]]:
    """Every row of one cell, with LRU but for the last."""
    base = Setup(workers, cache, eviction="lru")
    for name in POLICY_NAMES:
        if name == "kvasir":
            continue
        if name in EVENTS_ONLY:
            yield f"{name}, events", replace(base, policy=name, expecting=False)
        else:
            yield name, replace(base, policy=name)
    yield "kvasir, LRU", base
    yield "kvasir", replace(base, eviction="adaptive")


class Kept:
    """Results in a JSONL file, by what they are of."""

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = path.read_text().splitlines() if path.exists() else ()
        self._rows = {tuple(row["key"]): row["value"] for row in map(json.loads, lines)}

    def get(self, key: tuple[Any, ...], make: Any) -> Any:
        if key not in self._rows:
            self._rows[key] = make()
            with self._path.open("a") as file:
                file.write(json.dumps({"key": key, "value": self._rows[key]}) + "\n")
        return self._rows[key]


class Tables:
    def __init__(
        self, folder: Path, part: Part, seeds: int, kept: Kept, wanted: tuple[str, ...]
    ) -> None:
        self._folder = folder
        self._part = part
        self._seeds = range(1, seeds + 1)
        self._kept = kept
        self._wanted = wanted
        self._read: dict[tuple[str, int], Arrivals] = {}

    def table(self, trace: str, cells: Sequence[Cell]) -> None:
        """Rows are policies and references, columns are fleets."""
        _head(trace, cells)
        for number, (name, _) in enumerate(self._setups(*cells[0])):
            rows = [list(self._setups(*cell))[number][1] for cell in cells]
            _line(name, [_cell(self._mean(trace, name, setup, simulate)) for setup in rows])
        references = [Setup(*cell) for cell in cells]
        row = [_cell(self._mean(trace, "pooled", setup, pooled)) for setup in references]
        _line("*reference: pooled LRU, least work*", row)
        best = [
            self._kept.get(
                (self._part, trace, "optimum", setup.workers, setup.cache_tokens),
                lambda setup=setup: optimum(self._arrivals(trace, 1), setup),
            )
            for setup in references
        ]
        _line("*reference: offline optimum (hit)*", [f"{hit:.3f}" for hit in best])

    def sustainable(self, trace: str, cells: Sequence[Cell]) -> None:
        """The largest rho at which TTFT p90 stays below SUSTAINED."""
        _head(trace, cells)
        for number, (name, _) in enumerate(self._setups(*cells[0])):
            loads = []
            for workers, cache in cells:
                setup = list(self._setups(workers, cache))[number][1]
                key = (self._part, trace, "load of " + name, workers, cache)
                loads.append(self._kept.get(key, lambda setup=setup: self._largest(trace, setup)))
            _line(name, [f"{load:.2f}" for load in loads])

    def _setups(self, workers: int, cache: int) -> Iterator[tuple[str, Setup]]:
        return (row for row in setups(workers, cache) if row[0].startswith(self._wanted))

    def _largest(self, trace: str, setup: Setup) -> float:
        arrivals = self._arrivals(trace, 1)
        low, high = 0.1, 25.6
        while high / low > 1.01:
            rho = math.sqrt(low * high)
            tried = replace(setup, rho=rho)
            service_s = arrivals.tokens / len(arrivals.requests) / tried.tokens_per_s(arrivals)
            if simulate(arrivals, tried).ttft_p90 < SUSTAINED * service_s:
                low = rho
            else:
                high = rho
        return low

    def _mean(self, trace: str, name: str, setup: Setup, run: Any) -> dict[str, float]:
        rows = []
        for seed in self._seeds:
            key = (self._part, trace, name, setup.workers, setup.cache_tokens, setup.rho, seed)
            arrivals = self._arrivals(trace, seed)
            seeded = replace(setup, seed=seed)
            make = lambda arrivals=arrivals, seeded=seeded: asdict(run(arrivals, seeded))  # noqa: E731
            rows.append(self._kept.get(key, make))
        return {field: sum(row[field] for row in rows) / len(rows) for field in rows[0]}

    def _arrivals(self, trace: str, seed: int) -> Arrivals:
        if (trace, seed) not in self._read:
            path = self._folder / f"{TRACES[trace]}.jsonl.gz"
            self._read[trace, seed] = read_arrivals(path, seed=seed).part(self._part)
        return self._read[trace, seed]


def _head(trace: str, cells: Sequence[Cell]) -> None:
    _line(f"\n**{trace}**\n\n| policy", [f"N={n}, {cache // 1000}k" for n, cache in cells])
    print("|---" * (1 + len(cells)) + "|")


def _line(name: str, values: Iterable[str]) -> None:
    print(" | ".join([name if name.startswith("\n") else f"| {name}", *values]) + " |", flush=True)


def _cell(means: dict[str, float]) -> str:
    ttft = "/".join(f"{means[f'ttft_p{part}']:.1f}" for part in (50, 90, 99))
    return f"{means['hit']:.3f}/{means['imbalance']:.2f}/{ttft}/{means['rejects']:.0f}"


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main(argv: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--traces", default=",".join(TRACES.values()))
    parser.add_argument("--policies", help="only rows whose name begins so, by commas")
    parser.add_argument("--workers", type=_numbers, default=[4, 8, 16])
    parser.add_argument("--cache", type=_numbers, default=[200_000, 1_000_000])
    parser.add_argument("--part", choices=("all", "first", "second"), default="all")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each, of which the mean")
    parser.add_argument("--sustainable", action="store_true")
    parser.add_argument("--keep", type=Path, default=Path("route_table.jsonl"))
    options = parser.parse_args(argv)
    folder = Path(__file__).parent / "traces"
    wanted = tuple((options.policies or "").split(","))
    tables = Tables(folder, options.part, options.seeds, Kept(options.keep), wanted)
    print_one = tables.sustainable if options.sustainable else tables.table
    cells = [(workers, cache) for cache in options.cache for workers in options.workers]
    for trace, file in TRACES.items():
        if file in options.traces:
            print_one(trace, cells)


if __name__ == "__main__":
    main()
