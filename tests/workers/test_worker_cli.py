"""`python -m workers` refuses what it cannot serve: one clear line, exit code 2."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.checkpoints import make_checkpoint
from workers.__main__ import _parser, read_config
from workers.core.errors import ConfigError


def run(*args: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "workers", *args], capture_output=True, text=True, timeout=90
    )
    return done.returncode, done.stderr


def config(*args: str) -> object:
    return read_config(_parser().parse_args(args))


def test_flags_win_over_the_file_and_name_the_replica(tmp_path: Path) -> None:
    file = tmp_path / "slice.json"
    file.write_text(
        json.dumps({"replica": "a", "pool": "p", "role": "prefill", "model": "m", "port": 5})
    )
    read = config("--config", str(file), "--role", "decode", "--port", "6")
    assert (read.role, read.replica, read.port) == ("decode", "a", 6)  # type: ignore[attr-defined]
    by_hand = config("--role", "decode", "--model", "m")
    assert (by_hand.replica, by_hand.pool) == ("decode-0", "decode")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"replica": "a", "pool": "p", "role": "cook", "model": "m"}', "role"),
        ('{"replica": "a", "pool": "p", "role": "decode", "model": "m", "extra": 1}', "extra"),
        ('{"replica": "a", "pool": "p", "role": "decode"}', "model"),
        ("{", "JSON"),
    ],
)
def test_bad_config_names_the_key(content: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "slice.json"
    file.write_text(content)
    with pytest.raises(ConfigError, match=said):
        config("--config", str(file))


def test_missing_file_and_missing_model_are_one_line_and_exit_2(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        config("--config", str(tmp_path / "none.json"))
    code, said = run("--role", "decode", "--model", str(tmp_path / "nothing"))
    assert code == 2
    assert "nothing" in said and "Traceback" not in said


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, said = run("--role", "decode", "--model", str(model), "--port", str(port))
    assert code == 2
    assert str(port) in said and "Traceback" not in said
