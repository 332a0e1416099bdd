"""The tables of docs/metrics.md, and what a /metrics says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from prometheus_client.openmetrics.parser import text_string_to_metric_families

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
ROW = re.compile(r"\| `(\w+)` \| (counter|gauge|histogram) \| (.*?) \| (.*?) \|")
OPENMETRICS = {"accept": "application/openmetrics-text; version=1.0.0"}


class Metric(NamedTuple):
    """As in a query: a counter's name ends with _total."""

    name: str
    kind: str
    labels: tuple[str, ...]
    meaning: str


def documented(section: str) -> dict[str, Metric]:
    """By name, of the table under that heading."""
    _, found, rest = PAGE.read_text().partition(f"## {section}\n")
    assert found, f"no section {section}"
    table = rest.partition("\n## ")[0]
    rows = [ROW.fullmatch(line) for line in table.splitlines() if line.startswith("| `")]
    assert rows and all(rows), f"{section}: a row that cannot be read"
    metrics = [
        Metric(row[1], row[2], tuple(re.findall(r"`(\w+)`", row[3])), row[4].replace(r"\|", "|"))
        for row in rows
        if row
    ]
    assert len({metric.name for metric in metrics}) == len(metrics), "one stands there twice"
    return {metric.name: metric for metric in metrics}


def exported(text: str) -> dict[str, Metric]:
    """By name; labels are those of its samples, none while it has no sample."""
    found = {}
    for family in text_string_to_metric_families(text):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        meaning = family.documentation
        found[name] = Metric(name, family.type, tuple(sorted(labels)), meaning)
    return found
