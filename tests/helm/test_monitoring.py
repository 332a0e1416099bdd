"""What the chart makes for the Prometheus operator is of the operator's own types."""

from __future__ import annotations

from pathlib import Path

import pydantic
import pytest

from tests.helm.conftest import PYTHON, Outcome
from tests.helm.monitoring import KINDS, PACKAGE, published

VARIANTS = ("monitored", "h100x8-70b")


@pytest.fixture(scope="module")
def models() -> dict[str, type[pydantic.BaseModel]]:
    path = PYTHON.parents[1] / PACKAGE
    assert path.exists(), (
        f"{path} is missing: remove {PYTHON.parents[2] / '.helm'}, and run make test"
    )
    return published(Path(path).read_text())


def test_the_operators_types_take_them(
    outcome: Outcome, models: dict[str, type[pydantic.BaseModel]]
) -> None:
    for variant in VARIANTS:
        for kind in KINDS:
            found = outcome.variants[variant].of_kind(kind)
            assert found, (variant, kind)
            for each in found:
                models[kind].model_validate(each)


@pytest.mark.parametrize(
    ("kind", "spec", "said"),
    [
        ("ServiceMonitor", {"selector": {}, "endpoints": [{"prt": "admin"}]}, "prt"),
        ("ServiceMonitor", {"selector": {}, "endpoints": [{"scheme": "ftp"}]}, "scheme"),
        ("ServiceMonitor", {"endpoints": []}, "selector"),
        ("PodMonitor", {"selector": {}, "endpoints": []}, "endpoints"),
        ("PrometheusRule", {"groups": [{"rules": []}]}, "name"),
        ("PrometheusRule", {"groups": [{"name": "g", "rules": [{"alert": "a"}]}]}, "expr"),
    ],
)
def test_they_refuse_what_is_wrong(
    models: dict[str, type[pydantic.BaseModel]], kind: str, spec: object, said: str
) -> None:
    head = {"apiVersion": "monitoring.coreos.com/v1", "kind": kind, "metadata": {"name": "x"}}
    with pytest.raises(pydantic.ValidationError, match=said):
        models[kind].model_validate(head | {"spec": spec})
