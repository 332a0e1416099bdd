"""`kvasir serve` with the shipped config: two workers, a router, a real Redis, real clients."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import httpx
import pytest
import redis.asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from openai import APIError, APIStatusError, AsyncOpenAI, AsyncStream, BadRequestError
from openai.types import Completion
from prometheus_client.parser import text_string_to_metric_families

from cluster.bench.workload import read_trace
from cluster.model_source import demo_model
from cluster.simulator.arrivals import read_arrivals
from cluster.simulator.route import Setup, simulate
from tests.cluster.processes import children, gone, is_alive
from tests.e2e.serving import (
    ANY_PORTS,
    KVASIR,
    PATIENCE_S,
    Serving,
    kvasir,
    kvasir_serve,
    refused_serve,
)
from workers.wire import common_pb2 as common
from workers.wire import inference_pb2 as inference
from workers.wire import inference_pb2_grpc

QUESTIONS = [
    "What is the capital of France?",
    "What is the capital of Italy?",
    "What day comes after Monday?",
    "What is 12 plus 7?",
]
Metric = tuple[str, frozenset[tuple[str, str]]]
pytestmark = pytest.mark.timeout(400)  # commands, each a process, take their time if others do
LONG_PROMPT = "one two three four five six seven eight nine ten " * 60


@pytest.fixture
async def client(cluster: Serving) -> AsyncIterator[AsyncOpenAI]:
    await cluster.all_up()
    async with AsyncOpenAI(base_url=f"{cluster.url}/v1", api_key="none", max_retries=0) as client:
        yield client


async def answer(client: AsyncOpenAI, model: str, question: str) -> str:
    message = {"role": "user", "content": question}
    done = await client.chat.completions.create(model=model, messages=[message], temperature=0)  # type: ignore[list-item]
    return done.choices[0].message.content or ""


async def streamed_answer(client: AsyncOpenAI, model: str, question: str) -> str:
    stream = await client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": question}],
        temperature=0,
        stream=True,
    )
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


async def long_stream(
    client: AsyncOpenAI, model: str, *, prompt: str = LONG_PROMPT, tokens: int = 200
) -> AsyncStream[Completion]:
    return await client.completions.create(
        model=model,
        prompt=prompt,
        max_tokens=tokens,
        temperature=0,
        stream=True,
        extra_body={"ignore_eos": True},
    )


async def read(stream: AsyncStream[Completion]) -> str:
    return "".join([chunk.choices[0].text async for chunk in stream])


# -- answers -------------------------------------------------------------------------------------


async def test_concurrent_streams_answer_as_they_do_alone(
    cluster: Serving, client: AsyncOpenAI
) -> None:
    alone = [await answer(client, cluster.model, question) for question in QUESTIONS]
    assert "Paris" in alone[0]
    together = await asyncio.gather(
        *(streamed_answer(client, cluster.model, question) for question in QUESTIONS * 4)
    )
    assert together == alone * 4
    await cluster.idle()


async def test_prefixes_are_cached(cluster: Serving, client: AsyncOpenAI) -> None:
    prompt = "the same words again and again " * 12
    usages = []
    for _ in range(2):
        done = await client.completions.create(model=cluster.model, prompt=prompt, max_tokens=2)
        assert done.usage is not None
        assert done.usage.prompt_tokens_details is not None
        usages.append(done.usage.prompt_tokens_details.cached_tokens)
    assert usages[0] == 0
    assert usages[1]
    await cluster.until(lambda now: sum(r.load.prefix_hit_tokens for r in now.replicas) > 0)


async def test_grpc_door(cluster: Serving, client: AsyncOpenAI) -> None:
    question = QUESTIONS[0]
    expected = await answer(client, cluster.model, question)
    async with grpc.aio.insecure_channel(cluster.grpc) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        alive = await health.Check(health_pb2.HealthCheckRequest())
        assert alive.status == health_pb2.HealthCheckResponse.SERVING
        stub = inference_pb2_grpc.InferenceStub(channel)
        models = await stub.ListModels(inference.ListModelsRequest())
        assert [model.id for model in models.models] == [cluster.model]
        chat = inference.ChatMessages(
            messages=[inference.ChatMessage(role="user", content=question)]
        )
        replies = [
            reply
            async for reply in stub.Generate(
                inference.GenerateRequest(model=cluster.model, chat=chat)
            )
        ]
        assert "".join(reply.text for reply in replies) == expected
        assert replies[-1].finish_reason == common.FINISH_REASON_STOP
        assert replies[-1].usage.completion_tokens == sum(len(r.tokens) for r in replies)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in stub.Generate(inference.GenerateRequest(model="other", text="x")):
                pass
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    await cluster.idle()


async def test_the_other_commands(cluster: Serving, client: AsyncOpenAI, tmp_path: Path) -> None:
    url, report = f"--url={cluster.url}", tmp_path / "report.json"
    status = kvasir("status", f"--router={cluster.grpc}")
    assert "prefill-0" in status
    assert "decode-0" in status
    assert "no ticket is open" in kvasir("tickets", f"--router={cluster.grpc}")
    agreed = kvasir("fsck", f"--router={cluster.grpc}")
    assert agreed.count(" ok") == 2 and "differs" not in agreed, agreed
    assert "Paris" in kvasir("chat", url, text=f"{QUESTIONS[0]}\n{QUESTIONS[2]}\n")
    trace, steps = tmp_path / "run.jsonl.gz", tmp_path / "steps.jsonl"
    recording = subprocess.Popen(
        [*KVASIR, "record", f"--router={cluster.grpc}", f"--out={trace}", f"--steps={steps}"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert recording.stdout is not None and "recording" in recording.stdout.readline()
    load = ("--requests=6", "--rate=20", "--input=40", "--output=5", "--shared-prefix=32")
    assert "goodput" in kvasir("bench", "serve", url, *load, "--slo=ttft=60s", f"--json={report}")
    figures = json.loads(report.read_text())
    assert (figures["requests"], figures["errors"], figures["good_requests"]) == (6, 0, 6)
    assert (figures["input_tokens"], figures["output_tokens"]) == (240, 30)
    await asyncio.sleep(1.0)  # the workers' last steps are reported
    recording.send_signal(signal.SIGINT)
    said, _ = recording.communicate(timeout=PATIENCE_S)
    assert recording.returncode == 0 and "7 ok" in said, said
    assert [job.input_tokens for job in read_trace(trace)][1:] == [40] * 6, "behind the first try"
    measured = [json.loads(line) for line in steps.read_text().splitlines()]
    assert sum(step["prefill_tokens"] for step in measured if step["role"] == "prefill") >= 40
    assert all(step["seconds"] > 0 for step in measured)
    assert simulate(read_arrivals(trace), Setup(workers=2, cache_tokens=1000)).hit > 0
    await cluster.idle()


async def test_what_does_not_fit_is_refused(cluster: Serving, client: AsyncOpenAI) -> None:
    with pytest.raises(BadRequestError) as caught:
        await answer(client, cluster.model, "one two three " * 5000)
    assert caught.value.code == "context_length_exceeded"
    async with httpx.AsyncClient(base_url=cluster.url) as http:
        response = await http.post("/v1/completions", content=b" " * ((8 << 20) + 1))
    assert response.status_code == httpx.codes.REQUEST_ENTITY_TOO_LARGE
    await cluster.idle()


async def test_metrics_after_traffic(cluster: Serving, client: AsyncOpenAI) -> None:
    before = await metrics(cluster)
    for number in (1, 2, 1):
        await read(await long_stream(client, cluster.model, prompt=f"{number} {LONG_PROMPT}"))
    await cluster.idle()
    after = await metrics(cluster)

    def grew(name: str, **labels: str) -> float:
        return sum(
            value - before.get(key, 0.0)
            for key, value in after.items()
            if key[0] == name and labels.items() <= set(key[1])
        )

    assert grew("kvasir_requests_total") == grew("kvasir_requests_total", outcome="ok") == 3
    assert grew("kvasir_ttft_seconds_count") == 3
    assert grew("kvasir_output_tokens_total") == 600
    assert grew("kvasir_transfer_bytes_total") > 0
    assert grew("kvasir_prefix_hit_tokens_total") > 0


async def metrics(cluster: Serving) -> dict[Metric, float]:
    """Every sample of /metrics."""
    async with httpx.AsyncClient(base_url=cluster.url) as http:
        text = (await http.get("/metrics")).text
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


# -- cancellation --------------------------------------------------------------------------------


async def test_cancel_in_mid_stream(cluster: Serving, client: AsyncOpenAI) -> None:
    streams = [await long_stream(client, cluster.model, tokens=400) for _ in range(3)]
    for stream in streams:
        async for _ in stream:
            break
        await stream.close()
    await cluster.idle()


async def test_cancel_before_the_first_token(cluster: Serving) -> None:
    body = {"model": cluster.model, "stream": True, "max_tokens": 50}
    async with httpx.AsyncClient(base_url=cluster.url) as http:
        tasks = [
            asyncio.create_task(
                http.post("/v1/completions", json=body | {"prompt": f"{number} {LONG_PROMPT}"})
            )
            for number in range(4)
        ]
        while not cluster.status().requests_in_flight:
            await asyncio.sleep(0.005)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    await cluster.idle()


async def test_grpc_cancel(cluster: Serving, client: AsyncOpenAI) -> None:
    async with grpc.aio.insecure_channel(cluster.grpc) as channel:
        stub = inference_pb2_grpc.InferenceStub(channel)
        params = common.SamplingParams(max_tokens=400, ignore_eos=True)
        call = stub.Generate(
            inference.GenerateRequest(model=cluster.model, text=LONG_PROMPT, sampling=params)
        )
        await call.read()
        call.cancel()
    await cluster.idle()


# -- SIGKILL -------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["prefill", pytest.param("decode", marks=pytest.mark.slow)])
async def test_worker_killed_while_idle(cluster: Serving, client: AsyncOpenAI, role: str) -> None:
    before = cluster.kill(f"--role {role}")
    try:
        assert "Paris" in await answer(client, cluster.model, QUESTIONS[0])
    except APIStatusError as error:
        assert error.status_code == 503  # clean, and the caller may come again
    await cluster.all_up()
    assert cluster.pid_of(f"--role {role}") != before
    assert "Paris" in await answer(client, cluster.model, QUESTIONS[0])
    await cluster.idle()


@pytest.mark.parametrize("role", ["prefill", pytest.param("decode", marks=pytest.mark.slow)])
async def test_worker_killed_while_prefilling(
    cluster: Serving, client: AsyncOpenAI, role: str
) -> None:
    prompt = f"killed {role} {LONG_PROMPT}"
    task = asyncio.create_task(
        client.completions.create(model=cluster.model, prompt=prompt, max_tokens=8, temperature=0)
    )
    while not cluster.status().requests_in_flight:
        await asyncio.sleep(0.005)
    cluster.kill(f"--role {role}")
    try:
        interrupted = (await task).choices[0].text
    except APIStatusError as error:
        assert error.status_code == 503
        interrupted = None
    await cluster.all_up()
    again = await client.completions.create(
        model=cluster.model, prompt=prompt, max_tokens=8, temperature=0
    )
    assert interrupted in (None, again.choices[0].text)
    await cluster.idle()


@pytest.mark.parametrize("role", [pytest.param("prefill", marks=pytest.mark.slow), "decode"])
async def test_worker_killed_while_decoding(
    cluster: Serving, client: AsyncOpenAI, role: str
) -> None:
    """Nothing is lost and nothing comes twice: the text is what it is without the kill."""
    expected = await read(await long_stream(client, cluster.model))
    stream = await long_stream(client, cluster.model)
    parts = []
    async for chunk in stream:
        parts.append(chunk.choices[0].text)
        if len(parts) == 4:
            cluster.kill(f"--role {role}")
    assert "".join(parts) == expected
    await cluster.all_up()
    await cluster.idle()


async def test_redis_killed(cluster: Serving, client: AsyncOpenAI) -> None:
    stream = await long_stream(client, cluster.model)
    cluster.kill("redis-server")
    assert await read(stream)
    assert "Paris" in await answer(client, cluster.model, QUESTIONS[0])
    await cluster.all_up()
    assert "Paris" in await answer(client, cluster.model, QUESTIONS[0])
    await cluster.idle()


async def test_redis_flushed(cluster: Serving, client: AsyncOpenAI) -> None:
    stream = await long_stream(client, cluster.model)
    async with redis.asyncio.from_url(cluster.redis_url) as client_of_redis:
        await client_of_redis.flushall()
        assert await read(stream)
        while len(await client_of_redis.keys("*:replica:*")) < 2:  # both register again
            await asyncio.sleep(0.05)
    await cluster.all_up()
    assert "Paris" in await answer(client, cluster.model, QUESTIONS[0])
    await cluster.idle()


async def test_router_killed(cluster: Serving, client: AsyncOpenAI) -> None:
    stream = await long_stream(client, cluster.model, tokens=400)
    async for _ in stream:
        break
    cluster.kill("-m router")
    with pytest.raises((APIError, httpx.HTTPError)):
        await read(stream)
    await cluster.all_up()
    assert "Paris" in await answer(client, cluster.model, QUESTIONS[0])
    await cluster.idle()  # what the dead router had asked for is given up


async def test_decode_worker_stopped_and_continued(cluster: Serving, client: AsyncOpenAI) -> None:
    """The only decode worker falls silent in mid-stream; back again, it takes up the stream."""
    expected = await read(await long_stream(client, cluster.model))
    stream = await long_stream(client, cluster.model)
    parts = []
    pid = cluster.pid_of("--role decode")
    async for chunk in stream:
        parts.append(chunk.choices[0].text)
        if len(parts) == 4:
            os.kill(pid, signal.SIGSTOP)
            try:
                await cluster.until(lambda now: not all(r.up for r in now.replicas))
            finally:
                os.kill(pid, signal.SIGCONT)
    assert "".join(parts) == expected
    await cluster.all_up()
    assert cluster.pid_of("--role decode") == pid
    await cluster.idle()


# -- starting and ending -------------------------------------------------------------------------


def test_a_taken_port_is_named_before_anything_starts(cluster: Serving) -> None:
    port = httpx.URL(cluster.url).port
    said = refused_serve("--grpc-port=0", "--admin-port=0", f"--http-port={port}")
    assert f"error: port {port} on 127.0.0.1 (router.http) is already taken" in said
    assert "starting" not in said


def test_a_second_cluster_on_its_redis_is_refused(cluster: Serving) -> None:
    said = refused_serve(*ANY_PORTS, f"--redis-url={cluster.redis_url}")
    assert f"error: replicas of a cluster named 'kvasir' are registered at {cluster.redis_url}" in (
        said
    )
    assert "starting" not in said


def test_a_broken_checkpoint_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(demo_model(), broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    said = refused_serve(*ANY_PORTS, f"--model={broken}")
    assert "cannot start" in said
    assert str(weights) in said


def test_an_unsupported_architecture_is_named(tmp_path: Path) -> None:
    shutil.copytree(demo_model(), tmp_path / "odd")
    path = tmp_path / "odd" / "config.json"
    config = json.loads(path.read_text()) | {"architectures": ["MambaForCausalLM"]}
    path.write_text(json.dumps(config))
    said = refused_serve(*ANY_PORTS, f"--model={path.parent}")
    assert "cannot start" in said
    assert "MambaForCausalLM" in said


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(demo_model(), folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    said = refused_serve(*ANY_PORTS, f"--model={folder}")
    assert "only pickled weights (pytorch_model.bin)" in said


async def test_ctrl_c_while_it_starts_leaves_nothing(tmp_path: Path) -> None:
    command = [*KVASIR, "serve", *ANY_PORTS, f"--log-dir={tmp_path}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        while len(pids := list(children(process.pid))) < 4:
            assert process.poll() is None
            await asyncio.sleep(0.02)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)
    assert process.returncode == 0
    assert said[0] == b""
    assert b"nothing is left running" in said[1]
    assert not any(is_alive(pid) for pid in pids)


@pytest.mark.slow
async def test_sigkill_leaves_nothing(tmp_path: Path) -> None:
    with kvasir_serve(tmp_path) as serving:
        pids = list(children(serving.process.pid))
        serving.process.kill()
        await gone(*pids)


def test_sigterm_leaves_nothing(cluster: Serving) -> None:
    """The last one here: it ends the cluster of all the others."""
    pids = list(children(cluster.process.pid))
    assert len(pids) == 4
    cluster.process.send_signal(signal.SIGTERM)
    assert cluster.process.wait(60) == 0
    assert not any(is_alive(pid) for pid in pids)
