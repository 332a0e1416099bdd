"""`kvasir serve --aggregated`: one worker, a router, a Redis; and beside a pair of workers."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from openai import AsyncOpenAI

from tests.cluster.processes import children, is_alive
from tests.e2e.serving import PATIENCE_S, Serving, kvasir, kvasir_serve
from tests.e2e.test_serve import QUESTIONS, answer, long_stream, metrics, read, streamed_answer
from workers.wire import admin_pb2 as admin


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with kvasir_serve(tmp_path_factory.mktemp("alone"), "--aggregated=1", workers=1) as serving:
        yield serving


@pytest.fixture
async def client(alone: Serving) -> AsyncIterator[AsyncOpenAI]:
    await alone.all_up()
    async with openai_client(alone) as client:
        yield client


def openai_client(serving: Serving) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{serving.url}/v1", api_key="none", max_retries=0)


async def test_it_answers_one_and_many_and_says_what_it_cached(
    alone: Serving, client: AsyncOpenAI
) -> None:
    one_by_one = [await answer(client, alone.model, question) for question in QUESTIONS]
    assert "Paris" in one_by_one[0]
    together = await asyncio.gather(
        *(streamed_answer(client, alone.model, question) for question in QUESTIONS * 4)
    )
    assert together == one_by_one * 4
    prompt = "the same words again and again " * 12
    cached = []
    for _ in range(2):
        done = await client.completions.create(model=alone.model, prompt=prompt, max_tokens=2)
        assert done.usage is not None and done.usage.prompt_tokens_details is not None
        cached.append(done.usage.prompt_tokens_details.cached_tokens)
    assert cached[0] == 0 and cached[1]
    await alone.idle()
    figures = await metrics(alone)
    names = {name for name, labels in figures}
    assert figures["kvasir_prefill_seconds_count", frozenset()] == len(QUESTIONS) * 5 + 2
    assert "kvasir_transfer_bytes_total" not in names, "nothing was transferred"


async def test_status_shows_the_pool(alone: Serving, client: AsyncOpenAI) -> None:
    status = kvasir("status", f"--router={alone.grpc}")
    assert "aggregated-0" in status and "prefill-0" not in status


async def test_a_new_target_in_the_file_changes_the_workers_sizes(alone: Serving) -> None:
    await alone.all_up()
    path = alone.log_dir / "cluster.yaml"
    began = path.read_text()
    config = yaml.safe_load(began)

    def write(itl: str) -> None:
        slo = {"default": "chat", "classes": {"chat": {"itl": itl}}}
        path.write_text(yaml.safe_dump(config | {"slo": slo}))

    def sizes(status: admin.StatusResponse) -> tuple[int, int]:
        (replica,) = status.replicas
        return replica.load.seqs_limit, replica.load.step_tokens

    started = (config["engine"]["max_seqs"], config["engine"]["step_tokens"])
    write("10s")
    await alone.until(lambda now: now.classes[0].name == "chat" and sizes(now) == started)
    smaller = lambda now: sizes(now)[1] < started[1]  # noqa: E731
    for itl in ("60ms", "120ms", "30ms", "240ms", "15ms", "480ms"):
        write(itl)  # which of them can be kept, and asks for anything, depends on the machine
        with suppress(TimeoutError):
            async with asyncio.timeout(6):
                while not smaller(alone.status()):
                    await asyncio.sleep(0.1)
                break
    assert smaller(alone.status())
    alone.kill("-m router")
    await alone.until(lambda now: [slo.name for slo in now.classes] == ["chat"])
    path.write_text(began + "\nslo: soon\n")
    await said(alone, f"{path} is ignored until it is right")
    path.write_text(began + "\ngrace_s: 5\n")
    await said(alone, "grace_s changed: that needs a restart")
    path.write_text(began)
    await alone.until(lambda now: len(now.classes) == 3)
    assert "interactive" in kvasir("status", f"--router={alone.grpc}")


async def said(serving: Serving, words: str) -> None:
    """Until `kvasir serve` says so."""
    async with asyncio.timeout(PATIENCE_S):
        while words not in (serving.log_dir / "serve.err").read_text():
            await asyncio.sleep(0.1)


async def test_a_client_that_leaves_frees_every_page(alone: Serving, client: AsyncOpenAI) -> None:
    streams = [await long_stream(client, alone.model, tokens=400) for _ in range(3)]
    for stream in streams:
        async for _ in stream:
            break
        await stream.close()
    await alone.idle()


async def test_killed_in_mid_decode_the_restarted_worker_completes_the_answer(
    alone: Serving, client: AsyncOpenAI
) -> None:
    expected = await read(await long_stream(client, alone.model))
    before = alone.pid_of("--role aggregated")
    parts = []
    async for chunk in await long_stream(client, alone.model):
        parts.append(chunk.choices[0].text)
        if len(parts) == 4:
            alone.kill("--role aggregated")
    assert "".join(parts) == expected
    await alone.all_up()
    assert alone.pid_of("--role aggregated") != before
    await alone.idle()


def test_sigterm_leaves_nothing(alone: Serving) -> None:
    """The last one with this cluster: it ends it."""
    pids = list(children(alone.process.pid))
    assert len(pids) == 3
    alone.process.send_signal(signal.SIGTERM)
    assert alone.process.wait(60) == 0
    assert not any(is_alive(pid) for pid in pids)


@pytest.mark.slow
async def test_beside_a_pair_of_workers_any_of_the_three_may_die(tmp_path: Path) -> None:
    """Who gets a request is the router's affair (tests/router); here the answers must be alike."""
    sizes = ("--prefill=1", "--decode=1", "--aggregated=1")
    with kvasir_serve(tmp_path, *sizes, workers=3) as serving:
        async with openai_client(serving) as client:
            expected = await read(await long_stream(client, serving.model))
            for lost in ("aggregated", "decode", "prefill"):
                parts = []
                async for chunk in await long_stream(client, serving.model):
                    parts.append(chunk.choices[0].text)
                    if len(parts) == 4:
                        serving.kill(f"--role {lost}")
                assert "".join(parts) == expected, f"{lost} was killed"
                await serving.all_up()
            prompts = [f"{number} one two three four five " * 20 for number in range(12)]
            streams = [
                await long_stream(client, serving.model, prompt=prompt, tokens=30)
                for prompt in prompts
            ]
            assert all(await asyncio.gather(*map(read, streams)))
        await serving.idle()
        used = {r.load.replica.id: r.load.prefix_query_tokens for r in serving.status().replicas}
        assert used["prefill-0"] or used["aggregated-0"], used
