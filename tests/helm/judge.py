"""Kubernetes' own schemas, strictly: an unknown key is a fault."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml
from jsonschema import Draft202012Validator
from kubernetes_validate import utils

# For each object it would read a version's megabyte of definitions again.
utils.schema_contents = cache(utils.schema_contents)
utils.all_versions = cache(utils.all_versions)
VERSIONS = ("1.30", "1.34", "1.37")  # the oldest that the chart takes, one between, the newest
SINCE = {"image": "1.33"}  # kinds of volumes
RAY = Path(__file__).with_name("rayservice.schema.yaml")
# The Prometheus operator's: test_monitoring.py judges them.
UNKNOWN = ("ServiceMonitor", "PodMonitor", "PrometheusRule")


class Judge:
    def __init__(self) -> None:
        self._ray = Draft202012Validator(yaml.safe_load(RAY.read_text()))
        self._seen: dict[str, list[str]] = {}

    def faults(self, thing: dict[str, Any]) -> list[str]:
        text = json.dumps(thing, sort_keys=True)
        if text not in self._seen:
            self._seen[text] = list(self._judge(thing))
        return self._seen[text]

    def _judge(self, thing: dict[str, Any]) -> list[str]:
        kind, name = thing["kind"], thing["metadata"]["name"]
        if kind in UNKNOWN:
            return []
        if kind == "RayService":
            found = [
                f"{name}: {error.json_path}: {error.message}"
                for error in self._ray.iter_errors(thing)
            ]
            return found + [fault for each in _templates(thing) for fault in self.faults(each)]
        return [
            f"Kubernetes {version}: {kind} {name}: {fault}"
            for version in VERSIONS
            if (fault := _fault(thing, version)) is not None
        ]


def _fault(thing: dict[str, Any], version: str) -> str | None:
    text = json.dumps(thing)
    if any(f'"{key}": {{"' in text and version < since for key, since in SINCE.items()):
        return None
    try:
        kubernetes_validate.validate(thing, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return f"{'.'.join(map(str, error.path))}: {error.message}"
    return None


def _templates(service: dict[str, Any]) -> list[dict[str, Any]]:
    """The pods of a RayService as objects that Kubernetes knows."""
    cluster = service["spec"]["rayClusterConfig"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    head = {"apiVersion": "v1", "kind": "PodTemplate"}
    return [
        head | {"metadata": {"name": group.get("groupName", "head")}, "template": group["template"]}
        for group in groups
    ]
