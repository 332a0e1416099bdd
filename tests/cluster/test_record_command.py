"""`kvasir record` beside a whole router: what it writes is a trace that the other tools take."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cluster import recording as recording_module
from cluster.bench.workload import read_trace
from cluster.recording import JsonLines, Recorder
from cluster.simulator.arrivals import read_arrivals
from cluster.simulator.route import Setup, simulate
from router.flow.classes import SloClass, SloConfig
from tests.router.fleet import BLOCK, until
from tests.router.test_service import NAMES, Client, router, sampling
from workers.core.errors import ConfigError, Unavailable
from workers.wire import admin_pb2 as admin
from workers.wire import inference_pb2 as inference

SLO = SloConfig(classes={"chat": SloClass(ttft=1, max_wait=0.3)}, default="chat")


@asynccontextmanager
async def recording(client: Client, path: Path, requests: int) -> AsyncIterator[Recorder]:
    """While the block runs, and until so many are written."""
    with JsonLines(path) as lines:
        recorder, heard = Recorder(lines, None), asyncio.Event()
        running = asyncio.create_task(recorder.run([str(client.ports.grpc)], heard))
        await heard.wait()
        try:
            yield recorder
            await until(lambda: lines.count == requests)
        finally:
            running.cancel()
            await asyncio.wait([running])


def ids(first: int, count: int) -> inference.TokenIds:
    return inference.TokenIds(ids=range(first, first + count))


async def test_a_run_is_recorded_read_back_and_simulated(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl.gz"
    async with (
        router(tmp_path, *NAMES, slo=SLO, max_requests=1) as client,
        recording(client, path, 8) as recorder,
    ):
        for number in range(3):
            await client.generate(token_ids=ids(10, 20), sampling=sampling(), tenant="acme")
            await client.generate(token_ids=ids(100 + number, 9), sampling=sampling(max_tokens=2))
        client.fleet["decode-1"].script.append("wait after 1")
        asked = inference.GenerateRequest(
            model="tiny", token_ids=ids(10, 20), sampling=sampling(max_tokens=3)
        )
        first = client.inference.Generate(asked)
        await first.read()
        await client.refused(token_ids=ids(10, 12), tenant="acme")
        first.cancel()
        await client.refused(token_ids=ids(10, 20), slo_class="nobody's")
        await client.fleet.quiet()
    assert recorder.outcomes == {"ok": 6, "cancelled": 1, "resource_exhausted": 1}
    with gzip.open(path, "rt") as lines:
        text = lines.read()
    rows = [json.loads(line) for line in text.splitlines()]
    whole = [row for row in rows if row["input_length"] == 20 and row["outcome"] == "ok"]
    assert [row["output_length"] for row in whole] == [4, 4, 4]
    assert len({tuple(row["hash_ids"]) for row in rows if row["input_length"] == 20}) == 1
    assert len(whole[0]["hash_ids"]) == 20 // BLOCK == len(set(whole[0]["hash_ids"]))
    assert all(row["ttft_ms"] > 0 and row["itl_ms"] > 0 for row in whole)
    [refused] = [row for row in rows if row["guessed"]]
    assert (refused["outcome"], refused["input_length"]) == ("resource_exhausted", 12)
    assert (refused["output_length"], refused["ttft_ms"]) == (3, None), "the median of those before"
    assert {row["tenant"] for row in whole} == {refused["tenant"]} != {""}
    assert "acme" not in text
    stamps = [row["timestamp_ms"] for row in rows]
    assert max(stamps) - min(stamps) < 60_000 and min(stamps) > 1.7e12

    jobs = read_trace(path)
    assert sorted(job.input_tokens for job in jobs) == [9, 9, 9, 12, 20, 20, 20, 20]
    figures = simulate(read_arrivals(path), Setup(workers=2, cache_tokens=1000))
    assert figures.requests == 8 and figures.hit > 0


async def test_a_router_that_is_not_there_is_named(tmp_path: Path) -> None:
    named = pytest.raises(Unavailable, match="127.0.0.1:1 did not answer")
    with JsonLines(tmp_path / "x.jsonl") as lines, named:
        await Recorder(lines, None).run(["127.0.0.1:1"], asyncio.Event())


async def test_a_router_that_comes_back_is_followed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = admin.RecordedRequest(prompt_tokens=5, output_tokens=1, let_in=True, outcome="ok")
    lives = [
        [admin.RecordedBatch(), admin.RecordedBatch(lost=2), admin.RecordedBatch(lost=3)],
        [admin.RecordedBatch(), admin.RecordedBatch(requests=[one], lost=1)],
    ]

    async def follow(*_: object) -> AsyncIterator[admin.RecordedBatch]:
        for batch in lives.pop(0):
            yield batch
        raise Unavailable("it went away")

    monkeypatch.setattr(recording_module, "follow_record", follow)
    monkeypatch.setattr(recording_module, "AGAIN_S", 0.0)
    with JsonLines(tmp_path / "x.jsonl") as lines:
        recorder = Recorder(lines, None)
        with pytest.raises(IndexError):  # there is no third life
            await recorder.run(["r"], asyncio.Event())
        assert (recorder.gaps, recorder.lost, lines.count) == (2, 4, 1)


def test_no_file_is_written_over(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl.gz"
    with JsonLines(path) as lines:
        lines.write({"a": 1})
    with pytest.raises(ConfigError, match="is there already"):
        JsonLines(path)
    with pytest.raises(ConfigError, match="cannot write"):
        JsonLines(tmp_path / "no" / "x.jsonl")
    assert gzip.decompress(path.read_bytes()) == b'{"a":1}\n'
