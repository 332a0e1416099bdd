"""How much two workers on the same cores slow each other down: two bare engines in two processes,
which run steps of one kind each, first one alone and then both at once."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import combinations_with_replacement
from statistics import median
from typing import Any

from cluster.simulator.fleet.cores import KINDS, Contention, StepKind

MOST_S = 120.0


class _Child:
    def __init__(self, model: str, engine: Mapping[str, Any]) -> None:
        arguments = [f"--model={model}", f"--engine={json.dumps(dict(engine))}"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "load_tests.fidelity_engine", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def ask(self, kind: StepKind, seconds: float) -> None:
        assert self.process.stdin is not None
        print(kind, seconds, file=self.process.stdin, flush=True)

    def answer(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("an engine of the calibration has died")
        return line

    def took(self) -> float:
        return median(json.loads(self.answer()))


@contextmanager
def _child(model: str, engine: Mapping[str, Any]) -> Iterator[_Child]:
    child = _Child(model, engine)
    try:
        child.answer()
        yield child
    finally:
        child.process.kill()
        child.process.wait(MOST_S)


def measure(model: str, engine: Mapping[str, Any], seconds: float) -> Contention:
    """`seconds` of each kind alone, and of each pair of kinds."""
    with ExitStack() as held:
        one, other = (held.enter_context(_child(model, engine)) for _ in range(2))
        alone: dict[StepKind, float] = {}
        for kind in KINDS:
            one.ask(kind, seconds)
            alone[kind] = one.took()
        found: dict[tuple[StepKind, StepKind], list[float]] = {}
        for first, second in combinations_with_replacement(KINDS, 2):
            # Long ones end late: who is done first would leave the other one alone.
            longest = max(seconds, 8 * max(alone[first], alone[second]))
            one.ask(first, longest)
            other.ask(second, longest)
            for kind, beside, child in ((first, second, one), (second, first, other)):
                found.setdefault((kind, beside), []).append(child.took() / alone[kind])
    return Contention(
        tuple(tuple(max(1.0, median(found[kind, beside])) for beside in KINDS) for kind in KINDS)
    )
