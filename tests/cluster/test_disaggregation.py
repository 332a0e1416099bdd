"""load_tests/disaggregation.py: what it plays, and that its search for a capacity ends."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from load_tests import disaggregation
from load_tests.disaggregation import CYCLE_S, HALVINGS, NEAR, PHASES, Cell, class_of, mix, read
from workers.models.config import read_shape

AGENTIC = "agentic_weka_20sess_15min_bs64"


def attains(monkeypatch: pytest.MonkeyPatch, most: float) -> list[float]:
    """Rates up to `most` keep everybody in time, others nobody; those that were tried."""
    tried: list[float] = []

    def run(cell: Cell, jobs: object, slo_class: str, mode: str, rate: float) -> float:
        tried.append(rate)
        return rate

    monkeypatch.setattr(Cell, "run", run)
    monkeypatch.setattr(
        disaggregation, "figures", lambda rate: SimpleNamespace(attainment=float(rate <= most))
    )
    return tried


@pytest.mark.parametrize("most", [0.3, 1.0, 7.7])
def test_capacity_is_found_from_either_side(monkeypatch: pytest.MonkeyPatch, most: float) -> None:
    attains(monkeypatch, most)
    found = Cell("mix", "1:1", 60).capacity([], "fast", "local", 1.0)
    assert most / NEAR <= found <= most


def test_a_mode_that_is_never_in_time_has_no_capacity(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = attains(monkeypatch, 0.0)
    assert Cell("mix", "1:1", 60).capacity([], "fast", "local", 1.0) == 0.0
    assert len(tried) <= HALVINGS + 2


def test_what_no_replica_could_serve_is_not_asked() -> None:
    jobs, context = read(AGENTIC), read_shape(disaggregation.MODEL).context_length
    assert jobs and max(job.input_tokens + job.output_tokens for job in jobs) <= context
    assert class_of(jobs) == "patient"


def test_mix_goes_from_phase_to_phase() -> None:
    jobs = mix(10.0, 2 * CYCLE_S)
    for phase in PHASES:
        of = [job for job in jobs if disaggregation.phase_at(job.at_s) is phase]
        assert {int(job.at_s // CYCLE_S) for job in of} == {0, 1}
        assert all(2 / 3 <= (job.input_tokens + 1) / phase.prompt <= 1.51 for job in of)
    assert len(jobs) == pytest.approx(20 * CYCLE_S, rel=0.2)
