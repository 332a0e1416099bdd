"""The chart, rendered once for all tests by Helm's own engine."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helm.variants import CHART, EXAMPLES, LATER, OPTIONS, REFUSED, THERE, WRONG

PYTHON = Path(sys.prefix) / "helm" / "bin" / "python"
KUBERNETES = 34  # whose API server Helm believes to speak with
RELEASE = "kv"
WORKLOADS = ("Deployment", "StatefulSet", "RayService")
Object = dict[str, Any]


@dataclass(frozen=True)
class Rendered:
    """`objects`: also those of `helm test`. `faults`: what Kubernetes' own schemas say."""

    name: str
    objects: tuple[Object, ...]
    notes: str
    faults: tuple[str, ...]

    def of_kind(self, kind: str) -> list[Object]:
        return [each for each in self.objects if each["kind"] == kind]

    def get(self, kind: str, name: str) -> Object:
        (found,) = [each for each in self.of_kind(kind) if each["metadata"]["name"] == name]
        return found

    def config(self) -> Object:
        return yaml.safe_load(self.get("ConfigMap", RELEASE)["data"]["cluster.yaml"])


@dataclass(frozen=True)
class Pods:
    """A kind of pods that something makes: a workload, a group of a RayService, or `helm test`."""

    name: str
    labels: dict[str, str]
    spec: Object
    template: Object

    @property
    def container(self) -> Object:
        (only,) = self.spec["containers"]
        return only


@dataclass(frozen=True)
class Outcome:
    variants: dict[str, Rendered]
    refusals: dict[str, str]
    lint: Object
    judged: list[list[str]]  # of WRONG


@pytest.fixture(scope="session")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Processes of one pytest-xdist render once between them."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    with (folder / "helm.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = folder / "helm.json"
        if not done.exists():
            done.write_text(_rendered())
    made = json.loads(done.read_text())
    good, bad = {}, {}
    for name, answer in made["variants"].items():
        if "error" in answer:
            bad[name] = answer["error"]
        else:
            good[name] = Rendered(
                name, tuple(answer["objects"]), answer["notes"], tuple(answer["faults"])
            )
    return Outcome(good, bad, made["lint"], made["judged"])


def _rendered() -> str:
    """What engine.py says."""
    assert PYTHON.exists(), (
        f"{PYTHON} is missing, in which Helm's engine is installed: run `make {_stamp()}`"
    )
    refused = {f"refused: {name}": values for name, (values, _) in REFUSED.items()}
    job = {
        "chart": str(CHART),
        "kubernetes": KUBERNETES,
        "release": RELEASE,
        "variants": {**OPTIONS, **EXAMPLES, **refused},
        "judge": [thing for thing, _ in WRONG],
        "later": LATER,
        "there": THERE,
    }
    engine = Path(__file__).with_name("engine.py")
    run = subprocess.run(
        [PYTHON, engine], input=json.dumps(job), capture_output=True, text=True, timeout=110
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def _stamp() -> str:
    return str(Path(Path(sys.prefix).name) / ".helm")


@pytest.fixture(params=[*OPTIONS, *EXAMPLES])
def rendered(request: pytest.FixtureRequest, outcome: Outcome) -> Rendered:
    assert request.param in outcome.variants, outcome.refusals[request.param]
    return outcome.variants[request.param]


def pods_of(rendered: Rendered) -> Iterator[Pods]:
    """Of everything that makes pods which stay."""
    for each in rendered.objects:
        if each["kind"] in ("Deployment", "StatefulSet"):
            yield _pods(each["metadata"]["name"], each["spec"]["template"])
        elif each["kind"] == "RayService":
            cluster = each["spec"]["rayClusterConfig"]
            yield _pods("head", cluster["headGroupSpec"]["template"])
            for group in cluster["workerGroupSpecs"]:
                yield _pods(group["groupName"], group["template"])


def _pods(name: str, template: Object) -> Pods:
    return Pods(name, template["metadata"]["labels"], template["spec"], template)


def selects(selector: Object, labels: dict[str, str]) -> bool:
    assert set(selector) <= {"matchLabels"}
    return all(labels.get(key) == value for key, value in selector["matchLabels"].items())
