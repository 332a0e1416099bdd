"""The whole router in this process, both doors open, with fake workers behind it."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from router.app import Ports, serve
from router.config import Address, Limits, RouterConfig
from router.flow.classes import SloClass, SloConfig
from router.placement.placement import Disaggregation
from router.tracing.config import TelemetryConfig
from tests.router.fleet import Fleet, token_at, until
from tests.router.tiny_model import write_model
from workers.core.errors import ConfigError
from workers.core.step_work import MeasuredStep, StepWork
from workers.wire import admin_pb2 as admin
from workers.wire import admin_pb2_grpc as admin_grpc
from workers.wire import common_pb2 as common
from workers.wire import inference_pb2 as inference
from workers.wire import inference_pb2_grpc as inference_grpc
from workers.wire import worker_pb2 as worker
from workers.wire.codec import step_to_wire

NAMES = ("prefill-1", "decode-1")


class Client:
    """What a client of both doors has in hand."""

    def __init__(
        self, fleet: Fleet, ports: Ports, channel: grpc.aio.Channel, stop: asyncio.Event
    ) -> None:
        self.fleet = fleet
        self.ports = ports
        self.stop = stop
        self.inference = inference_grpc.InferenceStub(channel)
        self.admin = admin_grpc.AdminStub(channel)
        self.health = health_pb2_grpc.HealthStub(channel)
        self.reflection = reflection_pb2_grpc.ServerReflectionStub(channel)

    async def generate(self, **fields) -> list[inference.GenerateResponse]:
        asked = inference.GenerateRequest(**{"model": "tiny"} | fields)
        return [response async for response in self.inference.Generate(asked)]

    async def refused(self, **fields) -> grpc.aio.AioRpcError:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.generate(**fields)
        return caught.value


@asynccontextmanager
async def router(
    folder: Path,
    *names: str,
    slo: SloConfig | None = None,
    telemetry: TelemetryConfig | None = None,
    disaggregation: Disaggregation = "remote",
    **limits,
) -> AsyncIterator[Client]:
    fleet = Fleet()
    for name in names:
        await fleet.add(name, name.partition("-")[0])
    config = RouterConfig(
        model=str(write_model(folder)),
        served_name="tiny",
        grpc=Address(port=0),
        http=Address(port=0),
        admin=Address(port=0),
        replicas=tuple(fleet.records()),
        slo=slo or SloConfig(),
        telemetry=telemetry or TelemetryConfig(),
        disaggregation=disaggregation,
        limits=Limits(
            **{"worker_wait_s": 0.3, "worker_silence_s": 1.0, "shutdown_s": 1.0} | limits
        ),
    )
    stop = asyncio.Event()
    ports: asyncio.Future[Ports] = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(serve(config, stop, ports.set_result))
    await asyncio.wait([serving, ports], return_when=asyncio.FIRST_COMPLETED)
    if serving.done():
        await serving
    try:
        async with grpc.aio.insecure_channel(str(ports.result().grpc)) as channel:
            client = Client(fleet, ports.result(), channel, stop)
            await until_up(client, len(names))
            yield client
    finally:
        stop.set()
        await serving
        await fleet.close()


async def until_up(client: Client, count: int) -> None:
    while True:
        status = await client.admin.Status(admin.StatusRequest())
        if sum(replica.up for replica in status.replicas) == count:
            return
        await asyncio.sleep(0.02)


def sampling(**fields) -> common.SamplingParams:
    return common.SamplingParams(**{"max_tokens": 4} | fields)


def words(first: int, count: int) -> str:
    return " ".join(f"w{token_at(position)}" for position in range(first, first + count))


@pytest.mark.parametrize(
    "prompt",
    [
        {"text": "w5 w6 w7"},
        {"token_ids": inference.TokenIds(ids=[5, 6, 7])},
        {
            "chat": inference.ChatMessages(
                messages=[inference.ChatMessage(role="user", content="w5 w6 w7")]
            )
        },
    ],
)
async def test_three_kinds_of_prompt_and_one_answer(tmp_path: Path, prompt) -> None:
    async with router(tmp_path, *NAMES) as client:
        responses = await client.generate(sampling=sampling(), request_id="mine", **prompt)
        asked = client.fleet["prefill-1"].calls[0].sequence
        assert list(asked.token_ids) == [5, 6, 7] and asked.request_id.startswith("mine-")
        assert asked.sampling.HasField("seed")
        tokens = [token for response in responses for token in response.tokens]
        assert [token.position for token in tokens] == [3, 4, 5, 6]
        assert "".join(r.text for r in responses).strip() == words(3, 4)
        assert {r.request_id for r in responses} == {"mine"}
        last = responses[-1]
        assert last.finish_reason == common.FINISH_REASON_LENGTH
        assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (3, 4)
        assert last.usage.cached_tokens == 2
        assert all(not r.finish_reason and not r.HasField("usage") for r in responses[:-1])


async def test_stop_strings_are_cut_off_and_end_the_request(tmp_path: Path) -> None:
    async with router(tmp_path, *NAMES) as client:
        stop = f"w{token_at(5)}"
        responses = await client.generate(
            text="w5 w6 w7", sampling=sampling(max_tokens=50, stop=[stop])
        )
        assert "".join(r.text for r in responses).strip() == words(3, 2)
        assert responses[-1].finish_reason == common.FINISH_REASON_STOP
        await client.fleet.quiet()


async def test_a_stop_token_has_no_text(tmp_path: Path) -> None:
    async with router(tmp_path, *NAMES) as client:
        client.fleet["decode-1"].finish_at = 3
        asked = sampling(max_tokens=50, stop_token_ids=[token_at(5)])
        responses = await client.generate(text="w5 w6 w7", sampling=asked)
        assert "".join(r.text for r in responses).strip() == words(3, 2)
        assert responses[-1].usage.completion_tokens == 3


async def test_a_retry_keeps_the_seed_that_was_drawn(tmp_path: Path) -> None:
    async with router(tmp_path, *NAMES, worker_wait_s=5.0) as client:
        client.fleet["prefill-1"].script.append("UNAVAILABLE")
        await client.generate(text="w5", sampling=sampling(temperature=1.0))
        first, second = (call.sequence.sampling for call in client.fleet["prefill-1"].calls)
        assert first.seed == second.seed
        await client.generate(text="w5", sampling=sampling(seed=9))
        assert client.fleet["prefill-1"].calls[-1].sequence.sampling.seed == 9


async def test_max_tokens_never_exceeds_what_fits(tmp_path: Path) -> None:
    async with router(tmp_path, *NAMES) as client:
        ids = inference.TokenIds(ids=[5] * 250)
        responses = await client.generate(token_ids=ids, sampling=common.SamplingParams())
        assert responses[-1].usage.completion_tokens == 256 + 256 - 250  # workers: 512
        assert client.fleet["prefill-1"].calls[0].sequence.sampling.max_tokens == 262


BAD = {
    "another model": ({"model": "gpt-7", "text": "w5"}, "NOT_FOUND", "gpt-7.*served here: tiny"),
    "no prompt": ({}, "INVALID_ARGUMENT", "one of text, token_ids and chat"),
    "empty text": ({"text": ""}, "INVALID_ARGUMENT", "prompt is empty"),
    "no messages": ({"chat": inference.ChatMessages()}, "INVALID_ARGUMENT", "prompt is empty"),
    "foreign token": (
        {"token_ids": inference.TokenIds(ids=[5, 1000])},
        "INVALID_ARGUMENT",
        "token id 1000 is outside the vocabulary of 1000",
    ),
    "too long": (
        {"token_ids": inference.TokenIds(ids=[5] * 600)},
        "INVALID_ARGUMENT",
        "600 tokens.*512 tokens",
    ),
    "endless name": (
        {"text": "w5", "request_id": "x" * 300},
        "INVALID_ARGUMENT",
        "request_id has 300 characters",
    ),
    "temperature": (
        {"text": "w5", "sampling": common.SamplingParams(temperature=-1)},
        "INVALID_ARGUMENT",
        "temperature is -1",
    ),
    "no tokens": (
        {"text": "w5", "sampling": common.SamplingParams(max_tokens=0)},
        "INVALID_ARGUMENT",
        r"max_tokens is 0; it must lie in \[1, 2147483647\]",
    ),
    "too long to look at each token": (
        {"token_ids": inference.TokenIds(ids=[5000] * 600)},
        "INVALID_ARGUMENT",
        "600 tokens.*512 tokens",
    ),
}


@pytest.mark.parametrize("what", BAD)
async def test_bad_requests_say_what_is_wrong(tmp_path: Path, what: str) -> None:
    fields, code, message = BAD[what]
    async with router(tmp_path, *NAMES) as client:
        error = await client.refused(**fields)
        assert error.code().name == code
        assert re.search(message, error.details())
        assert not client.fleet["prefill-1"].calls


async def test_nobody_there_is_unavailable_with_a_time(tmp_path: Path) -> None:
    async with router(tmp_path, "decode-1") as client:
        error = await client.refused(text="w5")
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert float(dict(error.trailing_metadata())["retry-after"]) > 0
        answer = await client.health.Check(health_pb2.HealthCheckRequest())
        assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_too_many_are_told_to_wait(tmp_path: Path) -> None:
    brief = SloConfig(classes={"chat": SloClass(ttft=1, max_wait=0.3)}, default="chat")
    async with router(tmp_path, *NAMES, slo=brief, max_requests=1) as client:
        client.fleet["decode-1"].script.append("wait after 1")
        first = client.inference.Generate(
            inference.GenerateRequest(model="tiny", text="w5", sampling=sampling())
        )
        await first.read()
        error = await client.refused(text="w5")
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert float(dict(error.trailing_metadata())["retry-after"]) >= 1
        first.cancel()
        await client.fleet.quiet()
        assert await client.generate(text="w5", sampling=sampling())


async def test_a_client_that_hangs_up_frees_the_workers(tmp_path: Path) -> None:
    async with router(tmp_path, *NAMES) as client:
        client.fleet["decode-1"].script.append("wait after 1")
        call = client.inference.Generate(
            inference.GenerateRequest(model="tiny", text="w5", sampling=sampling())
        )
        await call.read()
        await until(lambda: client.fleet["decode-1"].active == 1)
        call.cancel()
        await client.fleet.quiet()
        status = await client.admin.Status(admin.StatusRequest())
        assert (status.requests_in_flight, status.requests_failed) == (0, 0)


async def test_whoever_is_in_flight_when_the_router_stops_is_told(tmp_path: Path) -> None:
    async with (
        router(tmp_path, *NAMES) as client,
        httpx.AsyncClient(trust_env=False, timeout=None) as http,
    ):
        client.fleet["decode-1"].script.extend(["wait after 1"] * 3)
        url = f"http://{client.ports.http}/v1/completions"
        body = {"model": "tiny", "prompt": "w5", "max_tokens": 9}
        call = client.inference.Generate(
            inference.GenerateRequest(model="tiny", text="w5", sampling=sampling())
        )
        await call.read()
        whole = asyncio.create_task(http.post(url, json=body))
        async with http.stream("POST", url, json=body | {"stream": True}) as events:
            lines = events.aiter_lines()
            assert (await anext(lines)).startswith("data: ")
            await until(lambda: client.fleet["decode-1"].active == 3)
            client.stop.set()
            said = [line async for line in lines if line]
        assert "the router is stopping" in said[-1] and "service_unavailable" in said[-1]
        answer = await whole
        assert answer.status_code == 503 and "stopping" in answer.json()["error"]["message"]
        with pytest.raises(grpc.aio.AioRpcError, match="the router is stopping") as caught:
            while await call.read() is not grpc.aio.EOF:
                pass
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        await client.fleet.quiet()


async def test_what_counts_as_a_request_and_what_as_failed(tmp_path: Path) -> None:
    async with (
        router(tmp_path, *NAMES, retry_attempts=0) as client,
        httpx.AsyncClient(trust_env=False) as http,
    ):
        url = f"http://{client.ports.http}/v1/completions"
        asked = {"model": "tiny", "prompt": "w5", "max_tokens": 4}
        for fault, status in (
            ({}, 200),
            ({"temperature": 9}, 400),  # refused by the generator
            ({"temperature": "x"}, 400),  # by the parser
            ({"frobnicate": 1}, 400),
            ({"model": "other"}, 404),
        ):
            answer = await http.post(url, json=asked | fault)
            assert answer.status_code == status, answer.text
        await client.refused()
        client.fleet["prefill-1"].script.append("UNAVAILABLE")
        assert (await http.post(url, json=asked)).status_code == 503
        text = (await http.get(f"http://{client.ports.admin}/metrics")).text
        for outcome, count in (
            ("ok", 1), ("invalid_argument", 4), ("not_found", 1), ("unavailable", 1),
        ):  # fmt: skip
            assert f'kvasir_requests_total{{outcome="{outcome}"}} {count}.0' in text
        assert "kvasir_e2e_seconds_count 1.0" in text
        status = await client.admin.Status(admin.StatusRequest())
        assert (status.requests_total, status.requests_failed) == (7, 1)


async def test_a_bug_is_internal_and_shows_no_traceback(tmp_path: Path, monkeypatch) -> None:
    async with router(tmp_path, *NAMES) as client:

        def broken(*_: object) -> None:
            raise ZeroDivisionError("secret of the house")

        monkeypatch.setattr("router.generation.check_params", broken)
        error = await client.refused(text="w5", request_id="abc")
        assert error.code() is grpc.StatusCode.INTERNAL
        assert error.details() == "internal error (request abc)"


@pytest.mark.parametrize(
    ("disaggregation", "names", "ready"),
    [
        ("auto", ("prefill-1",), True),
        ("auto", ("aggregated-1",), True),
        ("remote", ("aggregated-1",), True),
        ("remote", ("prefill-1",), False),
        ("auto", ("decode-1",), True),
        ("local", ("decode-1",), True),
        ("remote", ("decode-1",), False),
        ("remote", ("prefill-1", "decode-1"), True),
    ],
)
async def test_ready_is_who_could_answer_a_request(
    tmp_path: Path, disaggregation: Disaggregation, names: tuple[str, ...], ready: bool
) -> None:
    async with router(tmp_path, *names, disaggregation=disaggregation) as client:
        health = await client.health.Check(health_pb2.HealthCheckRequest())
        assert (health.status == health_pb2.HealthCheckResponse.SERVING) is ready
        for address in (client.ports.http, client.ports.admin):
            async with httpx.AsyncClient(base_url=f"http://{address}") as http:
                for path in ("/health", "/ready"):
                    assert ((await http.get(path)).status_code == 200) is ready
        if not ready:
            error = await client.refused(text="w5 w6", sampling=sampling())
            assert error.code() is grpc.StatusCode.UNAVAILABLE
        else:
            assert await client.generate(text="w5 w6", sampling=sampling())


async def test_models_health_reflection_and_status(tmp_path: Path) -> None:
    async with router(tmp_path, *NAMES) as client:
        models = await client.inference.ListModels(inference.ListModelsRequest())
        assert [(model.id, model.context_length) for model in models.models] == [("tiny", 512)]
        for service in ("", "kvasir.v1.Inference"):
            answer = await client.health.Check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        ask = reflection_pb2.ServerReflectionRequest(list_services="")
        listed = [r async for r in client.reflection.ServerReflectionInfo(iter([ask]))]
        found = {service.name for service in listed[0].list_services_response.service}
        assert {"kvasir.v1.Inference", "kvasir.v1.Admin"} <= found
        status = await client.admin.Status(admin.StatusRequest())
        assert status.model == "tiny" and not status.redis_up
        assert {(r.load.replica.id, r.pool, r.load.state) for r in status.replicas} == {
            ("prefill-1", "prefill", "ready"),
            ("decode-1", "decode", "ready"),
        }


async def test_status_and_metrics_say_how_right_predictions_are(tmp_path: Path) -> None:
    async with router(tmp_path, *NAMES) as client, httpx.AsyncClient() as http:
        work = StepWork.decode(8, 800)
        client.fleet["decode-1"].steps = [step_to_wire(MeasuredStep(work, 0.5))]
        transfer = worker.TransferReport(sender="prefill-1", num_bytes=10_000_000, seconds=3.0)
        client.fleet["decode-1"].transfers = [transfer]
        await client.generate(sampling=sampling(), text="w5 w6 w7")
        told: dict[str, list[admin.Prediction]] = {}
        kinds: set[str] = set()
        async with asyncio.timeout(10.0):
            while kinds != {"TTFT", "FIRST_GAP"} or not told["decode-1"]:
                await asyncio.sleep(0.02)
                status = await client.admin.Status(admin.StatusRequest())
                told = {each.load.replica.id: list(each.predictions) for each in status.replicas}
                kinds = {each.kind for each in status.requests}
        found = {each.kind: each for each in told["decode-1"]}
        assert set(found) == {"decode step", "transfer"} and not told["prefill-1"]
        assert found["decode step"].actual_s == 0.5 and found["transfer"].actual_s == 3.0
        assert found["decode step"].count > 0 and found["decode step"].predicted_s > 0
        ttft = next(each for each in status.requests if each.kind == "TTFT")
        assert ttft.count == 1 and ttft.error == abs(ttft.bias)
        assert ttft.bias == pytest.approx((ttft.predicted_s - ttft.actual_s) / ttft.actual_s)
        text = (await http.get(f"http://{client.ports.admin}/metrics")).text
        assert 'kvasir_prediction_error{kind="decode step",replica="decode-1"}' in text
        assert 'kvasir_prediction_bias{kind="TTFT",replica=""}' in text


async def test_tickets_are_gathered_from_the_workers(tmp_path: Path) -> None:
    async with router(tmp_path, *NAMES) as client:
        client.fleet["prefill-1"].tickets["t1"] = 0
        listed = await client.admin.Tickets(worker.TicketsRequest())
        one, two = listed.replicas
        assert (one.replica, list(one.held.tickets)) == ("decode-1", [])
        assert (two.replica, [ticket.id for ticket in two.held.tickets]) == ("prefill-1", ["t1"])
        await client.fleet["decode-1"].kill()
        one, two = (await client.admin.Tickets(worker.TicketsRequest())).replicas
        assert "decode-1" in one.error and not one.held.tickets and not two.error
        client.fleet["prefill-1"].tickets.clear()


@pytest.mark.parametrize("key", ["grpc", "http", "admin"])
async def test_a_port_that_is_taken_is_named(tmp_path: Path, key: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        addresses = {name: Address(port=0) for name in ("grpc", "http", "admin")}
        addresses[key] = Address(port=port)
        config = RouterConfig(model=str(write_model(tmp_path)), served_name="tiny", **addresses)
        with pytest.raises(ConfigError, match=f"{key}: cannot listen on 127.0.0.1, port {port}"):
            await serve(config, asyncio.Event(), lambda ports: None)


async def test_the_gateway_and_the_metrics(tmp_path: Path) -> None:
    async with (
        router(tmp_path, *NAMES) as client,
        httpx.AsyncClient(trust_env=False) as http,
    ):
        base, ops = f"http://{client.ports.http}", f"http://{client.ports.admin}"
        body = {"model": "tiny", "messages": [{"role": "user", "content": "w5"}], "max_tokens": 4}
        answer = await http.post(f"{base}/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"][0]["message"]["content"].strip() == words(1, 4)
        answer = await http.post(f"{base}/v1/chat/completions", json=body | {"model": "other"})
        assert answer.status_code == 404
        assert (await http.get(f"{base}/health")).status_code == 200
        for url in (f"{base}/metrics", f"{ops}/metrics"):
            text = (await http.get(url)).text
            assert 'kvasir_requests_total{outcome="ok"} 1.0' in text
            assert 'kvasir_ttft_seconds_count{class="standard"} 1.0' in text
            assert 'kvasir_itl_seconds_count{class="standard"} 3.0' in text
            assert "kvasir_prefix_hit_tokens_total 2.0" in text
            assert 'kvasir_transfer_bytes_total{transport="gloo"} 64.0' in text
            assert 'kvasir_kv_pages{replica="decode-1",role="decode"} 256.0' in text
