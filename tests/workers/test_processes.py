"""Prefill and decode as separate processes against transformers, and through real deaths."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import Example, Oracle, make_checkpoint
from tests.handoff import both, decode, decode_request, moving, opened, prefill
from tests.workers.processes import workers
from workers.core.request import Request, SamplingParams
from workers.wire import worker_pb2 as worker
from workers.wire.decode_client import DecodeFailed

NEW_TOKENS = 10
LENGTHS = (1, 2, 15, 16, 17, 33, 257, 1000, 3000)
ENGINE = {"dtype": "float32", "kv_tokens": 8192, "step_tokens": 256, "threads": 1}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": (
        "llama",
        {
            "head_dim": 24,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10_000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 512,
            },
        },
    ),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"num_key_value_heads": 1}),
}
BACKENDS = {"llama": "gloo", "qwen2": "gloo", "qwen3": "shm"}


def request(name: str, prompt: tuple[int, ...], max_tokens: int = NEW_TOKENS) -> Request:
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
    return Request(name, prompt, len(prompt), params)


def checkpoint(folder: Path, shape: str) -> Path:
    family, fields = SHAPES[shape]
    return make_checkpoint(folder, family, max_position_embeddings=4096, **fields)


@pytest.mark.parametrize(
    "shape",
    ["llama", *(pytest.param(shape, marks=pytest.mark.slow) for shape in ("qwen2", "qwen3"))],
)
async def test_tokens_equal_transformers(shape: str, tmp_path: Path) -> None:
    """Alone and cold, again with prefix hits, all at once, and with preemption forced."""
    model = checkpoint(tmp_path / "model", shape)
    oracle = Oracle(model)
    examples = [oracle.example(length, NEW_TOKENS) for length in LENGTHS]
    shared = examples[-2].prompt[:500]
    kin = [oracle.example(600, NEW_TOKENS, seed=i, prefix=shared) for i in range(3)]
    backend = BACKENDS[shape]
    roles = {
        "p": {"role": "prefill", "engine": ENGINE},
        "d": {"role": "decode", "engine": ENGINE},
        "tight": {"role": "decode", "engine": ENGINE | {"kv_tokens": 336}},
    }
    for role in roles.values():
        role["transport"] = {"backend": backend, "inline_bytes": 0}
    async with workers(tmp_path, model, **roles) as up:
        p, d = up["p"], up["d"]

        async def check(name: str, example: Example, where: Any) -> worker.Admitted:
            what = request(name, example.prompt, len(example.output))
            admitted, tokens = await both(p.stub.Prefill, where.decode, what)
            assert tokens == list(example.output), f"{shape}, prompt of {len(example.prompt)}"
            return admitted

        for i, example in enumerate(examples):
            admitted = await check(f"cold-{i}", example, d)
            assert i == 0 or admitted.transport == backend, "the first need not wait for its pair"
        for i, example in enumerate(examples):
            admitted = await check(f"warm-{i}", example, d)
            assert admitted.cached_tokens == (len(example.prompt)) // 16 * 16
        await asyncio.gather(*(check(f"mixed-{i}", e, d) for i, e in enumerate(examples + kin)))

        many = [oracle.example(60, 70, seed=100 + i) for i in range(6)]
        await asyncio.gather(*(check(f"tight-{i}", e, up["tight"]) for i, e in enumerate(many)))
        assert (await up["tight"].idle()).preemptions > 0
        assert (await p.idle()).prefix_hit_tokens > 3000
        await d.idle()


@pytest.fixture(scope="module")
def slow_model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Example]:
    """A prompt of many small transfers: 3,000 tokens in 188 chunks of one block."""
    model = checkpoint(tmp_path_factory.mktemp("model"), "llama")
    return model, Oracle(model).example(3000, NEW_TOKENS)


ONE_BLOCK = {"backend": "gloo", "staging_bytes": 1, "inline_bytes": 0, "checksums": True}


def slow_roles(*decode: str) -> dict[str, dict[str, Any]]:
    common = {"engine": ENGINE, "transport": ONE_BLOCK, "ticket_ttl_s": 6.0}
    return {"p": {"role": "prefill"} | common} | {
        name: {"role": "decode"} | common for name in decode
    }


async def until_fetching(p: Any, ticket_id: str) -> None:
    async with asyncio.timeout(10):
        while True:
            tickets = (await p.stub.Tickets(worker.TicketsRequest())).tickets
            if any(t.id == ticket_id and t.state == "fetching" for t in tickets):
                return


async def bind(p: Any, what: Request, early: bool) -> tuple[Any, Any, int | None]:
    """Its ticket, its first token to come, and what the decode worker is told of that."""
    ticket, coming = await opened(p.stub.Prefill, what)
    return ticket, coming, None if early else (await coming).token.id


@pytest.mark.parametrize(
    ("number", "early"),
    [
        pytest.param(signal.SIGKILL, True, id="9"),
        pytest.param(signal.SIGSTOP, False, id="19", marks=pytest.mark.slow),
    ],
)
async def test_decode_dies_in_mid_transfer_and_the_ticket_is_bound_again(
    number: signal.Signals, early: bool, slow_model: tuple[Path, Example], tmp_path: Path
) -> None:
    model, example = slow_model
    async with workers(tmp_path, model, **slow_roles("a", "b")) as up:
        p, a, b = up["p"], up["a"], up["b"]
        what = request("r", example.prompt)
        ticket, coming, told = await bind(p, what, early)
        lost = asyncio.create_task(decode(a.decode, what, ticket, told, 1))
        await until_fetching(p, ticket.id)
        a.kill(number)
        _, rest = await decode(b.decode, what, ticket, told, 2)
        assert [(await coming).token.id, *rest] == list(example.output)
        if number is signal.SIGSTOP:
            a.kill(signal.SIGCONT)  # it wakes up late, and can neither free nor speak twice
        with pytest.raises(DecodeFailed):
            await asyncio.wait_for(lost, 20)
        await p.idle()
        await b.idle()
        if number is signal.SIGSTOP:
            await a.idle()


@pytest.mark.parametrize(
    ("number", "early"),
    [
        pytest.param(signal.SIGKILL, False, id="9", marks=pytest.mark.slow),
        pytest.param(signal.SIGSTOP, True, id="19"),
    ],
)
async def test_prefill_dies_in_mid_transfer_and_decode_frees_its_pages(
    number: signal.Signals, early: bool, slow_model: tuple[Path, Example], tmp_path: Path
) -> None:
    model, example = slow_model
    async with workers(tmp_path, model, **slow_roles("a")) as up:
        p, a = up["p"], up["a"]
        what = request("r", example.prompt)
        ticket, coming, told = await bind(p, what, early)
        lost = asyncio.create_task(decode(a.decode, what, ticket, told, 1))
        await until_fetching(p, ticket.id)
        p.kill(number)
        with pytest.raises(DecodeFailed) as caught:
            await asyncio.wait_for(lost, 10)
        assert caught.value.status == "UNAVAILABLE"
        await a.idle()
        if number is signal.SIGSTOP:
            p.kill(signal.SIGCONT)
            _, rest = await decode(a.decode, what, ticket, told, 2)
            assert [(await coming).token.id, *rest] == list(example.output)
            await p.idle()


async def test_a_client_that_leaves_frees_both_sides_in_every_phase(
    slow_model: tuple[Path, Example], tmp_path: Path
) -> None:
    model, example = slow_model
    async with workers(tmp_path, model, **slow_roles("a")) as up:
        p, a = up["p"], up["a"]
        long = request("r", example.prompt, 900)
        prefilling = asyncio.create_task(prefill(p.stub.Prefill, long))
        await asyncio.sleep(0.05)
        prefilling.cancel()
        await p.idle()
        for phase in ("transferring", "decoding"):
            ticket, first = await prefill(p.stub.Prefill, long)
            running = asyncio.create_task(decode(a.decode, long, ticket, first.token.id))
            await until_fetching(p, ticket.id)
            if phase == "decoding":
                async with asyncio.timeout(20):
                    while not (await a.report()).running or (await p.report()).tickets_open:
                        await asyncio.sleep(0.01)
            running.cancel()
            await p.stub.Release(worker.ReleaseRequest(ticket_id=ticket.id, epoch=1))
            await a.idle()
            await p.idle()


async def test_a_worker_that_is_told_to_stop_hands_on_what_it_decodes_and_leaves(
    slow_model: tuple[Path, Example], tmp_path: Path
) -> None:
    model, example = slow_model
    prompt = example.prompt[:200]
    roles = slow_roles("a", "b")
    for role in roles.values():
        role["grace_s"] = 20.0
    async with workers(tmp_path, model, **roles) as up:
        p, a, b = up["p"], up["a"], up["b"]
        what = request("r", prompt, 300)
        _, alone = await both(p.stub.Prefill, b.decode, request("alone", prompt, 300))
        ticket, first = await prefill(p.stub.Prefill, what)

        async def tell(_: worker.MoveRequest) -> None:
            a.kill(signal.SIGTERM)

        moved, tokens = await moving(a.decode, tell, b.decode, what, ticket, first.token, after=20)
        assert moved and [token.id for token in tokens] == alone
        assert await asyncio.to_thread(a.process.wait, 10) == 0
        assert "leaving with 0 requests" in a.log.read_text()

        what = request("stays", prompt, 3000)
        ticket, first = await prefill(p.stub.Prefill, what)
        staying = b.decode(decode_request(what, ticket, first.token.id))
        assert (await staying.read()).HasField("admitted")
        b.kill(signal.SIGTERM)
        while not (event := await staying.read()).HasField("moving"):
            assert event.HasField("tokens")
        assert (await b.report()).state == "draining"
        b.kill(signal.SIGTERM)
        with pytest.raises(DecodeFailed) as caught:
            while await staying.read() is not None:
                pass
        assert caught.value.status == "UNAVAILABLE"
        assert "is leaving" in caught.value.message
        assert await asyncio.to_thread(b.process.wait, 10) == 0
