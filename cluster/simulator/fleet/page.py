"""The report of a simulation: one page that needs no other file and no network."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from cluster.simulator.fleet.figures import Figures, Quantiles, ttfts
from cluster.simulator.fleet.play import Played
from cluster.simulator.fleet.svg import Axis, Points, plot
from router.flow.book import Result

MOST_POINTS = 300
TIME = Axis("seconds")
_STYLE = """
body { font: 14px/1.4 system-ui, sans-serif; margin: 2em auto; max-width: 1340px; color: #222 }
table { border-collapse: collapse; margin: 1em 0 }
td, th { padding: .2em .8em; text-align: right; border-bottom: 1px solid #ddd }
td:first-child, th:first-child { text-align: left }
figure { display: inline-block; width: 640px; margin: .5em; vertical-align: top }
figcaption { font-weight: 600 }
""".strip()


def page(title: str, played: Played, found: Figures) -> str:
    return document(title, [_summary(found), *plots(played)])


def document(title: str, body: Sequence[str]) -> str:
    """Needs nothing beside itself. `body`: HTML."""
    body = [f"<h1>{escape(title)}</h1>", *body]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}'
        f"</title><style>{_STYLE}</style></head>\n<body>\n" + "\n".join(body) + "\n</body></html>\n"
    )


def _summary(found: Figures) -> str:
    whole = table(
        ("requests", "served / s", "good / s", "attainment", "refused", "failed", "preempted",
         "cached", "replica-hours"),
        [(f"{found.requests:,}", f"{found.throughput:,.2f}", f"{found.goodput:,.2f}",
          f"{found.attainment:.1%}", f"{found.refused:,}", f"{found.failed:,}",
          f"{found.preemptions:,}", f"{found.hit:.1%}", f"{found.replica_hours:,.2f}")],
    )  # fmt: skip
    classes = table(
        ("class", "requests", "attainment", "late", "slow", "refused", "TTFT p50 / p90 / p99 (ms)",
         "ITL mean / p50 / p90 / p99 (ms)"),
        [(name, f"{each.requests:,}", f"{each.attainment:.1%}", f"{each.late:,}",
          f"{each.slow:,}", f"{each.refused:,}", _ms(each.ttft, 1), _ms(each.itl, 0))
         for name, each in found.classes.items()],
    )  # fmt: skip
    pools = table(
        ("pool", "replicas", "replica-hours", "busy", "preempted", "steps"),
        [(name, f"{pool.replicas}", f"{pool.replica_hours:,.2f}", f"{pool.utilisation:.1%}",
          f"{pool.preemptions:,}", f"{pool.steps:,}") for name, pool in found.pools.items()],
    )  # fmt: skip
    return whole + classes + pools


def plots(played: Played) -> list[str]:
    samples = played.samples

    def over_time(value: str) -> dict[str, Points]:
        return {
            name: [(s.at_s, float(getattr(s.pools[name], value))) for s in samples]
            for name in played.pools
        }

    part = Axis("part", top=1.0)
    queued: dict[str, Points] = {"in front of the cluster": [(s.at_s, s.queued) for s in samples]}
    waiting = {f"waiting in {name}": points for name, points in over_time("waiting").items()}
    classes = list(dict.fromkeys(outcome.slo_class for outcome in played.outcomes))
    ttft: dict[str, Points] = {
        name: _shares(ttfts(o for o in played.outcomes if o.slo_class == name)) for name in classes
    }
    gaps: dict[str, Points] = {name: book.points() for name, book in played.gaps.items()}
    return [
        plot("Attainment, by time of arrival", _attainment(played), TIME, part, step=True),
        plot("Queues", queued | waiting, TIME, Axis("requests"), step=True),
        plot("Replicas", over_time("replicas"), TIME, Axis("replicas"), step=True),
        plot("Sequences that run", over_time("running"), TIME, Axis("sequences"), step=True),
        plot("Time in steps", over_time("busy"), TIME, part, step=True),
        plot("KV pages held", over_time("kv"), TIME, part, step=True),
        plot("TTFT: part of requests", ttft, Axis("seconds", log=True), part),
        plot("ITL: part of tokens", gaps, Axis("seconds", log=True), part),
    ]


def _attainment(played: Played) -> dict[str, Points]:
    """Of each class, in parts of the window."""
    width = played.window_s / 60
    found: dict[str, dict[int, list[bool]]] = {}
    for outcome in played.outcomes:
        slots = found.setdefault(outcome.slo_class, {})
        slots.setdefault(int(outcome.ask.at_s / width), []).append(outcome.result is Result.GOOD)
    return {
        name: [(slot * width, sum(good) / len(good)) for slot, good in sorted(slots.items())]
        for name, slots in found.items()
    }


def _shares(values: Sequence[float]) -> Points:
    """(value, part of all that is not above it)."""
    ordered = sorted(values)
    points = [(value, (place + 1) / len(ordered)) for place, value in enumerate(ordered)]
    return points[:: max(1, len(points) // MOST_POINTS)] + points[-1:]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return f"<table>{row(head, 'th')}{''.join(row(cells, 'td') for cells in rows)}</table>"


def _ms(values: Quantiles, first: int) -> str:
    every = (values.mean, values.p50, values.p90, values.p99)
    return " / ".join(f"{1e3 * value:,.1f}" for value in every[first:])
