"""The engine benchmark measures what it names; how fast that is, no test says."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from cluster.commands.app import app
from tests.checkpoints import make_checkpoint


def test_rows_have_names_values_limits_and_ratios(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model")
    report = tmp_path / "rows.json"
    sizes = ["--prefill", "32,400,8192", "--batches", "1,3", "--contexts", "64,9999"]
    command = f"bench engine --model {model} --kv-tokens 8192 --step-tokens 128 --json {report}"
    done = CliRunner().invoke(app, [*command.split(), *sizes])
    assert done.exit_code == 0, done.output
    rows = {row["name"]: row for row in json.loads(report.read_text())}
    assert set(rows) == {
        "machine/read",
        "machine/matmul/t128",
        "prefill/t32",
        "prefill/t400",
        "decode/b1/c64",
        "decode/b3/c64",
        "outside/b1",
        "outside/b8",
        "outside/b64",
    }, "points that do not fit are left out"
    for name, row in rows.items():
        assert row["value"] > 0 and row["unit"], name
        if not name.startswith("machine"):
            assert row["limit"] > 0 and row["ratio"] > 0, name
