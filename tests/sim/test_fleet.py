"""The whole-cluster simulator: right about what can be computed by hand, the same each time, and
nothing is left behind."""

from __future__ import annotations

import json
import random
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.bench.workload import Job
from cluster.cli import main
from cluster.config import ClusterConfig
from cluster.simulator.fleet.asks import Ask, BlockNames, asks
from cluster.simulator.fleet.failures import Failure, read_failures
from cluster.simulator.fleet.figures import figures
from cluster.simulator.fleet.fleet import Fleet
from cluster.simulator.fleet.plan import FleetPlan
from cluster.simulator.fleet.play import Played, play
from cluster.simulator.fleet.record import Histogram
from cluster.simulator.fleet.setup import Options, fleet_plan, read_model
from router.flow.book import Result
from workers.core.errors import ConfigError
from workers.core.scheduler_runs import RunScheduler
from workers.core.step_work import StepWork

BLOCK = 16


def plan(mode: str = "remote", noise: float = 0.0, seed: int = 1, **pools: int) -> FleetPlan:
    """Of llama-8b on H100s; replicas by role."""
    config = ClusterConfig.model_validate(
        {
            "model": "llama-8b",
            "hardware": "h100",
            "engine": {"step_tokens": 1024, "max_seqs": 64, "kv_tokens": 40_000},
            "pools": [
                {"name": role, "role": role, "replicas": count} for role, count in pools.items()
            ],
        }
    )
    return fleet_plan(config, read_model("llama-8b"), Options(mode, noise, seed))  # type: ignore[arg-type]


def jobs(count: int, *, rate: float = 20.0, seed: int = 1, shared: int = 0) -> list[Job]:
    """Lengths and gaps drawn at random; the first `shared` blocks of 64 tokens are everybody's."""
    rng = random.Random(seed)
    found, at_s = [], 0.0
    for number in range(count):
        prompt = rng.randint(64 * shared + 1, 64 * shared + 3000)
        blocks = tuple(f"shared {place}" for place in range(shared))
        found.append(
            Job(at_s, prompt, rng.randint(1, 300), f"{number}", blocks, 64 if shared else 0)
        )
        at_s += rng.expovariate(rate)
    return found


def run(plan: FleetPlan, trace: list[Job], failures: tuple[Failure, ...] = ()) -> Played:
    window_s = max(1.0, trace[-1].at_s)
    played = play(plan, asks(trace, BLOCK), window_s, failures, Fleet.check_integrity)
    assert played.leftover == []
    assert len(played.outcomes) == len(trace)
    return played


def alone(prompt: int, output: int) -> list[Job]:
    return [Job(0.0, prompt, output, "alone")]


def told(played: Played) -> list[tuple[object, ...]]:
    """What each request saw, in the order of their ends."""
    return [(o.ask.id, o.result, o.ttft_s, o.itl_s, o.tokens) for o in played.outcomes]


def test_a_lone_request_takes_what_the_model_predicts() -> None:
    for pools in ({"aggregated": 1}, {"prefill": 1, "decode": 1}):
        made = plan(**pools)
        outcome = run(made, alone(5000, 101)).outcomes[0]
        first = made.replicas[0].name
        assert outcome.ttft_s == pytest.approx(made.truth.prefill_s(first, 5000, 0), rel=1e-9)
        last = made.replicas[-1].name
        steps_s = sum(made.truth.decode_s(last, 1, 5001 + place) for place in range(100))
        assert outcome.itl_s is not None
        if "aggregated" in pools:
            assert outcome.itl_s == pytest.approx(steps_s / 100, rel=1e-9)
        else:
            fetch_s = outcome.itl_s * 100 - steps_s
            num_bytes = 5000 * made.replicas[0].sizes.token_bytes
            whole_s = made.truth.transfer_s(num_bytes, first, last)
            assert 0 < fetch_s <= whole_s * (1 + 1e-9), "chunks go while others are computed"


def test_every_request_gets_its_tokens_and_nothing_is_left() -> None:
    trace = jobs(30)
    for pools in ({"aggregated": 2}, {"prefill": 2, "decode": 2}):
        played = run(plan(**pools), trace)
        for outcome in played.outcomes:
            assert outcome.result is Result.GOOD, outcome
            assert outcome.tokens == outcome.ask.output_tokens
        assert sum(book.count for book in played.gaps.values()) == sum(
            job.output_tokens - 1 for job in trace
        )


@pytest.mark.parametrize("noise", (0.0, 0.1))
@pytest.mark.parametrize("pools", ({"aggregated": 2}, {"prefill": 1, "decode": 2}))
def test_runs_of_steps_are_the_same_as_single_steps(
    monkeypatch: pytest.MonkeyPatch, pools: dict[str, int], noise: float
) -> None:
    """Too little KV memory for all of them: also who is preempted is the same."""
    trace = jobs(25, rate=40.0)
    made = [plan(noise=noise, **pools) for _ in range(2)]
    small = [
        replace(
            p, replicas=[replace(r, sizes=replace(r.sizes, kv_tokens=8000)) for r in p.replicas]
        )
        for p in made
    ]
    fast = run(small[0], trace)
    monkeypatch.setattr(RunScheduler, "repeats", lambda self, batch: 0)
    slow = run(small[1], trace)
    for one, other in zip(told(fast), told(slow), strict=True):
        assert one[:2] == other[:2] and one[4] == other[4]
        assert one[2] == pytest.approx(other[2], rel=1e-9)
        assert one[3] == (None if other[3] is None else pytest.approx(other[3], rel=1e-9))
    for name, totals in fast.pools.items():
        assert totals.steps == slow.pools[name].steps
        assert totals.preemptions == slow.pools[name].preemptions
        assert totals.busy_s == pytest.approx(slow.pools[name].busy_s, rel=1e-9)


def test_the_same_seed_plays_the_same() -> None:
    trace = jobs(20, shared=4)
    first, again = (told(run(plan(noise=0.1, prefill=2, decode=2), trace)) for _ in range(2))
    assert first == again
    other = told(run(plan(noise=0.1, seed=2, prefill=2, decode=2), trace))
    assert first != other


def test_what_is_shared_is_computed_once() -> None:
    played = run(plan(aggregated=1), jobs(20, rate=2.0, shared=20))
    cached = [
        outcome.cached_tokens for outcome in sorted(played.outcomes, key=lambda o: o.ask.at_s)
    ]
    assert cached[0] == 0 and set(cached[1:]) == {20 * 64}


def test_a_prompt_that_is_cached_but_for_a_token_is_answered() -> None:
    trace = [Job(at, 129, 5, "all", ("a", "b"), 64) for at in (0.0, 2.0)]
    for pools in ({"aggregated": 1}, {"prefill": 1, "decode": 1}):
        played = run(plan(**pools), trace)
        assert [o.tokens for o in played.outcomes] == [5, 5]
        assert [o.cached_tokens for o in played.outcomes] == [0, 128]
        assert sum(book.count for book in played.gaps.values()) == 8
        second = played.outcomes[1]
        assert second.itl_s is not None and second.itl_s * 4 < 0.5, "not since the one before it"


def test_a_dead_replica_loses_no_request() -> None:
    trace = jobs(40, rate=40.0)
    for pools in ({"aggregated": 2}, {"prefill": 2, "decode": 2}):
        names = [replica.name for replica in plan(**pools).replicas]
        failures = tuple(Failure(name, 0.4 + place, 0.4) for place, name in enumerate(names))
        played = run(plan(**pools), trace, failures)
        assert all(outcome.tokens == outcome.ask.output_tokens for outcome in played.outcomes)
        calm = run(plan(**pools), trace)
        again = [sum(p.query_tokens for p in made.pools.values()) for made in (played, calm)]
        assert again[0] > again[1], "prompts were computed again"


def test_a_replica_that_never_comes_back_is_done_without() -> None:
    played = run(plan(prefill=1, decode=2), jobs(40), (Failure("decode-0", 0.5, None),))
    assert all(outcome.tokens == outcome.ask.output_tokens for outcome in played.outcomes)
    samples = [sample.pools["decode"].replicas for sample in played.samples]
    assert samples[0] == 2 and samples[-1] == 1


def test_prompts_of_others_slow_decodes_only_where_they_share_steps() -> None:
    trace = [Job(0.0, 100, 400, "decodes")] + [
        Job(0.5 + 0.2 * place, 3000, 2, f"prompt {place}") for place in range(10)
    ]
    itl = {}
    for pools in ({"aggregated": 1}, {"prefill": 1, "decode": 1}):
        outcomes = {o.ask.id: o for o in run(plan(**pools), trace).outcomes}
        itl[len(pools)] = outcomes["0"].itl_s
    assert itl[1] is not None and itl[2] is not None and itl[1] > 1.1 * itl[2]


def test_figures_count_everybody() -> None:
    played = run(plan(prefill=1, decode=1), jobs(50, rate=50.0))
    found = figures(played)
    assert found.requests == 50 == sum(each.requests for each in found.classes.values())
    assert found.replica_hours == pytest.approx(sum(p.replica_hours for p in found.pools.values()))
    for pool in found.pools.values():
        assert 0 < pool.utilisation <= 1
    standard = found.classes["standard"]
    assert standard.ttft.p50 <= standard.ttft.p90 <= standard.ttft.p99
    assert standard.attainment == found.attainment == standard.good / 50
    assert json.loads(json.dumps(found.as_json()))["requests"] == 50


def test_histogram_is_right_within_its_bins() -> None:
    rng, book = random.Random(3), Histogram()
    values = sorted(rng.lognormvariate(-4, 1) for _ in range(5000))
    for value in values:
        book.add(value)
    for part in (0.1, 0.5, 0.9, 0.99):
        assert book.quantile(part) == pytest.approx(values[int(part * 5000)], rel=0.01)
    assert book.mean == pytest.approx(sum(values) / 5000)


def test_blocks_are_shared_as_far_as_the_trace_says() -> None:
    """Whatever the size of its blocks: equal names up to one are equal tokens up to its end."""
    for size in (7, 16, 64, 100):
        names = BlockNames(BLOCK)
        first = names.of(Job(0, 1000, 1, "", ("a", "b", "c"), size), "one")
        second = names.of(Job(0, 900, 1, "", ("a", "b", "d"), size), "two")
        same = 0
        while first[same] == second[same]:
            same += 1
        assert same == 2 * size // BLOCK
        assert not set(first[same:]) & set(second[same:])
        assert len(set(first)) == len(first) == 1000 // BLOCK


def test_a_trace_is_played_again_with_blocks_of_its_own() -> None:
    trace = [Job(float(at), 200, 5, "", ("a", "b"), 64) for at in range(4)]
    found: list[Ask] = list(asks(trace, BLOCK, rate=2.0, duration_s=5.0))
    assert [ask.at_s for ask in found] == pytest.approx(
        [0.5 * place for place in range(10)], abs=1.0
    )
    assert len({ask.id for ask in found}) == len(found) >= 8
    assert found[0].ids[:8] == found[1].ids[:8] and found[0].ids[0] != found[5].ids[0]


# -- bad input ---------------------------------------------------------------------------------


def simulate(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *rest: str
) -> str:
    monkeypatch.setattr(sys, "argv", ["kvasir", "simulate", "cluster", *rest])
    with pytest.raises(SystemExit) as caught:
        main()
    printed = capsys.readouterr()
    return printed.out if caught.value.code == 0 else printed.err


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    config, trace = tmp_path / "cluster.yaml", tmp_path / "trace.jsonl"
    config.write_text("model: llama-8b\nhardware: h100\nengine: {max_seqs: 64}\n")
    rows = [
        {"timestamp_ms": 100 * place, "input_length": 500, "output_length": 20}
        for place in range(20)
    ]
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return config, trace


def test_the_command_writes_a_page_and_figures(
    files: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    page, out = tmp_path / "out.html", tmp_path / "out.json"
    printed = simulate(
        capsys, monkeypatch, "--config", str(files[0]), "--trace", str(files[1]),
        "--report", str(page), "--json", str(out), "--fail", "decode-0@0.5s+1s", "--mode", "remote",
    )  # fmt: skip
    assert "20 requests" in printed
    assert json.loads(out.read_text())["requests"] == 20
    text = page.read_text()
    assert text.count("<svg") == 8 and "http" not in text.replace("http://www.w3.org", "")


def test_what_cannot_be_simulated_is_said(
    files: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, trace = str(files[0]), str(files[1])
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    unknown = tmp_path / "unknown.yaml"
    unknown.write_text("model: llama-8b\nhardware: h999\n")
    large = tmp_path / "large.yaml"
    large.write_text("model: llama-70b\nhardware: h100\n")
    for rest, said in (
        (("--config", config, "--trace", str(empty)), "has no rows"),
        (("--config", str(unknown), "--trace", trace), "unknown hardware 'h999'; known: "),
        (("--config", str(large), "--trace", trace), "tensor_parallel: 4 would fit"),
        (("--config", config, "--trace", trace, "--model", "nobody"), "is neither a directory"),
        (("--config", config, "--trace", trace, "--fail", "decode-9@1s"), "no replica 'decode-9'"),
        (("--config", config, "--trace", trace, "--replicas", "x=1"), "no pool x; there are: "),
        (("--config", config, "--trace", trace, "--class", "gold"), "no service class 'gold'"),
    ):
        assert said in simulate(capsys, monkeypatch, *rest), rest


def test_failures_are_read() -> None:
    assert Failure.parse("decode-1@2m") == Failure("decode-1", 120.0, 30.0)
    assert Failure.parse("d@5s+never") == Failure("d", 5.0, None)
    for text in ("decode-1", "@5s", "decode-1@soon", "decode-1@1.2.3s"):
        with pytest.raises(ConfigError, match="no failure"):
            Failure.parse(text)


def test_failures_of_a_file_come_in_order(tmp_path: Path) -> None:
    path = tmp_path / "plan"
    path.write_text("# both\nb@20s\n\na@10s+1s  # early\n")
    assert read_failures([f"@{path}"], {"a", "b"}) == [Failure("a", 10, 1), Failure("b", 20, 30)]


def test_prefill_time_is_of_all_chunks() -> None:
    """What the router predicts of a prompt is what its chunks take, one after the other."""
    made = plan(aggregated=1)
    name = made.replicas[0].name
    outcome = run(made, alone(5000, 1)).outcomes[0]
    chunks = [(0, 1024), (1024, 1024), (2048, 1024), (3072, 1024), (4096, 904)]
    steps_s = [made.truth.step_s(name, StepWork.chunk(new, start)) for start, new in chunks]
    assert outcome.ttft_s == pytest.approx(sum(steps_s), rel=1e-9)
