"""The router's simulator: its traces, its references, and that it tells what was published."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.commands.app import app
from cluster.simulator.arrivals import Arrival, Arrivals, read_arrivals
from cluster.simulator.references import optimum, pooled
from cluster.simulator.route import Setup, simulate
from workers.core.errors import ConfigError

TRACES = Path(__file__).parents[2] / "load_tests" / "traces"
SYNTHETIC = TRACES / "mooncake_synthetic_first25pct.jsonl.gz"
CONVERSATION = TRACES / "mooncake_conversation_min00-15.jsonl.gz"


def arrivals(*rows: tuple[float, int, str], size: int = 10) -> Arrivals:
    """(time, tokens, a letter for each full block); an equal prefix is an equal prompt."""
    requests = tuple(
        Arrival(at_s, tokens, tuple(name[: i + 1].encode() for i in range(len(name))), b"s")
        for at_s, tokens, name in rows
    )
    return Arrivals(requests, size)


def test_one_worker_by_hand() -> None:
    """100 tokens a second at rho 1: 300 tokens in 3 s."""
    played = arrivals((0.0, 105, "abcdefghij"), (0.5, 95, "abcdefghi"), (3.0, 100, "abcdefghij"))
    setup = Setup(1, 1000, eviction="lru")
    assert setup.tokens_per_s(played) == 100
    report = simulate(played, setup)
    # 1.05 s; waits 0.55 s for its 5 tokens that are no full block; one token at least is computed
    assert report.hit == pytest.approx((90 + 99) / 300)
    assert report.ttft_p50 == pytest.approx(0.55 + 0.05)
    assert report.ttft_p99 == pytest.approx(1.05)
    assert report.imbalance == 1 and report.rejects == 0 and report.requests == 3


def test_a_prompt_larger_than_every_cache_is_a_reject_and_takes_for_ever() -> None:
    played = arrivals((0.0, 50, "abcde"), (1.0, 500, ""), (2.0, 50, "abcde"))
    report = simulate(played, Setup(2, 100))
    assert report.rejects == 1 and report.ttft_p99 == math.inf
    assert report.ttft_p50 < 1


def test_a_burst_that_shares_its_prefix_stays_together_when_decisions_count() -> None:
    rows = [(0.1 * n, 105, "abcdefghij") for n in range(6)]
    played = arrivals(*rows, (60.0, 100, ""))
    setup = Setup(2, 1000, policy="pending_prefill_2", eviction="lru")
    together = simulate(played, setup)
    apart = simulate(played, Setup(2, 1000, "pending_prefill_2", "lru", expecting=False))
    assert together.hit > apart.hit


def test_runs_repeat_themselves() -> None:
    played = read_arrivals(SYNTHETIC).part("first")
    first, second = (simulate(played, Setup(4, 200_000, seed=5)) for _ in range(2))
    assert (first.hit, first.ttft_p99) == (second.hit, second.ttft_p99)


@pytest.mark.parametrize(
    ("policy", "expecting", "hit", "ttft_p90"),
    [
        ("least_work", True, 0.016, 11.4),
        ("cache_aware", True, 0.165, 9.8),
        ("pending_prefill_2", False, 0.160, 8.0),
        ("queue_product", True, 0.169, 9.5),
    ],
)
def test_published_rules_do_as_in_the_published_tables(
    policy, expecting: bool, hit: float, ttft_p90: float
) -> None:
    """Synthetic trace, 8 workers of 1M tokens; ties are drawn differently there."""
    setup = Setup(8, 1_000_000, policy, "lru", expecting=expecting)
    report = simulate(read_arrivals(SYNTHETIC), setup)
    assert report.hit == pytest.approx(hit, abs=0.015)
    assert report.ttft_p90 == pytest.approx(ttft_p90, rel=0.08)


def test_references_are_the_published_ones() -> None:
    played = read_arrivals(SYNTHETIC)
    small, large = Setup(8, 200_000), Setup(8, 1_000_000)
    assert pooled(played, small).hit == pytest.approx(0.042, abs=5e-4)
    assert pooled(played, large).ttft_p90 == pytest.approx(7.8, abs=0.05)
    assert optimum(played, small) == pytest.approx(0.173, abs=5e-4)
    assert optimum(read_arrivals(CONVERSATION), Setup(4, 200_000)) == pytest.approx(0.220, abs=5e-4)


def test_nothing_beats_the_optimum_and_ours_comes_near_the_pool() -> None:
    played = read_arrivals(SYNTHETIC)
    setup = Setup(8, 1_000_000)
    ours, reference = simulate(played, setup), pooled(played, setup)
    assert 0.97 * reference.hit <= ours.hit <= optimum(played, setup)
    assert ours.ttft_p90 <= 1.1 * reference.ttft_p90
    assert ours.imbalance <= reference.imbalance + 0.03


@pytest.mark.parametrize("workers", [4, 8, 16])
def test_adaptive_eviction_is_not_worse_than_lru(workers: int) -> None:
    played = read_arrivals(SYNTHETIC)
    adaptive, lru = (
        simulate(played, Setup(workers, 200_000, eviction=name)).hit for name in ("adaptive", "lru")
    )
    assert adaptive >= 0.98 * lru > 0


def test_what_waits_in_the_queue_finds_what_was_cached_when_it_came() -> None:
    """One worker of ten blocks. The second abcd comes while another prompt is before it."""
    rows = [(0.0, 40, "abcd"), (20.0, 60, "uvwxyz"), (20.1, 60, "ghijkl"), (20.2, 41, "abcd")]
    played = arrivals(*rows, (60.0, 10, ""))
    hits = {
        name: simulate(played, Setup(1, 100, eviction=name)).hit for name in ("adaptive", "lru")
    }
    assert hits == {"adaptive": pytest.approx(40 / 211), "lru": 0}


def test_rounded_stamps_are_spread_and_others_are_not() -> None:
    played = read_arrivals(CONVERSATION)
    times = [request.at_s for request in played.requests]
    assert times == sorted(times) and len(set(times)) == len(times) == 2728
    assert read_arrivals(CONVERSATION, seed=2).requests[5].at_s != times[5]
    exact = [request.at_s for request in read_arrivals(SYNTHETIC, seed=1).requests]
    assert exact == [request.at_s for request in read_arrivals(SYNTHETIC, seed=2).requests]


def test_halves_of_a_trace() -> None:
    played = arrivals((0.0, 10, "a"), (4.0, 10, "b"), (6.0, 10, "c"), (10.0, 10, "d"))
    first, second = played.part("first"), played.part("second")
    assert [request.at_s for request in first.requests] == [0.0, 4.0]
    assert [request.at_s for request in second.requests] == [0.0, 4.0]
    assert [request.ids for request in second.requests] == [(b"c",), (b"d",)]
    with pytest.raises(ConfigError, match="first half of the trace has 1"):
        arrivals((0.0, 10, "a"), (9.0, 10, "b")).part("first")


def test_the_command_writes_what_was_asked_for(tmp_path: Path) -> None:
    trace, out = tmp_path / "t.jsonl.gz", tmp_path / "out.json"
    row = {"input_length": 100, "output_length": 1, "hash_ids": [1, 2], "block_size": 40}
    with gzip.open(trace, "wt") as file:
        for second in range(4):
            file.write(json.dumps(row | {"timestamp_ms": 1000 * second + second}) + "\n")
    command = ["simulate", "route", "--trace", str(trace), "--workers", "2"]
    command += ["--cache-tokens", "400", "--policy", "least_work", "--eviction", "lru"]
    result = CliRunner().invoke(app, [*command, "--rho", "0.5", "--seed", "3", "--json", str(out)])
    assert result.exit_code == 0, result.output
    figures = json.loads(out.read_text())
    assert list(figures) == [
        *("requests", "hit", "imbalance", "ttft_p50", "ttft_p90", "ttft_p99", "rejects"),
        *("decision_us_p50", "decision_us_p99", "requests_per_cpu_s"),
    ]
    assert figures["requests"] == 4 and figures["hit"] > 0 and figures["requests_per_cpu_s"] > 0
    assert "by the CPU time" in result.output
