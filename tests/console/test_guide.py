"""The README and the operator's guide: what they tell to type is typed, against a demo cluster."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from typer.testing import CliRunner

from cluster.commands.app import app
from tests.console.conftest import Operated
from tests.console.snippets import PAGES, ROOT, Snippet, snippets

FOUND = list(snippets())
RUN = [each for each in FOUND if not each.not_run]
PATIENCE_S = 100
pytestmark = pytest.mark.timeout(300)  # the first one starts the cluster
# Commands that ask a router, which is not at its usual port here.
ASKING = ("status", "tickets", "fsck", "flip", "record", "explain")
FOLDERS = ("cluster", "docs", "helm", "load_tests")

SHIM = """#!/bin/sh
case "$1" in {asking}) set -- "$@" --router {router} ;; esac
exec {python} -c 'from cluster.cli import main; main()' "$@"
"""


class Typist:
    """Types commands in a folder of its own, which has the repository's beside it. A command that
    has run already is not run again: it would only say the same."""

    def __init__(self, folder: Path, cluster: Operated) -> None:
        self.folder = folder / "here"
        self.folder.mkdir()
        for name in FOLDERS:
            (self.folder / name).symlink_to(ROOT / name)
        self.cluster = cluster
        self.said: dict[str, str] = {}
        serving = cluster.serving
        shim = folder / "bin" / "kvasir"
        shim.parent.mkdir()
        shim.write_text(
            SHIM.format(asking="|".join(ASKING), router=serving.grpc, python=sys.executable)
        )
        shim.chmod(0o755)
        self.environment = os.environ | {
            "PATH": f"{shim.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "SERVE": str(serving.process.pid),
            "OMP_NUM_THREADS": "1",
        }

    def type(self, snippet: Snippet) -> str:
        """What all of it says. It must succeed."""
        said = []
        for command in snippet.commands():
            if command not in self.said:
                self.said[command] = self._run(snippet, command)
            said.append(self.said[command])
        return "\n".join(said)

    def _run(self, snippet: Snippet, command: str) -> str:
        text = self._here(command)
        if snippet.language == "python":
            exec(text, {})
            return ""
        if text.startswith("kvasir ") and "\n" not in text:
            return self._kvasir(*shlex.split(text)[1:])
        done = subprocess.run(
            ["bash", "-eu", "-o", "pipefail", "-c", text], cwd=self.folder, env=self.environment,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE_S,
        )  # fmt: skip
        assert done.returncode == 0, f"{snippet}\n{text}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def _kvasir(self, *arguments: str) -> str:
        """In this process: the interpreter and its libraries need seconds to start."""
        router = ["--router", self.cluster.serving.grpc] if arguments[0] in ASKING else []
        with contextlib.chdir(self.folder):
            done = CliRunner().invoke(app, [*arguments, *router])
        assert done.exit_code == 0, f"{arguments}\n{done.output}\n{done.exception!r}"
        return done.output

    def _here(self, command: str) -> str:
        """With the ports of this cluster."""
        console = self.cluster.console.rstrip("/")
        return command.replace("http://127.0.0.1:8000", self.cluster.serving.url).replace(
            "http://127.0.0.1:8001", console
        )


def as_case(snippet: Snippet) -> Any:
    marks = [pytest.mark.slow] if snippet.seldom else []
    return pytest.param(snippet, marks=marks, id=str(snippet))


@pytest.fixture(scope="module")
def typist(tmp_path_factory: pytest.TempPathFactory, cluster: Operated) -> Typist:
    return Typist(tmp_path_factory.mktemp("guide"), cluster)


@pytest.fixture(scope="module")
def one_request(cluster: Operated) -> None:
    """So that there is something to be explained."""
    body = {"model": cluster.serving.model, "prompt": "one two three", "max_tokens": 4}
    httpx.post(f"{cluster.serving.url}/v1/completions", json=body, timeout=60).raise_for_status()


@pytest.mark.parametrize("snippet", [as_case(each) for each in RUN])
@pytest.mark.usefixtures("one_request")
def test_it_can_be_typed_as_it_stands_there(snippet: Snippet, typist: Typist) -> None:
    said = typist.type(snippet)
    assert snippet.expect in said
    assert said.strip() or snippet.language == "python"


def test_most_is_run_and_what_is_not_says_why() -> None:
    assert len(RUN) >= 15
    reasons = [why for each in FOUND for why in (each.not_run, each.seldom) if why]
    assert reasons and all(len(why) > 15 for why in reasons)


def test_links_of_the_guide_lead_somewhere() -> None:
    broken = []
    for page in PAGES:
        text = page.read_text("utf-8")
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            path, _, anchor = target.partition("#")
            if "://" in target:
                continue
            there = (page.parent / path).resolve() if path else page
            if not there.exists():
                broken.append(f"{page.name}: {target}")
            elif anchor and there.suffix == ".md" and anchor not in anchors(there):
                broken.append(f"{page.name}: {target} has no such heading")
    assert not broken


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_each_alert_has_its_section_in_the_runbook_and_no_section_is_left_over() -> None:
    rules = yaml.safe_load((ROOT / "helm/kvasir/rules/alerts.yaml").read_text("utf-8"))
    alerts = [rule["alert"] for group in rules["groups"] for rule in group["rules"]]
    runbook = (ROOT / "docs/guide/runbook.md").read_text("utf-8")
    assert len(alerts) > 10
    assert sorted(re.findall(r"^## (\w+)$", runbook, re.MULTILINE)) == sorted(alerts)


def test_config_keys_that_the_guide_names_exist() -> None:
    keys = (ROOT / "docs/config.md").read_text("utf-8")
    named = {
        name
        for page in PAGES[1:]
        for name in re.findall(
            r"`((?:engine|router|pools\[\]|slo|transport|planner|telemetry)\.[a-z_.]+)[`:]",
            page.read_text("utf-8"),
        )
    }
    assert len(named) > 10
    assert not [name for name in named if f"`{name}`" not in keys]
