"""An aggregated worker as a process against transformers, and through a real death."""

from __future__ import annotations

import asyncio
from itertools import product
from pathlib import Path

import pytest

from tests.checkpoints import Oracle, make_checkpoint
from tests.handoff import aggregated, both
from tests.workers.processes import workers
from workers.core.request import Request, SamplingParams
from workers.wire import common_pb2 as common
from workers.wire import worker_pb2 as worker
from workers.wire.codec import request_to_wire
from workers.wire.decode_client import DecodeFailed

NEW_TOKENS = 10
ENGINE = {"dtype": "float32", "kv_tokens": 8192, "step_tokens": 256, "threads": 1}
GLOO = {"backend": "gloo", "inline_bytes": 0}
LONG = 900  # tokens: an answer that is still running when something happens to it


def request(name: str, prompt: tuple[int, ...], max_tokens: int = NEW_TOKENS) -> Request:
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
    return Request(name, prompt, len(prompt), params)


async def test_tokens_equal_transformers_with_and_without_a_ticket(tmp_path: Path) -> None:
    """Cold, with prefix hits, all at once, with preemption forced; and on workers of every role."""
    model = make_checkpoint(tmp_path / "model", max_position_embeddings=4096)
    oracle = Oracle(model)
    examples = [oracle.example(length, NEW_TOKENS) for length in (1, 16, 17, 257, 1000)]
    many = [oracle.example(60, 70, seed=100 + i) for i in range(6)]
    async with workers(
        tmp_path,
        model,
        a={"role": "aggregated", "engine": ENGINE, "transport": GLOO},
        tight={"role": "aggregated", "engine": ENGINE | {"kv_tokens": 336}},
        d={"role": "decode", "engine": ENGINE, "transport": GLOO},
    ) as up:
        a, d, tight = up["a"], up["d"], up["tight"]
        for warm in (False, True):
            for i, example in enumerate(examples):
                what = request(f"{warm}-{i}", example.prompt)
                admitted, tokens = await aggregated(a.decode, what)
                assert tokens == list(example.output), f"prompt of {len(example.prompt)}"
                assert admitted.transport == "local"
                assert admitted.cached_tokens == warm * ((len(example.prompt) - 1) // 16 * 16)
        answers = await asyncio.gather(
            *(aggregated(tight.decode, request(f"t-{i}", e.prompt, 70)) for i, e in enumerate(many))
        )
        assert [tokens for _, tokens in answers] == [list(example.output) for example in many]
        assert (await tight.idle()).preemptions > 0
        used = set()
        for example in examples[2:]:
            _, tokens = await aggregated(d.decode, request("on decode", example.prompt))
            assert tokens == list(example.output)
            what = request("handed over", example.prompt)
            admitted, tokens = await both(a.stub.Prefill, d.decode, what)
            assert tokens == list(example.output)
            used.add(admitted.transport)
        assert "gloo" in used, "the first need not wait for the pair"
        report = await a.idle()
        assert report.role == common.ROLE_AGGREGATED
        assert report.prefix_hit_tokens > 1000
        await d.idle()


async def test_whoever_ends_it_in_any_phase_frees_every_page(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", max_position_embeddings=4096)
    phases = ("admitted", "progress", "tokens")
    async with workers(tmp_path, model, a={"role": "aggregated", "engine": ENGINE}) as up:
        a = up["a"]
        for number, (how, phase) in enumerate(product(("leave", "cancel"), phases)):
            name = f"{how}-{phase}"
            what = request(name, tuple((number + i) % 200 for i in range(3000)), LONG)
            call = a.decode(worker.DecodeRequest(sequence=request_to_wire(what)))
            while (await call.read()).WhichOneof("event") != phase:
                pass
            assert (await a.report()).blocks_used > 0
            if how == "leave":
                call.cancel()
            else:
                await a.stub.Cancel(worker.CancelRequest(request_id=name))
                with pytest.raises(DecodeFailed) as caught:
                    while await call.read() is not None:
                        pass
                assert caught.value.status == "CANCELLED"
            await a.idle()


async def test_killed_in_mid_decode_another_one_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """What a router does: prompt and emitted tokens, to whoever is there."""
    model = make_checkpoint(tmp_path / "model", max_position_embeddings=4096)
    what = request("r", tuple(range(200)), LONG)
    roles = {name: {"role": "aggregated", "engine": ENGINE} for name in ("a", "b")}
    async with workers(tmp_path, model, **roles) as up:
        a, b = up["a"], up["b"]
        _, undisturbed = await aggregated(b.decode, what)
        spec = request_to_wire(what)
        call, got = a.decode(worker.DecodeRequest(sequence=spec)), list[int]()
        with pytest.raises(DecodeFailed):
            while (event := await call.read()) is not None:
                got += [token.id for token in event.tokens.tokens]
                if len(got) == 5:
                    a.kill()
        assert 5 <= len(got) < LONG
        spec.token_ids.extend(got)
        spec.attempt += 1
        rest = []
        async for event in b.decode(worker.DecodeRequest(sequence=spec)):
            rest += [token.id for token in event.tokens.tokens]
        assert [*got, *rest] == undisturbed
        await b.idle()
