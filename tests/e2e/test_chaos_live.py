"""A short `make chaos-live`."""

from __future__ import annotations

from pathlib import Path

import pytest

from load_tests.chaos_live import parser, run
from tests.chaos.report import table


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("transport", ["auto", "gloo"])
def test_twenty_faults_cost_no_token(tmp_path: Path, transport: str) -> None:
    asked = ["--faults=20", "--minutes=1", f"--logs={tmp_path}", f"--transport={transport}"]
    tally, problems = run(parser().parse_args(asked))
    assert sum(tally.faults.values()) == 20
    assert not problems and tally.clean, table(tally, "wall") + "\n".join(problems)
    assert tally.answered > 0 and tally.recovered_s
