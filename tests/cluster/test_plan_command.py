"""`kvasir plan` as people see it, and what its screen and its search promise."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from cluster.bench.workload import Job
from cluster.cli import main
from cluster.config import load_config
from cluster.sizing.candidate import Candidate, Sized
from cluster.sizing.engines import engines
from cluster.sizing.load import Load, read_load
from cluster.sizing.question import Question, read_prices, read_slo
from cluster.sizing.screen import Screen
from cluster.sizing.search import _Runs, _settle
from router.latency import FittedLatency
from workers.core.errors import ConfigError
from workers.models.config import read_shape

Plan = Callable[..., str]


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Plan:
    """Runs `kvasir plan` and returns what it printed; fails unless it exits with `code`."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["kvasir", "plan", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        printed = capsys.readouterr()
        assert caught.value.code == code, printed.err
        return printed.err if code else printed.out

    return run


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return write(tmp_path / "trace.jsonl", traced())


def traced() -> list[Job]:
    return jobs(60, prompt=1000)


def jobs(count: int, rate: float = 4.0, prompt: int = 3000, output: int = 100) -> list[Job]:
    rng = random.Random(1)
    found, at_s = [], 0.0
    for number in range(count):
        lengths = rng.randint(prompt // 2, prompt * 3 // 2), rng.randint(output // 2, output * 2)
        found.append(Job(at_s, *lengths, f"{number}"))
        at_s += rng.expovariate(rate)
    return found


def write(path: Path, rows: list[Job]) -> Path:
    lines = (
        {
            "timestamp_ms": 1000 * job.at_s,
            "input_length": job.input_tokens,
            "output_length": job.output_tokens,
        }
        for job in rows
    )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def asked(trace: Path, **other: str) -> list[str]:
    options = {"model": "llama-8b", "hardware": "h100", "slo": "ttft=1s,itl=30ms"} | other
    return [*(w for n, v in options.items() for w in (f"--{n}", v)), "--trace", str(trace)]


def question(**other: object) -> Question:
    given = {"hardware": ("h100",), "slo": read_slo("ttft=1s,itl=30ms")} | other
    return Question("llama-8b", read_shape("llama-8b"), **given)  # type: ignore[arg-type]


def screened(asked: Question, rows: list[Job], **other: float) -> tuple[Screen, Load]:
    load = read_load(rows, asked.slo, context_length=131_072, **other)  # type: ignore[arg-type]
    latency = FittedLatency(asked.model)
    return Screen(asked, load, latency, engines(asked, load.longest, latency)), load


def test_a_plan_is_found_played_and_can_be_pasted(plan: Plan, trace: Path, tmp_path: Path) -> None:
    page, figures = tmp_path / "plan.html", tmp_path / "plan.json"
    printed = plan(
        *asked(trace, tp="1,2", rate="20", runs="7", out=str(page), json=str(figures)),
    )
    found = json.loads(figures.read_text())
    best = found["best"]
    assert best["holds"] and best["figures"]["attainment"] >= 0.95
    holding = [each for each in found["measured"] if each["holds"]]
    assert best["cost"] == min(each["cost"] for each in holding)
    # The front rises: nothing dearer serves fewer.
    goodputs = [each["figures"]["goodput"] for each in found["front"]]
    assert goodputs == sorted(goodputs)
    assert found["comparison"] in printed
    # What is printed is a config, of these pools.
    pasted = yaml.safe_load(printed.split("cluster.yaml, beside its model:")[1])
    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump({"model": "llama-8b"} | pasted))
    pools = load_config(file).pools
    assert [(p.name, p.replicas) for p in pools] == [
        (p["name"], p["replicas"]) for p in best["pools"]
    ]
    html = page.read_text()
    assert "Good requests a second, by cost" in html and "<svg" in html
    assert "http" not in html.replace("http://www.w3.org", "")


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"hardware": "h10"}, "known: a100"),
        ({"slo": "ttft=soon"}, "no duration"),
        ({"slo": "wait=3"}, "write ttft=2s,itl=50ms"),
        ({"slo": "ttft=1s,ttft=2s"}, "ttft stands twice"),
        ({"slo": "ttft=1ms"}, "Nearest: --slo ttft="),
        ({"slo": "itl=1ms"}, "Nearest: --slo itl="),
        ({"model": "llama-70b", "tp": "1"}, "tensor_parallel: 2 would fit"),
        ({"model": "llama-70b", "gpus": "1"}, "the smallest replica that fits takes 2"),
        ({"tp": "3"}, "3 does not divide 32 attention heads"),
        ({"price": "l40s=1"}, "--hardware has only h100"),
        ({"hardware": "h100,l40s", "price": "h100=2"}, "says nothing of l40s"),
        ({"rate": "500", "gpus": "4"}, "GPUs would ("),
    ],
)
def test_what_cannot_be_is_said_with_what_can(
    plan: Plan, trace: Path, other: dict[str, str], said: str
) -> None:
    assert said in plan(*asked(trace, **other), code=2)


def test_traces_without_a_rate_are_said(plan: Plan, tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    assert "has no rows" in plan(*asked(empty), code=2)
    once = write(tmp_path / "once.jsonl", jobs(1))
    assert "at one moment" in plan(*asked(once), code=2)


def test_the_slo_that_is_proposed_is_one_that_can_be_held(plan: Plan, trace: Path) -> None:
    said = plan(*asked(trace, slo="ttft=1ms,itl=1ms"), code=2)
    nearest = said.split("Nearest: --slo ")[1].strip()
    screen, _ = screened(question(slo=read_slo(nearest)), traced())
    assert screen.apart() or screen.together()


def test_more_load_never_takes_a_cheaper_plan() -> None:
    costs = []
    for rate in (4.0, 16.0, 64.0):
        screen, _ = screened(question(), jobs(80), rate=rate)
        costs.append((screen.apart()[0].candidate.cost, screen.together()[0].candidate.cost))
    assert costs == sorted(costs) and costs[0] < costs[-1]
    assert all(low <= high for pair in zip(*costs, strict=True) for low, high in pairwise(pair))


def test_the_cheaper_hardware_is_taken_where_prices_say_so() -> None:
    for prices, device in (({"h100": 1, "a100": 9}, "h100"), ({"h100": 9, "a100": 1}, "a100")):
        screen, _ = screened(question(hardware=("h100", "a100"), prices=prices), jobs(80))
        assert {pool.engine.hardware for pool in screen.apart()[0].candidate.pools} == {device}


def test_the_search_mends_what_the_screen_proposes_and_stops_at_its_bound() -> None:
    """From a size that is far too small, and from one that is far too large."""
    asked = question(tensor=(1,))
    screen, load = screened(asked, jobs(60), rate=16.0)
    (engine,) = screen.engines
    found = []
    for size in (1, 4):
        runs = _Runs(asked, load, 12, lambda candidate, left: None)
        _settle(runs, screen, Candidate((Sized("aggregated", engine, size),)), 0)
        holding = [m.candidate.replicas("aggregated") for m in runs.known.values() if m.holds]
        failing = [m.candidate.replicas("aggregated") for m in runs.known.values() if not m.holds]
        assert min(holding) == max(failing) + 1
        found.append(min(holding))
    assert found[0] == found[1] > 1
    runs = _Runs(asked, load, 1, lambda candidate, left: None)
    _settle(runs, screen, Candidate((Sized("aggregated", engine, 1),)), 0)
    assert len(runs.known) == 1


def test_the_busiest_stretch_is_planned_for() -> None:
    slow, fast = jobs(60, rate=1.0), jobs(300, rate=10.0)
    begins = slow[-1].at_s + 1.0
    rows = slow + [
        Job(begins + job.at_s, job.input_tokens, job.output_tokens, f"fast {job.seed}")
        for job in fast
    ]
    load = read_load(rows, read_slo("itl=30ms"), context_length=131_072, window_s=15.0)
    assert load.starts_s >= begins - load.warm_up_s
    assert load.rate == pytest.approx(10.0, rel=0.4)


def test_requests_beyond_the_models_context_are_counted_out() -> None:
    rows = jobs(40)
    rows[3] = Job(rows[3].at_s, 200_000, 10, "long")
    load = read_load(rows, read_slo("ttft=1s"), context_length=131_072)
    assert load.left_out == 1 and load.longest < 131_072
    with pytest.raises(ConfigError, match="all 1 requests"):
        read_load(rows[3:4], read_slo("ttft=1s"), context_length=131_072)


def test_prices_are_numbers_above_zero() -> None:
    assert read_prices(["h100=2.5,l40s=1"], ["h100", "l40s"]) == {"h100": 2.5, "l40s": 1.0}
    for given in ("h100=0", "h100=much", "h100"):
        with pytest.raises(ConfigError):
            read_prices([given], ["h100"])
