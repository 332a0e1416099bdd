"""The command lines in the chart are ones that our command line takes."""

from __future__ import annotations

import re

import pytest
import typer.main

from cluster.commands.app import app
from tests.helm.conftest import Outcome, pods_of
from tests.helm.variants import ROOT


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


def test_ports_that_are_forwarded_are_those_of_a_service(outcome: Outcome) -> None:
    rendered = outcome.variants["default"]
    pages = [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md"]
    texts = [rendered.notes, *(page.read_text("utf-8") for page in pages)]
    told = [
        found
        for text in texts
        for found in re.findall(r"port-forward (?:service|svc)/(\S+)((?: \d+)+)", text)
    ]
    assert len(told) >= 4
    for name, ports in told:
        service = rendered.get("Service", re.sub("^kvasir", "kv", name))
        there = {str(port["port"]) for port in service["spec"]["ports"]}
        assert set(ports.split()) <= there, (name, ports)
