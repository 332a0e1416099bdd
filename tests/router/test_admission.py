"""The line in front of the cluster as clients of both doors meet it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import httpx
import pytest

from router.api import Terms
from router.flow.classes import SloClass, SloConfig
from router.gateway.app import create_app
from router.service import InferenceService
from tests.router.fake_generator import FakeGenerator
from tests.router.fleet import until
from tests.router.test_service import NAMES, Client, router, sampling
from workers.wire import admin_pb2 as admin
from workers.wire import inference_pb2 as inference

SLO = SloConfig(
    classes={
        "interactive": SloClass(ttft=0.2, itl=30.0, max_wait=0.4, max_queue=2),
        "standard": SloClass(ttft=30.0),
        "batch": SloClass(background=True),
    },
    tenants={"acme": 2.0},
)
BODY = {"model": "tiny", "prompt": "w5", "max_tokens": 4}


@asynccontextmanager
async def full(folder: Path) -> AsyncIterator[tuple[Client, httpx.AsyncClient]]:
    """A router that lets one request in, and that one is there until workers' gates open."""
    async with router(folder, *NAMES, slo=SLO, max_requests=1) as client:
        client.fleet["decode-1"].script.append("gate after 1")
        base = f"http://{client.ports.http}/v1"
        async with httpx.AsyncClient(base_url=base, trust_env=False, timeout=20) as http:
            first = asyncio.create_task(client.generate(text="w5", sampling=sampling()))
            await until(lambda: client.fleet["decode-1"].active == 1)
            yield client, http
            client.fleet["decode-1"].gate.set()
            await first


async def queued(client: Client) -> dict[str, int]:
    status = await client.admin.Status(admin.StatusRequest())
    return {slo.name: slo.queued for slo in status.classes if slo.queued}


async def waits(client: Client, count: int) -> None:
    while sum((await queued(client)).values()) != count:
        await asyncio.sleep(0.01)


async def test_who_would_wait_too_long_is_told_when_to_come_back(tmp_path: Path) -> None:
    async with full(tmp_path) as (client, http):
        by_class = await http.post("/completions", json=BODY | {"service_tier": "priority"})
        by_deadline = await http.post(
            "/completions", json=BODY, headers={"x-kvasir-deadline-ms": "250"}
        )
        for answer in (by_class, by_deadline):
            assert answer.status_code == 429 and int(answer.headers["retry-after"]) >= 1
            assert answer.json()["error"]["code"] == "resource_exhausted"
        assert "class interactive and deadline allow 0.4 s" in by_class.text
        assert "class standard and deadline allow 0.2 s" in by_deadline.text
        error = await client.refused(text="w5", slo_class="interactive")
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert float(dict(error.trailing_metadata())["retry-after"]) >= 1


async def test_classes_and_tenants_wait_apart_and_are_counted(tmp_path: Path) -> None:
    async with full(tmp_path) as (client, http):
        posts = [
            http.post("/completions", json=BODY | {"service_tier": "flex"}),
            http.post("/completions", json=BODY, headers={"x-kvasir-tenant": "acme"}),
            http.post("/completions", json=BODY, headers={"x-kvasir-tenant": "mallory"}),
            http.post("/completions", json=BODY, headers={"x-kvasir-class": "batch"}),
        ]
        waiting = [asyncio.create_task(post) for post in posts]
        asked = inference.GenerateRequest(
            model="tiny", text="w5", sampling=sampling(), slo_class="batch", tenant="acme"
        )
        call = client.inference.Generate(asked, timeout=20)
        await waits(client, 5)
        assert await queued(client) == {"standard": 2, "batch": 3}
        client.fleet["decode-1"].gate.set()
        assert [answer.status_code for answer in await asyncio.gather(*waiting)] == [200] * 4
        assert [response async for response in call]
        text = (await http.get(f"http://{client.ports.http}/metrics")).text
        for line in (
            'kvasir_admissions_total{class="standard",outcome="admitted",tenant="other"} 2.0',
            'kvasir_admissions_total{class="standard",outcome="admitted",tenant="acme"} 1.0',
            'kvasir_admissions_total{class="batch",outcome="admitted",tenant="acme"} 1.0',
            'kvasir_slo_results_total{class="batch",result="good",tenant="acme"} 1.0',
            'kvasir_slo_results_total{class="batch",result="good",tenant="other"} 2.0',
            'kvasir_queue_wait_seconds_count{class="batch"} 3.0',
            'kvasir_queued{class="batch"} 0.0',
        ):
            assert line in text, line
        assert "mallory" not in text


async def test_a_full_queue_refuses_at_once(tmp_path: Path) -> None:
    async with full(tmp_path) as (client, http):
        crowd = [
            asyncio.create_task(client.refused(text="w5", slo_class="interactive"))
            for _ in range(2)
        ]
        await waits(client, 2)
        answer = await http.post("/completions", json=BODY | {"service_tier": "priority"})
        assert answer.status_code == 429 and "the queue of class interactive is full" in answer.text
        await asyncio.gather(*crowd)


async def test_new_classes_hold_at_once_and_wrong_ones_are_refused(tmp_path: Path) -> None:
    async with router(tmp_path, *NAMES, slo=SLO) as client:
        new = SloConfig(classes={"gold": SloClass()}, default="gold")
        await client.admin.SetSlo(admin.SetSloRequest(json=new.model_dump_json()))
        error = await client.refused(text="w5", slo_class="standard")
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "no service class 'standard'; there are: gold" in (error.details() or "")
        assert await client.generate(text="w5", sampling=sampling(), slo_class="gold")
        with pytest.raises(grpc.aio.AioRpcError, match="none of the classes") as caught:
            await client.admin.SetSlo(admin.SetSloRequest(json=json.dumps({"default": "x"})))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        status = await client.admin.Status(admin.StatusRequest())
        assert [(slo.name, slo.admitted, slo.good) for slo in status.classes] == [("gold", 1, 1)]


@pytest.mark.parametrize(
    ("headers", "says"),
    [
        ({"x-kvasir-class": "gold"}, "no service class 'gold'; there are: batch, interactive"),
        ({"x-kvasir-deadline-ms": "soon"}, "x-kvasir-deadline-ms is 'soon'; it must be a number"),
        ({"x-kvasir-deadline-ms": "-1"}, "x-kvasir-deadline-ms is '-1'"),
        ({"x-kvasir-priority": "high"}, "x-kvasir-priority is 'high'; it must be an integer"),
        ({"x-kvasir-priority": "1001"}, "priority is 1001; it must lie in [-1000, 1000]"),
        ({"x-kvasir-tenant": "t" * 257}, "tenant has 257 characters, at most 256"),
    ],
)
async def test_what_is_wrong_with_a_header_is_said(
    tmp_path: Path, headers: dict[str, str], says: str
) -> None:
    async with (
        router(tmp_path, slo=SLO) as client,
        httpx.AsyncClient(base_url=f"http://{client.ports.http}/v1", trust_env=False) as http,
    ):
        answer = await http.post("/completions", json=BODY, headers=headers)
        assert answer.status_code == 400 and says in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("headers", "body", "terms"),
    [
        ({}, {"user": "u", "safety_identifier": "s"}, Terms()),
        ({}, {"service_tier": "auto"}, Terms()),
        ({}, {"service_tier": "default"}, Terms()),
        ({}, {"service_tier": "flex"}, Terms("batch")),
        ({}, {"service_tier": "priority"}, Terms()),  # there is no such class here
        ({"x-kvasir-class": "gold"}, {"service_tier": "flex"}, Terms("gold")),
        (
            {"x-kvasir-tenant": "t", "x-kvasir-deadline-ms": "1500", "x-kvasir-priority": "-3"},
            {},
            Terms(tenant="t", deadline_s=1.5, priority=-3),
        ),
    ],
)
async def test_headers_and_tiers_become_terms(
    headers: dict[str, str], body: dict[str, str], terms: Terms
) -> None:
    generator = FakeGenerator()
    app = create_app(generator, ready=lambda: True, classes=lambda: ["standard", "batch"])
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://kvasir") as http:
        prompt = {"model": "demo", "prompt": "x", **body}
        answer = await http.post("/v1/completions", json=prompt, headers=headers)
        assert answer.status_code == 200, answer.text
        chat = {"model": "demo", "messages": [{"role": "user", "content": "x"}], **body}
        answer = await http.post("/v1/chat/completions", json=chat, headers=headers)
    assert [call.terms for call in generator.calls] == [terms] * 2


class Context:
    """Of a gRPC call with a deadline."""

    def time_remaining(self) -> float:
        return 1.5


async def test_a_grpc_deadline_is_the_requests() -> None:
    generator = FakeGenerator()
    service = InferenceService(generator, lambda error: None)
    asked = inference.GenerateRequest(model="demo", text="x", tenant="t", priority=-3)
    async for _ in service.Generate(asked, Context()):  # type: ignore[arg-type]
        pass
    assert generator.calls[0].terms == Terms(tenant="t", deadline_s=1.5, priority=-3)
