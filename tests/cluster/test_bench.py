from __future__ import annotations

import asyncio
import gzip
import json
import statistics
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.bench.client import Sample, Target, find_model
from cluster.bench.report import Slo, as_table, percentile, summarise
from cluster.bench.runner import Run
from cluster.bench.workload import FIRST_TOKEN, LAST_TOKEN, Job, fit_factor, read_trace, synthetic
from cluster.commands.bench import scale_factor
from tests.cluster.fake_openai import FakeOpenAI
from workers.core.clock import SystemClock
from workers.core.errors import ConfigError, Unavailable

TRACES = Path(__file__).parents[2] / "load_tests" / "traces"


def sample(*, sent: float = 0.0, arrivals: list[float], **fields: object) -> Sample:
    return Sample(
        due=sent,
        sent=sent,
        arrivals=arrivals,
        ended=arrivals[-1] if arrivals else sent + 1,
        input_tokens=10,
        output_tokens=len(arrivals),
        **fields,  # type: ignore[arg-type]
    )


# -- figures -------------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0, 1))
def test_percentile_is_numpys(values: list[float], quantile: float) -> None:
    assert percentile(values, quantile) == pytest.approx(np.quantile(values, quantile))


def test_summary() -> None:
    samples = [
        sample(sent=0.0, arrivals=[0.1, 0.2, 0.3], cached_tokens=4),
        sample(sent=1.0, arrivals=[1.5, 1.6]),
        sample(sent=1.0, arrivals=[], error="HTTP 429"),
    ]
    report = summarise(samples, Slo(ttft=0.2, itl=0.15))
    assert (report["requests"], report["errors"], report["duration_s"]) == (3, 1, 2.0)
    assert (report["input_tokens"], report["output_tokens"]) == (20, 5)
    assert (report["requests_per_s"], report["output_tokens_per_s"]) == (1.0, 2.5)
    assert (report["good_requests"], report["goodput"]) == (1, 0.5)
    assert report["cached_tokens"] == 4
    assert report["ttft_ms"]["mean"] == pytest.approx(statistics.mean([100, 500]))
    assert report["itl_ms"]["p50"] == pytest.approx(100)
    assert report["e2e_ms"]["p99"] == pytest.approx(597)
    assert report["error_messages"] == {"HTTP 429": 1}
    json.dumps(report)
    as_table(report)


def test_summary_of_nothing() -> None:
    for samples in ([], [sample(arrivals=[], error="refused")]):
        report = summarise(samples, None)
        assert report["ttft_ms"] == {"mean": None, "p50": None, "p90": None, "p99": None}
        assert report["goodput"] is None
        as_table(report)


def test_mean_itl_counts_tokens_not_chunks() -> None:
    bundled = sample(arrivals=[1.0, 2.0])
    bundled.output_tokens = 11
    assert bundled.mean_itl == pytest.approx(0.1)
    assert sample(arrivals=[1.0]).mean_itl == 0.0


def test_slo() -> None:
    assert Slo.parse("ttft=1.5s, itl=50ms") == Slo(1.5, 0.05)
    assert Slo.parse("itl=50") == Slo(itl=0.05)
    with pytest.raises(ConfigError, match="'tpot=3' is not like"):
        Slo.parse("tpot=3")


# -- workload ------------------------------------------------------------------------------------


def test_equal_hashes_make_equal_prefixes(tmp_path: Path) -> None:
    rows = [
        {"hash_ids": [1, 2, 3], "input_length": 12},
        {"hash_ids": [1, 2, 9], "input_length": 10},
        {"hash_ids": [5], "input_length": 6},
    ]
    common = {"timestamp_ms": 2000, "output_length": 3, "block_size": 4}
    path = tmp_path / "trace.jsonl"
    path.write_text("".join(json.dumps(row | common) + "\n" for row in rows))
    first, second, third = (job.token_ids() for job in read_trace(path))
    assert [len(first), len(second), len(third)] == [12, 10, 6]
    assert first[:8] == second[:8]
    assert first[8:10] != second[8:10]
    assert first[:4] != third[:4]
    assert all(FIRST_TOKEN <= token <= LAST_TOKEN for token in first + second + third)
    text = [job.text() for job in read_trace(path)]
    assert text[0].split()[:8] == text[1].split()[:8]
    short = [job.scaled(0.5).token_ids() for job in read_trace(path)]
    assert [len(ids) for ids in short] == [6, 5, 3]
    assert short[0][:4] == short[1][:4]


def test_traces_start_at_zero_and_keep_their_gaps(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl.gz"
    rows = [{"timestamp_ms": at, "input_length": 5, "output_length": 0} for at in (9000, 5000)]
    with gzip.open(path, "wt") as packed:
        packed.writelines(json.dumps(row) + "\n" for row in rows)
    assert [job.at_s for job in read_trace(path, speed=2.0)] == [0.0, 2.0]
    assert [job.output_tokens for job in read_trace(path)] == [1, 1]
    assert len(read_trace(path, limit=1)) == 1


def test_bad_traces(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"timestamp_ms": 0, "input_length": 1, "output_length": 1}\n{"input": 1}\n')
    with pytest.raises(ConfigError, match=r"bad\.jsonl:2: not a trace row"):
        read_trace(path)
    path.write_text("")
    with pytest.raises(ConfigError, match="has no rows"):
        read_trace(path)
    with pytest.raises(ConfigError, match="cannot read"):
        read_trace(tmp_path / "nowhere.jsonl")
    (tmp_path / "not.gz").write_text("plain")
    with pytest.raises(ConfigError, match="cannot read"):
        read_trace(tmp_path / "not.gz")


@pytest.mark.parametrize("name", ["azure2023_conv_300.jsonl.gz", "sharegpt_300_bs16.jsonl.gz"])
def test_shipped_traces(name: str) -> None:
    jobs = read_trace(TRACES / name)
    assert len(jobs) == 300
    factor = fit_factor(jobs, 2048)
    small = [job.scaled(factor) for job in jobs]
    assert max(job.input_tokens + job.output_tokens for job in small) <= 2048
    assert all(len(job.token_ids()) == job.input_tokens for job in small)


def test_synthetic() -> None:
    jobs = synthetic(
        requests=40, input_tokens=20, output_tokens=5, rate=10.0, shared_prefix=8, seed=3
    )
    assert jobs[0].at_s == 0.0
    assert 1.0 < jobs[-1].at_s < 12.0
    prompts = [job.token_ids() for job in jobs]
    assert len({tuple(prompt[:8]) for prompt in prompts}) == 1
    assert len({tuple(prompt[8:]) for prompt in prompts}) == 40
    at_once = synthetic(requests=3, input_tokens=2, output_tokens=1, rate=None)
    assert {job.at_s for job in at_once} == {0.0}


def test_scale() -> None:
    jobs = [Job(0.0, 900, 100, "a")]
    assert scale_factor(jobs, "auto", None) == 1.0
    assert scale_factor(jobs, "auto", 4096) == 1.0
    assert scale_factor(jobs, "0.5", None) == 0.5
    assert jobs[0].scaled(0.5).input_tokens == 450
    fitted = jobs[0].scaled(scale_factor(jobs, "auto", 100))
    assert fitted.input_tokens + fitted.output_tokens <= 100
    for wrong in ("huge", "-1", "0", "nan", "inf"):
        with pytest.raises(ConfigError, match="--scale"):
            scale_factor(jobs, wrong, None)


# -- against a server ----------------------------------------------------------------------------


def jobs(count: int) -> list[Job]:
    return [Job(0.0, 6, 4, f"job {number}") for number in range(count)]


async def run_all(fake: FakeOpenAI, count: int, concurrency: int | None = None) -> Run:
    async with fake.client() as client:
        target = Target(client, SystemClock(), "fake")
        await target.probe()
        fake.bodies.clear()
        run = Run(target, SystemClock(), lambda: None)
        if concurrency:
            await run.closed_loop(jobs(count), concurrency)
        else:
            await run.open_loop(jobs(count))
    return run


@pytest.mark.parametrize("takes_ids", [True, False])
async def test_open_loop(takes_ids: bool) -> None:
    fake = FakeOpenAI(takes_ids=takes_ids)
    run = await run_all(fake, 5)
    report = summarise(run.samples, Slo(ttft=60.0))
    assert (report["requests"], report["errors"], report["output_tokens"]) == (5, 0, 20)
    assert report["good_requests"] == 5
    assert report["cached_tokens"] == 5
    assert all(isinstance(body["prompt"], list) is takes_ids for body in fake.bodies)
    assert {body["max_tokens"] for body in fake.bodies} == {4}
    assert all(body["ignore_eos"] and body["stream"] for body in fake.bodies)


async def test_errors_are_counted_with_their_message() -> None:
    run = await run_all(FakeOpenAI(fail_every=2), 4)
    report = summarise(run.samples, None)
    assert (report["requests"], report["errors"]) == (4, 2)
    (message,) = report["error_messages"]
    assert "429" in message
    assert "overloaded" in message


async def test_closed_loop_keeps_its_concurrency() -> None:
    fake = FakeOpenAI(hold=None)
    async with fake.client() as client:
        target = Target(client, SystemClock(), "fake")
        fake.hold = asyncio.Event()
        run = Run(target, SystemClock(), lambda: None)
        task = asyncio.create_task(run.closed_loop(jobs(6), 2))
        while len(fake.bodies) < 2:
            await asyncio.sleep(0)
        for _ in range(50):  # nobody else comes while these two are in the air
            await asyncio.sleep(0)
        assert len(fake.bodies) == 2
        fake.hold.set()
        await task
    assert len(run.samples) == 6


async def test_interrupted_runs_keep_what_they_have() -> None:
    fake = FakeOpenAI()
    async with fake.client() as client:
        run = Run(Target(client, SystemClock(), "fake"), SystemClock(), lambda: None)
        late = [*jobs(2), Job(3600.0, 6, 4, "late")]
        task = asyncio.create_task(run.open_loop(late))
        while len(run.samples) < 2:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert summarise(run.samples, None)["requests"] == 2


async def test_finding_the_model() -> None:
    async with FakeOpenAI().client() as client:
        assert await find_model(client, None) == ("fake", 256)
        with pytest.raises(Unavailable, match="does not serve 'other'; it serves fake"):
            await find_model(client, "other")
