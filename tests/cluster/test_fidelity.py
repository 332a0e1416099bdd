"""What load_tests/fidelity.py says of real runs and predictions, and that it can be asked again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cluster.simulator.fleet.cores import Contention
from load_tests.fidelity import MIXES, Measured, jobs_of
from load_tests.fidelity_calibrate import CALIBRATED, Copy, Idle, Machine
from load_tests.fidelity_table import Row, Seen, line, ranking, verdict
from router.latency import FittedLatency
from workers.core.step_work import MeasuredStep, StepWork
from workers.models.config import read_shape

SEEN = Seen(0.2, 0.4, 0.05, 0.08, 40.0, 2.0)


def row(config: str, answers: tuple[float, ...], predicted: float) -> Row:
    runs = [replace(SEEN, answer=answer) for answer in answers]
    return Row(config, "chat", 30, runs, replace(SEEN, answer=predicted))


def test_figures_are_judged_by_the_median_of_real_runs_beside_their_spread() -> None:
    runs = [replace(SEEN, ttft_p90=ttft) for ttft in (0.4, 0.5, 0.3)]
    one = Row("remote", "chat", 30, runs, replace(SEEN, ttft_p90=0.5, itl_p50=0.06))
    assert one.ratios["ttft_p90"] == pytest.approx(1.25)
    assert one.spreads["ttft_p90"] == pytest.approx(0.5) and one.spreads["itl_p50"] == 0.0
    assert "0.4 / 0.5 (1.25; 50%)" in line(one)
    said = verdict([one])
    assert said.startswith("3 of 5 figures within 15%")
    assert "in 1 figures, 1 of them among the 2" in said


def test_configurations_that_differ_by_less_than_their_runs_do_are_equal() -> None:
    steady = [row("auto", (2.0, 2.02), 2.5), row("local", (2.3, 2.32), 2.2)]
    assert "wrong: auto before local" in ranking(steady, "chat")
    unsure = [row("auto", (1.8, 2.2), 2.5), row("local", (2.2, 2.4), 2.2)]
    assert ranking(unsure, "chat").endswith("| right |")
    assert "auto 2.00 = local 2.30" in ranking(unsure, "chat")


def test_a_repeat_differs_in_its_tokens_alone() -> None:
    one, other = (jobs_of(MIXES["both"], 2.0, 40, 1, repeat) for repeat in (0, 1))
    sizes = [[(j.at_s, j.input_tokens, j.output_tokens) for j in jobs] for jobs in (one, other)]
    assert sizes[0] == sizes[1] and len(one) == 40
    assert all(a.token_ids() != b.token_ids() for a, b in zip(one, other, strict=True))


def test_what_was_measured_is_read_back_as_it_was(tmp_path: Path) -> None:
    steps = [MeasuredStep(StepWork.decode(1, 64), 0.034), MeasuredStep(StepWork.chunk(48, 0), 0.2)]
    machine = Machine(steps, Contention(((1.0, 1.1, 1.2),) * 3), 0.1)
    measured = Measured("small", 30, 0.5, machine)
    measured.idle["remote"] = Idle(0.2, 0.03, 0.01, 0.001, [Copy(48, 0.005)], steps)
    measured.runs["remote"] = {"chat": [SEEN, SEEN]}
    measured.write(tmp_path / "fidelity.json")
    assert Measured.read(tmp_path / "fidelity.json") == measured


def test_an_idle_cluster_says_how_fast_the_machine_is_now() -> None:
    latency = FittedLatency(read_shape("small"))
    works = [StepWork.decode(1, 64), StepWork.chunk(48, 0)] * 20
    machine = Machine(
        [MeasuredStep(work, 0.2 if work.prefill_tokens else 0.034) for work in works],
        Contention.even(1.0),
        0.1,
    )
    machine.teach(latency, 256)
    slow = [MeasuredStep(work, 1.2 * latency.step_s(CALIBRATED, work)) for work in works]
    assert Idle(0.2, 0.03, 0.01, 0.0, [], slow).slower(latency) == pytest.approx(1.2)
    later = FittedLatency(read_shape("small"))
    machine.teach(later, 256, slower=1.2, between_s=0.01)
    expected = 1.2 * latency.decode_s(CALIBRATED, 1, 64) + 0.01
    assert later.decode_s(CALIBRATED, 1, 64) == pytest.approx(expected, rel=0.02)
