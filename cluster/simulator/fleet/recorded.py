"""A latency model taught by the steps of a live cluster, as `kvasir record --steps` saved them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from cluster.bench.workload import lines
from cluster.simulator.fleet.world import KV_ABI
from router.latency import HardwareClass, LatencyModel
from workers.core.errors import ConfigError
from workers.core.step_work import MeasuredStep, StepWork

AT_ONCE = 64  # steps between two fits, about as many as a report brings


class _Row(NamedTuple):
    replica: str
    where: HardwareClass
    step: MeasuredStep


def read_steps(path: Path, model: LatencyModel, step_tokens: int) -> int:
    """How many there were. `step_tokens`: of the engines that made them. Raises ConfigError with
    the line."""
    count = 0
    for (replica, where), rows in groupby(_rows(path), key=lambda row: row[:2]):
        model.placed(replica, where, step_tokens)
        steps = [row.step for row in rows]
        for first in range(0, len(steps), AT_ONCE):
            model.observe(replica, steps[first : first + AT_ONCE])
        count += len(steps)
    if not count:
        raise ConfigError(f"{path} has no steps")
    return count


def _rows(path: Path) -> Iterator[_Row]:
    """All simulated workers have one KV ABI, so those that were recorded get it, too."""
    for number, line in enumerate(lines(path), start=1):
        try:
            row = json.loads(line)
            where = HardwareClass(row["hardware"], row["tensor_ranks"], KV_ABI, row["expert_ranks"])
            work = StepWork(*(int(row[name]) for name in StepWork._fields))
            yield _Row(row["replica"], where, MeasuredStep(work, float(row["seconds"])))
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path}:{number}: not a recorded step: {error!r}") from None
