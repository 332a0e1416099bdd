"""The answer as a page, as JSON, and as the part of cluster.yaml that it comes to."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import yaml

from cluster.simulator.fleet.page import document, plots, table
from cluster.simulator.fleet.svg import Axis, Points, plot
from cluster.sizing.engines import cluster_config
from cluster.sizing.load import Load
from cluster.sizing.measure import Measured
from cluster.sizing.question import Question
from cluster.sizing.search import Answer

SCREENED = 20  # rows and plans that are shown
SECTIONS = ("hardware", "engine", "router", "slo", "pools")  # of cluster.yaml
HEAD = (
    "plan",
    "GPUs",
    "cost",
    "good / s",
    "in time",
    "TTFT p50 / p90 / p99 ms",
    "ITL p50 / p90 / p99 ms",
    "",
)


def paste(question: Question, load: Load, measured: Measured) -> str:
    """YAML; beside `model` it is all that the plan needs."""
    config = cluster_config(question, load.longest, measured.candidate.configs())
    dumped = config.model_dump(mode="json", exclude_unset=True)
    return yaml.safe_dump(
        {name: dumped[name] for name in SECTIONS if name in dumped}, sort_keys=False
    )


def comparison(answer: Answer, question: Question) -> str:
    """Whether prompts should be computed where they are decoded, and by how much."""
    apart, together = answer.apart, answer.together
    if apart is None and together is None:
        near = answer.nearest
        return (
            f"nothing that was played holds {question.goal:.0%}; nearest: {near.candidate} with "
            f"{near.attainment:.1%}"
        )
    if apart is None or together is None:
        only, other = (
            ("aggregated", "disaggregated") if apart is None else ("disaggregated", "aggregated")
        )
        return f"{only} serving is the choice: no {other} plan that was played holds the SLO"
    a, t = apart.candidate.cost, together.candidate.cost
    if a != t:
        kind = "aggregated" if t < a else "disaggregated"
        less, more = min(a, t), max(a, t)
        return (
            f"{kind} serving is the better choice: {less:g} {question.unit} instead of {more:g} "
            f"({1 - less / more:.0%} less)"
        )
    better, worse = (together, apart) if together.goodput >= apart.goodput else (apart, together)
    kind = "aggregated" if better is together else "disaggregated"
    return (
        f"both cost {a:g} {question.unit}; {kind} serving serves {better.goodput:.2f} instead of "
        f"{worse.goodput:.2f} requests a second well"
    )


def row(measured: Measured, answer: Answer) -> list[str]:
    """As HEAD names them."""
    of_class = measured.of_class
    words = ["best"] if measured is answer.best else []
    words += ["holds"] if measured.holds else ["does not hold"]
    words += ["front"] if measured in answer.front else []
    return [
        f"{measured.candidate}",
        f"{measured.candidate.gpus}",
        f"{measured.candidate.cost:g}",
        f"{measured.goodput:,.2f}",
        f"{measured.attainment:.1%}",
        *(
            " / ".join(f"{1e3 * v:,.0f}" for v in (q.p50, q.p90, q.p99))
            for q in (of_class.ttft, of_class.itl)
        ),
        ", ".join(words),
    ]


def by_cost(measured: Sequence[Measured]) -> list[Measured]:
    return sorted(measured, key=lambda each: (each.candidate.cost, -each.goodput))


def as_json(question: Question, load: Load, answer: Answer) -> dict[str, Any]:
    best = answer.best
    return {
        "model": question.name,
        "hardware": list(question.hardware),
        "slo": question.slo.model_dump(exclude_defaults=True),
        "goal": question.goal,
        "unit": question.unit,
        "load": {
            "requests_per_s": load.rate,
            "requests": len(load.jobs),
            "window_s": load.window_s,
            "warm_up_s": load.warm_up_s,
            "starts_s": load.starts_s,
            "cached": load.hit,
            "bursts": load.mix.bursts,
            "longest": load.longest,
            "left_out": load.left_out,
        },
        "best": best.as_json() if best else None,
        "nearest": answer.nearest.as_json(),
        "aggregated": answer.together.as_json() if answer.together else None,
        "disaggregated": answer.apart.as_json() if answer.apart else None,
        "comparison": comparison(answer, question),
        "front": [each.as_json() for each in answer.front],
        "measured": [each.as_json() for each in by_cost(answer.measured)],
        "screened": [
            each.candidate.as_json() | {"attainment": each.attainment}
            for each in answer.screened[:SCREENED]
        ],
        "cluster": yaml.safe_load(paste(question, load, best)) if best else None,
        "spent": answer.spent,
    }


def page(question: Question, load: Load, answer: Answer) -> str:
    """HTML with everything in it."""
    shown = answer.best or answer.nearest
    body = [
        f"<p>{escape(described(question, load))}</p>",
        f"<p><b>{escape(verdict(answer, question))}</b></p>",
        f"<p>{escape(comparison(answer, question))}</p>",
        f"<pre>{escape(paste(question, load, shown))}</pre>",
        _front(question, answer),
        "<h2>Played in the simulator</h2>",
        table(HEAD, [row(each, answer) for each in by_cost(answer.measured)]),
        "<h2>Proposed by arithmetic</h2>",
        table(
            ("plan", "GPUs", "cost", "expected in time"),
            [
                (f"{c}", f"{c.gpus}", f"{c.cost:g}", f"{attainment:.1%}")
                for c, attainment in answer.screened[:SCREENED]
            ],
        ),
        f"<h2>{escape(str(shown.candidate))}</h2>",
        *plots(shown.played),
    ]
    return document(f"A plan for {question.name}", body)


def verdict(answer: Answer, question: Question) -> str:
    best = answer.best
    if best is None:
        return "No plan was found that holds the SLO."
    cost = f", {best.candidate.cost:g} a unit of time" if question.prices else ""
    return f"{best.candidate}: {best.candidate.gpus} GPUs{cost}, {best.attainment:.1%} in time."


def described(question: Question, load: Load) -> str:
    targets = question.slo.model_dump(include={"ttft", "itl"}, exclude_none=True)
    slo = ", ".join(f"{name.upper()} {1e3 * value:g} ms" for name, value in targets.items())
    said = (
        f"{slo} for {question.goal:.0%} of requests; {load.rate:.2f} a second in the busiest "
        f"{load.window_s:.0f} s, prompts of {load.mix.classes[0].prompts.mean:,.0f} tokens "
        f"({load.hit:.0%} seen before), answers of {load.mix.classes[0].outputs.mean:,.0f}"
    )
    if load.left_out:
        said += f"; {load.left_out} requests are longer than the model's context and left out"
    return said


def _front(question: Question, answer: Answer) -> str:
    def stairs(found: Sequence[Measured]) -> Points:
        best, points = 0.0, []
        for each in by_cost(found):
            best = max(best, each.goodput)
            points.append((each.candidate.cost, best))
        return points

    lines = {
        "disaggregated": stairs([m for m in answer.measured if not m.candidate.aggregated]),
        "aggregated": stairs([m for m in answer.measured if m.candidate.aggregated]),
    }
    offered = {name: points for name, points in lines.items() if points}
    return plot(
        "Good requests a second, by cost", offered, Axis(question.unit), Axis("good / s"), step=True
    )
