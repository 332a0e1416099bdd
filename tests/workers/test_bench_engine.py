"""The engine benchmark measures what it names; how fast that is, no test says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.commands.app import app
from tests.checkpoints import make_checkpoint
from workers.bench.limits import REPEATS, best_seconds


def test_rows_have_names_values_limits_and_ratios(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model")
    report = tmp_path / "rows.json"
    sizes = ["--prefill", "32,400,8192", "--batches", "1,3", "--contexts", "64,9999"]
    mixed = ["--mixed", "2x64x32,2x64x9999"]
    command = f"bench engine --model {model} --kv-tokens 8192 --step-tokens 128 --json {report}"
    done = CliRunner().invoke(app, [*command.split(), *sizes, *mixed])
    assert done.exit_code == 0, done.output
    rows = {row["name"]: row for row in json.loads(report.read_text())}
    assert set(rows) == {
        "machine/read",
        "machine/matmul/t1",
        "machine/matmul/t8",
        "machine/matmul/t128",
        "prefill/t32",
        "prefill/t400",
        "decode/b1/c64",
        "decode/b3/c64",
        "outside/b1",
        "outside/b8",
        "mixed/b2/c64/t32",
        "outside/b64",
        *(f"outside/b{batch}/overlap" for batch in (1, 8, 64)),
        "outside/b64/noop",
    }, "points that do not fit are left out"
    for name, row in rows.items():
        assert row["value"] > 0 and row["unit"], name
        if not name.startswith("machine"):
            assert row["limit"] > 0 and row["ratio"] > 0, name


@pytest.mark.slow
def test_a_step_of_several_ranks_is_shown_in_parts(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model")
    report = tmp_path / "rows.json"
    nothing = [f"--{kind}=" for kind in ("prefill", "batches", "contexts", "mixed")]
    command = f"bench engine --model {model} --tp 2 --kv-tokens 8192 --json {report}"
    done = CliRunner().invoke(app, [*command.split(), *nothing])
    assert done.exit_code == 0, done.output
    rows = {row["name"]: row for row in json.loads(report.read_text())}
    for batch in (1, 8, 64):
        part = {name: rows[f"ranks/b{batch}/{name}"]["value"] for name in ("step", "overhead")}
        inside = sum(
            rows[f"ranks/b{batch}/{name}"]["value"] for name in ("compute", "communication")
        )
        assert inside == pytest.approx(part["step"] * (1 - part["overhead"] / 100))
        volume = rows[f"ranks/b{batch}/volume"]
        assert volume["value"] == volume["limit"] > 0


@pytest.mark.parametrize("text", ["8x1024", "8x1024x256x1", "axbxc"])
def test_a_mixed_point_has_three_numbers(text: str) -> None:
    done = CliRunner().invoke(app, ["bench", "engine", "--model", "nowhere", "--mixed", text])
    assert done.exit_code == 2, done.output  # 1 would be the model that is not there


class Script:
    """A clock that runs move on, each by the next of `seconds`, the last one for ever."""

    def __init__(self, *seconds: float) -> None:
        self._seconds = list(seconds)
        self._time = 0.0
        self.runs = 0

    def now(self) -> float:
        return self._time

    def run(self) -> None:
        self.runs += 1
        self._time += self._seconds.pop(0) if len(self._seconds) > 1 else self._seconds[0]


def test_a_limit_is_the_best_of_several_runs_but_the_first() -> None:
    script = Script(0.1, 7.0, 5.0, 6.0)
    assert best_seconds(script.run, script) == 5.0
    assert script.runs == 1 + REPEATS


def test_short_runs_are_repeated_and_hopeless_ones_are_not() -> None:
    short = Script(0.001)
    assert best_seconds(short.run, short) == pytest.approx(0.001)
    assert short.runs > 1 + REPEATS
    hopeless = Script(9.0)
    assert best_seconds(hopeless.run, hopeless, hopeless_s=2.0) == 9.0
    assert hopeless.runs == 2
