"""A latency model taught by the steps of a live cluster, as `kvasir record --steps` saved them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from cluster.bench.workload import lines
from cluster.simulator.fleet.world import KV_ABI
from router.latency import HardwareClass, LatencyModel
from workers.core.errors import ConfigError
from workers.core.step_work import MeasuredStep, StepWork

HERE = HardwareClass(kv_abi=KV_ABI)  # what simulated workers on a CPU are
AT_ONCE = 64  # steps between two fits, about as many as a report brings


class Row(NamedTuple):
    replica: str
    where: HardwareClass
    step: MeasuredStep


def read_steps(path: Path, model: LatencyModel, step_tokens: int) -> set[HardwareClass]:
    """The classes that they tell of. `step_tokens`: of the engines that made them. Raises
    ConfigError with the line."""
    classes: set[HardwareClass] = set()
    for (replica, where), rows in groupby(recorded_steps(path), key=lambda row: row[:2]):
        steps = [row.step for row in rows]
        teach(model, replica, steps, step_tokens, where)
        classes.add(where)
    if not classes:
        raise ConfigError(f"{path} has no steps")
    return classes


def teach(
    model: LatencyModel,
    replica: str,
    steps: Sequence[MeasuredStep],
    step_tokens: int,
    where: HardwareClass,
) -> None:
    """As if the replica had reported them."""
    model.placed(replica, where, step_tokens)
    for first in range(0, len(steps), AT_ONCE):
        model.observe(replica, steps[first : first + AT_ONCE])


def recorded_steps(path: Path) -> Iterator[Row]:
    """All simulated workers have one KV ABI, so those that were recorded get it, too."""
    for number, line in enumerate(lines(path), start=1):
        try:
            row = json.loads(line)
            where = HardwareClass(row["hardware"], row["tensor_ranks"], KV_ABI, row["expert_ranks"])
            work = StepWork(*(int(row[name]) for name in StepWork._fields))
            yield Row(row["replica"], where, MeasuredStep(work, float(row["seconds"])))
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path}:{number}: not a recorded step: {error!r}") from None
