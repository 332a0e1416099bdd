"""A candidate in the whole-cluster simulator: the router's and the workers' own code, under the
stretch of the trace that is planned for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from cluster.simulator.fleet.asks import asks
from cluster.simulator.fleet.figures import ClassFigures, Figures, figures
from cluster.simulator.fleet.play import Played, play
from cluster.simulator.fleet.setup import Options, fleet_plan
from cluster.sizing.candidate import Candidate
from cluster.sizing.engines import cluster_config
from cluster.sizing.load import Load
from cluster.sizing.question import SLO_CLASS, Question


@dataclass(frozen=True, slots=True)
class Measured:
    """`played`, `found`: of the requests that came after the warm-up."""

    candidate: Candidate
    holds: bool
    played: Played
    found: Figures

    @property
    def of_class(self) -> ClassFigures:
        return self.found.classes[SLO_CLASS]

    @property
    def attainment(self) -> float:
        return self.found.attainment

    @property
    def goodput(self) -> float:
        """Requests served within both targets, a second."""
        return self.found.goodput

    def as_json(self) -> dict[str, Any]:
        return self.candidate.as_json() | {"holds": self.holds, "figures": self.found.as_json()}


def measure(question: Question, load: Load, candidate: Candidate) -> Measured:
    config = cluster_config(question, load.longest, candidate.configs())
    plan = fleet_plan(config, question.model, Options())
    coming = asks(load.jobs, config.engine.block_size)
    played = play(plan, coming, load.whole_s)
    judged = [each for each in played.outcomes if each.ask.at_s >= load.warm_up_s]
    played = replace(played, outcomes=judged)
    found = figures(replace(played, window_s=load.window_s))
    return Measured(candidate, found.attainment >= question.goal, played, found)
