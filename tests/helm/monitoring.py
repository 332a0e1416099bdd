"""The Prometheus operator's own types, as a package publishes models made from its CRDs.

Its module holds every kind the operator has, with builders, and takes six seconds to import. So
only the fields of the kinds that the chart makes are taken from its source, and a key that they do
not know is a fault.
"""

from __future__ import annotations

import ast
import sys
from datetime import datetime
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pydantic

PACKAGE = Path("lib/python3.12/site-packages/cloudcoil/models/prometheus_operator/v1.py")
KINDS = ("ServiceMonitor", "PodMonitor", "PrometheusRule")


class Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", populate_by_name=True)


def published(source: str) -> dict[str, type[pydantic.BaseModel]]:
    """The models of KINDS, and of all that they are made of."""
    tree = ast.parse(source)
    classes = {part.name: part for part in tree.body if isinstance(part, ast.ClassDef)}
    wanted: set[str] = set()
    waiting = list(KINDS)
    while waiting:
        name = waiting.pop()
        if name in classes and name not in wanted:
            wanted.add(name)
            of = classes[name]
            of.body = [part for part in of.body if isinstance(part, ast.AnnAssign)]
            waiting += [part.id for part in ast.walk(of) if isinstance(part, ast.Name)]
    imports = [
        part
        for part in tree.body
        if isinstance(part, ast.ImportFrom) and part.module in ("__future__", "typing", "pydantic")
    ]
    made = ModuleType("prometheus_operator")
    core = SimpleNamespace(ObjectMeta=dict)  # Kubernetes' own
    vars(made).update(BaseModel=Strict, Resource=Strict, apimachinery=core, datetime=datetime)
    module = ast.Module([*imports, *(of for name, of in classes.items() if name in wanted)], [])
    sys.modules[made.__name__] = made  # where pydantic looks names up
    exec(compile(module, made.__name__, "exec"), vars(made))
    return {kind: getattr(made, kind) for kind in KINDS}
