"""values.schema.json of the chart: chart.schema.yaml, with the config's own schema for `cluster`.

`python helm/make_schema.py` writes it; `make helm` does that.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from cluster.config import ClusterConfig
from workers.core.hardware import PROFILES

HERE = Path(__file__).parent
CHART = HERE / "kvasir"
# The chart knows them: where its routers listen and who its Redis is.
CHARTS_OWN = {
    "ClusterConfig": ("redis", "internal_tls"),
    "RouterSection": ("grpc", "http", "admin", "tls", "api_keys"),
    "PlannerSection": ("routers", "host", "metrics_port"),
    # Files come from Secrets, whose names stand in the values.
    "TelemetryConfig": ("otlp_headers_file",),
    "RedisEndpoint": ("password_file", "ca", "cert", "key"),
}
# Its names are checked in Python.
HARDWARE = {"ClusterConfig": ("hardware",), "PoolConfig": ("hardware",)}


def schema() -> dict[str, Any]:
    chart = yaml.safe_load((HERE / "chart.schema.yaml").read_text())
    config = ClusterConfig.model_json_schema()
    defs = config.pop("$defs") | {"ClusterConfig": config}
    for name, keys in CHARTS_OWN.items():
        for key in keys:
            defs[name]["properties"].pop(key, None)
    for name, keys in HARDWARE.items():
        for key in keys:
            _narrow(defs[name]["properties"][key], sorted(PROFILES))
    chart["$defs"] |= _reachable(defs, chart)
    return _plain(chart)


def _narrow(place: dict[str, Any], names: list[str]) -> None:
    """Strings of `place` are among `names`."""
    for way in place.get("anyOf", [place]):
        if way.get("type") == "string":
            way["enum"] = names


def _reachable(defs: dict[str, Any], chart: dict[str, Any]) -> dict[str, Any]:
    """Those that are still spoken of."""
    found: dict[str, Any] = {}
    waiting = [chart]
    while waiting:
        text = json.dumps(waiting.pop())
        for name in defs.keys() - found.keys():
            if f'"#/$defs/{name}"' in text:
                found[name] = defs[name]
                waiting.append(defs[name])
    return {name: found[name] for name in sorted(found)}


def _plain(value: Any) -> Any:
    """Without titles, which only say the names again, and defaults, which Helm does not read."""
    if isinstance(value, dict):
        return {
            key: _plain(part)
            for key, part in value.items()
            if not (
                key in ("title", "default") and not isinstance(part, dict) and _is_schema(value)
            )
        }
    return [_plain(part) for part in value] if isinstance(value, list) else value


def _is_schema(value: dict[str, Any]) -> bool:
    """Not the table of properties, whose keys are names."""
    return not all(isinstance(part, dict) for part in value.values())


def text() -> str:
    return json.dumps(schema(), indent=1) + "\n"


if __name__ == "__main__":
    (CHART / "values.schema.json").write_text(text())
