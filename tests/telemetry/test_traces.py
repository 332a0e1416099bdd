"""Traces as a real OTLP receiver gets them from a real router with fake workers behind it."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from router.tracing.config import TelemetryConfig
from tests.router.fleet import until
from tests.router.test_service import Client, router, sampling
from tests.telemetry.receiver import Receiver, Seen, Tree, receiver
from workers.logs import JsonLines
from workers.wire import admin_pb2 as admin
from workers.wire import inference_pb2 as inference

CLIENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE, SPAN = CLIENT.split("-")[1:3]
STATE = "rojo=00f067aa0ba902b7,congo@x=t61rcWkgMzE"
NAMES = ("prefill-1", "decode-1")
BODY = {"model": "tiny", "prompt": "w5 w6 w7", "max_tokens": 6}


@asynccontextmanager
async def traced(
    folder: Path,
    *names: str,
    ratio: float = 1.0,
    slow_s: float | None = None,
    headers: Path | None = None,
    **limits: float,
) -> AsyncIterator[tuple[Client, Receiver, httpx.AsyncClient]]:
    with receiver() as (got, endpoint):
        telemetry = TelemetryConfig(
            otlp_endpoint=endpoint, sample_ratio=ratio, slow_s=slow_s, otlp_headers_file=headers
        )
        async with (
            router(folder, *(names or NAMES), telemetry=telemetry, **limits) as client,
            httpx.AsyncClient(base_url=f"http://{client.ports.http}/v1", timeout=20) as http,
        ):
            yield client, got, http


async def arrived(got: Receiver, traceparent: str) -> Tree:
    return await asyncio.to_thread(got.tree, traceparent.split("-")[1])


def check_sums(tree: Tree, request: Seen) -> None:
    """Parts sum to what the span of the request says: within 2 % or 1 ms."""
    for part, name in (
        ("ttft", "gen_ai.server.time_to_first_token"),
        ("first_gap", "kvasir.first_gap_s"),
    ):
        total = request.attributes[name]
        assert total > 0
        assert abs(tree.sum_of(part) - total) <= max(0.02 * total, 0.001), part


async def test_a_request_is_one_tree_from_its_door_through_both_workers(tmp_path: Path) -> None:
    async with traced(tmp_path) as (_, got, http):
        chat = {"model": "tiny", "messages": [{"role": "user", "content": "w5"}], "max_tokens": 6}
        answer = await http.post("/chat/completions", json=chat)
        tree = await arrived(got, answer.headers["traceparent"])
        assert tree.root.name == "POST /v1/chat/completions" and tree.root.parent == ""
        assert tree.root.attributes["http.response.status_code"] == 200
        request = tree.one("chat tiny")
        said = answer.json()
        assert (
            request.attributes
            | {
                "gen_ai.operation.name": "chat",
                "gen_ai.request.model": "tiny",
                "gen_ai.request.max_tokens": 6,
                "gen_ai.response.id": said["id"],
                "gen_ai.response.finish_reasons": ["length"],
                "gen_ai.usage.input_tokens": said["usage"]["prompt_tokens"],
                "gen_ai.usage.output_tokens": 6,
                "gen_ai.usage.cache_read.input_tokens": 2,
                "kvasir.outcome": "ok",
            }
            == request.attributes
        )
        parents = {span.name: tree.parent(span).name for span in tree.spans if span.parent}
        assert parents.items() >= {
            ("chat tiny", "POST /v1/chat/completions"),
            ("tokenise", "chat tiny"),
            ("attempt", "chat tiny"),
            ("placing", "attempt"),
            ("prefill", "attempt"),
            ("decode", "attempt"),
            ("first decode step", "decode"),
            ("streaming", "decode"),
        }
        whose = {span.name: span.resource["service.instance.id"] for span in tree.spans}
        assert whose["prefill"] == "prefill-1" and whose["decode"] == "decode-1"
        assert whose["streaming"] == "decode-1" and whose["attempt"] == whose["chat tiny"]
        check_sums(tree, request)
        for span in tree.spans:
            assert tree.root.start <= span.start <= span.end <= tree.root.end, span
            assert span.error is None


async def test_a_clients_trace_goes_on_through_grpc_to_every_worker(tmp_path: Path) -> None:
    async with traced(tmp_path, ratio=0.0) as (client, got, _):
        asked = inference.GenerateRequest(model="tiny", text="w5 w6", sampling=sampling())
        given = (("traceparent", CLIENT), ("tracestate", STATE))
        call = client.inference.Generate(asked, metadata=given)
        metadata = dict(await call.initial_metadata())
        answered = metadata["traceparent"]
        assert metadata["tracestate"] == STATE
        assert [response async for response in call]
        tree = await arrived(got, answered)
        assert tree.root.trace == TRACE and tree.root.parent == SPAN
        assert answered == f"00-{TRACE}-{tree.root.id}-01"
        assert tree.root.name == "kvasir.v1.Inference/Generate"
        assert tree.root.attributes["rpc.response.status_code"] == "OK"
        for name in NAMES:
            (called,) = client.fleet[name].calls
            request = tree.one("text_completion tiny")
            assert called.sequence.traceparent == f"00-{TRACE}-{request.id}-01"
            assert called.sequence.tracestate == STATE
        assert {span.state for span in tree.spans} == {STATE}


async def test_a_clients_trace_goes_on_through_http_and_back(tmp_path: Path) -> None:
    async with traced(tmp_path, ratio=0.0) as (client, got, http):
        one, two = STATE.split(",")
        given = [("traceparent", CLIENT), ("tracestate", one), ("tracestate", two)]
        answer = await http.post("/completions", json=BODY, headers=given)
        tree = await arrived(got, answer.headers["traceparent"])
        assert (tree.root.trace, tree.root.parent) == (TRACE, SPAN)
        assert answer.headers["tracestate"] == STATE
        assert {span.state for span in tree.spans} == {STATE}
        assert {client.fleet[name].calls[0].sequence.tracestate for name in NAMES} == {STATE}
        for nothing in ({"tracestate": STATE}, {"traceparent": CLIENT, "tracestate": "no state"}):
            answer = await http.post("/completions", json=BODY, headers=nothing)
            assert answer.status_code == 200 and "tracestate" not in answer.headers


async def test_a_client_that_does_not_sample_is_followed(tmp_path: Path) -> None:
    async with traced(tmp_path) as (_, got, http):
        unsampled = await http.post(
            "/completions", json=BODY, headers={"traceparent": CLIENT[:-2] + "00"}
        )
        assert unsampled.headers["traceparent"].startswith(f"00-{TRACE}-")
        assert unsampled.headers["traceparent"].endswith("-00")
        last = await http.post("/completions", json=BODY)
        await arrived(got, last.headers["traceparent"])
        assert TRACE not in got.traces


@pytest.mark.parametrize("given", ["", "00-0-0-01", "00-" + "0" * 32 + "-b7ad6b7169203331-01"])
async def test_what_is_no_trace_begins_a_new_one(given: str, tmp_path: Path) -> None:
    async with traced(tmp_path) as (_, got, http):
        answer = await http.post("/completions", json=BODY, headers={"traceparent": given})
        tree = await arrived(got, answer.headers["traceparent"])
        assert tree.root.parent == "" and tree.root.trace not in ("0" * 32, TRACE)


async def test_an_attempt_that_failed_is_linked_and_kept_whatever_the_ratio(
    tmp_path: Path,
) -> None:
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    handler.setFormatter(JsonLines("router"))
    async with traced(tmp_path, ratio=0.0, worker_wait_s=5.0) as (client, got, http):
        client.fleet["prefill-1"].script.append("UNAVAILABLE")
        logging.getLogger("router").addHandler(handler)
        answer = await http.post("/completions", json=BODY)
        logging.getLogger("router").removeHandler(handler)
        assert answer.status_code == 200
        lines = [json.loads(text) for text in said.getvalue().splitlines()]
        (line,) = [line for line in lines if "trace_id" in line]
        assert "prefill again" in line["message"]
        assert answer.headers["traceparent"].startswith(f"00-{line['trace_id']}-")
        assert line["request_id"] == answer.headers["x-request-id"]
        tree = await arrived(got, answer.headers["traceparent"])
        first, second = tree.named("attempt")
        assert first.error is not None and "scripted UNAVAILABLE" in first.error
        assert second.error is None and second.links == (first.id,)
        assert tree.one("failed attempts").attributes["kvasir.part"] == "ttft"
        check_sums(tree, tree.one("text_completion tiny"))


async def test_a_ticket_bound_again_is_linked_to_the_binding_before(tmp_path: Path) -> None:
    async with traced(tmp_path, "prefill-1", "decode-1", "decode-2", ratio=0.0) as (
        client,
        got,
        http,
    ):
        for name in ("decode-1", "decode-2"):
            client.fleet[name].script.append("UNAVAILABLE")
        answer = await http.post("/completions", json=BODY)
        assert answer.status_code == 200
        tree = await arrived(got, answer.headers["traceparent"])
        failed, after = tree.named("bind"), tree.one("decode")
        assert len(failed) == 2
        assert failed[1].links == (failed[0].id,) and after.links == (failed[1].id,)
        assert all("scripted" in (bind.error or "") for bind in failed)
        check_sums(tree, tree.one("text_completion tiny"))


async def test_a_migration_is_linked_to_the_decode_it_left(tmp_path: Path) -> None:
    names = ("prefill-1", "decode-1", "decode-2")
    async with traced(tmp_path, *names) as (client, got, http):
        old, new = client.fleet["decode-1"], client.fleet["decode-2"]
        old.hold_at, new.state = 7, "draining"
        await until_is(client, "decode-2", "draining")
        asking = asyncio.create_task(http.post("/completions", json=BODY))
        await until(lambda: any(live.position == 7 for live in old.live.values()))
        new.state = "ready"
        await until_is(client, "decode-2", "ready")
        old.state = "draining"
        answer = await asking
        tree = await arrived(got, answer.headers["traceparent"])
        left, came = sorted(tree.named("decode"), key=lambda span: span.start)
        moved = tree.one("migration")
        assert moved.links == (left.id,) and came.links == (moved.id,)
        assert left.resource["service.instance.id"] == "decode-1"
        assert came.resource["service.instance.id"] == "decode-2"
        assert left.end == moved.end <= came.end
        assert len(tree.named("streaming")) == 2


async def until_is(client: Client, replica: str, state: str) -> None:
    async with asyncio.timeout(10):
        while True:
            status = await client.admin.Status(admin.StatusRequest())
            if any(r.load.replica.id == replica and r.load.state == state for r in status.replicas):
                return
            await asyncio.sleep(0.02)


async def test_samples_of_one_call_are_in_its_trace(tmp_path: Path) -> None:
    async with traced(tmp_path) as (_, got, http):
        answer = await http.post("/completions", json=BODY | {"n": 3})
        tree = await arrived(got, answer.headers["traceparent"])
        samples = tree.named("text_completion tiny")
        assert len(samples) == 3 and {span.parent for span in samples} == {tree.root.id}


async def test_only_what_went_wrong_is_kept_beside_the_sample(tmp_path: Path) -> None:
    async with traced(tmp_path, ratio=0.0, retry_attempts=0) as (client, got, http):
        fine = await http.post("/completions", json=BODY)
        missing = await http.post("/completions", json=BODY | {"model": "other"})
        client.fleet["prefill-1"].script.append("UNAVAILABLE")
        failed = await http.post("/completions", json=BODY)
        assert (fine.status_code, missing.status_code, failed.status_code) == (200, 404, 503)
        tree = await arrived(got, failed.headers["traceparent"])
        assert tree.root.error == "503"
        assert tree.one("text_completion tiny").attributes["kvasir.outcome"] == "unavailable"
        assert got.traces == {tree.root.trace}


async def test_a_slow_first_token_is_kept_beside_the_sample(tmp_path: Path) -> None:
    async with traced(tmp_path, ratio=0.0, slow_s=1e-9) as (_, got, http):
        answer = await http.post("/completions", json=BODY)
        assert (await arrived(got, answer.headers["traceparent"])).root.error is None


async def test_metrics_lead_to_traces(tmp_path: Path) -> None:
    async with traced(tmp_path) as (client, got, http):
        answer = await http.post("/completions", json=BODY)
        tree = await arrived(got, answer.headers["traceparent"])
        wants = {"accept": "application/openmetrics-text; version=1.0.0"}
        text = (await http.get(f"http://{client.ports.admin}/metrics", headers=wants)).text
        lines = [line for line in text.splitlines() if tree.root.trace in line]
        names = {line.partition("_bucket")[0] for line in lines}
        assert {"kvasir_ttft_seconds", "kvasir_first_gap_seconds", "kvasir_e2e_seconds"} <= names


async def test_without_a_receiver_requests_have_ids_and_nothing_is_kept(tmp_path: Path) -> None:
    async with (
        router(tmp_path, *NAMES) as client,
        httpx.AsyncClient(base_url=f"http://{client.ports.http}/v1", timeout=20) as http,
    ):
        answer = await http.post("/completions", json=BODY)
        assert answer.headers["traceparent"].endswith("-00")
        (called,) = client.fleet["prefill-1"].calls
        assert called.sequence.traceparent[3:35] == answer.headers["traceparent"][3:35]


async def test_a_receiver_that_is_away_costs_nobody_an_answer(tmp_path: Path) -> None:
    telemetry = TelemetryConfig(otlp_endpoint="http://127.0.0.1:1", sample_ratio=1.0)
    async with (
        router(tmp_path, *NAMES, telemetry=telemetry) as client,
        httpx.AsyncClient(base_url=f"http://{client.ports.http}/v1", timeout=20) as http,
    ):
        assert (await http.post("/completions", json=BODY)).status_code == 200
