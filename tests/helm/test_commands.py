"""The command lines in the chart are ones that our command line takes."""

from __future__ import annotations

import pytest
import typer.main

from cluster.commands.app import app
from tests.helm.conftest import Outcome, pods_of


def test_kvasir_takes_every_command_line(outcome: Outcome, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POD_NAME", "kv-decode-x")  # as the chart's env has them
    monkeypatch.setenv("POD_IP", "10.0.0.1")
    lines: set[tuple[str, ...]] = set()
    for rendered in outcome.variants.values():
        for pods in pods_of(rendered):
            container = pods.container
            if container.get("command") == ["kvasir"]:
                lines.add(tuple(container["args"]))
                assert {"POD_NAME", "POD_IP"} <= {each["name"] for each in container["env"]}
            stop = container.get("lifecycle", {}).get("preStop", {}).get("exec", {})
            if stop.get("command", [""])[0] == "kvasir":
                lines.add(tuple(stop["command"][1:]))
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert {line[0] for line in lines} == {"worker", "router", "planner", "drain"}
    for name, *rest in lines:
        commands[name].make_context(name, list(rest))  # raises where it does not fit
