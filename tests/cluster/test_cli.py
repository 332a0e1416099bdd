"""The `kvasir` command as people meet it when something is wrong."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest

from cluster.cli import main

PORT = 1  # nobody listens there
ANY_PORTS = ("--http-port", "0", "--grpc-port", "0", "--admin-port", "0")


@dataclass
class Outcome:
    code: int
    stderr: str


class Command(Protocol):
    def __call__(self, *arguments: str) -> Outcome: ...


@pytest.fixture
def kvasir(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    def run(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["kvasir", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        assert isinstance(caught.value.code, int)
        return Outcome(caught.value.code, capsys.readouterr().err)

    return run


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["serve", "--config", "/nowhere.yaml"], "error: cannot read /nowhere.yaml"),
        (["serve", "--model", "/nowhere"], "error: model '/nowhere' is neither a directory nor"),
        (["serve", "--dtype", "int3"], "error: command line: engine.dtype:"),
        (
            ["serve", "--redis-url", f"redis://127.0.0.1:{PORT}", *ANY_PORTS],
            "error: Redis is unreachable",
        ),
        (["status", "--router", f"127.0.0.1:{PORT}"], "is `kvasir serve` running?"),
        (["tickets", "--router", f"127.0.0.1:{PORT}"], "is `kvasir serve` running?"),
        (["chat", "--url", f"http://127.0.0.1:{PORT}"], "is `kvasir serve` running?"),
        (["bench", "serve", "--url", f"http://127.0.0.1:{PORT}"], "error: no list of models"),
        (["bench", "serve", "--slo", "nonsense"], "error: --slo: 'nonsense' is not like"),
        (["bench", "serve", "--trace", "/nowhere.jsonl"], "error: cannot read /nowhere.jsonl"),
        (["bench", "serve", "--rate", "1", "--concurrency", "2"], "error: --rate goes with"),
        (["serve", "--prefill", "0"], "--prefill"),
        (["chat", "--url", "http://[::1"], "error: --url 'http://[::1': "),
        (["chat", "--url", "127.0.0.1"], "error: --url '127.0.0.1': expected http://host:port"),
        (["bench", "serve", "--url", "http://[::1"], "error: --url 'http://[::1': "),
    ],
    ids=lambda value: " ".join(value[:3]) if isinstance(value, list) else "",
)
def test_errors_are_one_clear_line_and_exit_code_2(
    kvasir: Command, arguments: list[str], says: str
) -> None:
    done = kvasir(*arguments)
    assert says in done.stderr
    assert done.code == 2


def test_ctrl_c_while_still_importing(kvasir: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "cluster.commands.app":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "cluster.commands.app", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Interrupted(), *sys.meta_path])
    done = kvasir("serve")
    assert (done.code, done.stderr) == (130, "")


def test_config_faults_name_the_line(kvasir: Command, tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text("model: demo\nengnie: {}\n")
    done = kvasir("serve", "--config", str(path))
    assert done.stderr.startswith(f"error: {path}:2: unknown key 'engnie'; known here: ")
    assert done.code == 2
