"""Sampling across the handoff: the same tokens as one engine alone, whatever was asked, also when a
request is taken up again in the middle, or moves while it runs. Blocks go inline here, inside gRPC.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import make_checkpoint
from tests.handoff import both, moving, prefill
from tests.workers.processes import workers
from workers.core.request import Request, SamplingParams
from workers.llm import LLM, Completion

PLAIN = SamplingParams(temperature=0.9, seed=7, max_tokens=30, ignore_eos=True)
ASKED = {
    "plain": PLAIN,
    "top-k": replace(PLAIN, top_k=5, seed=8),
    "top-p, min-p": replace(PLAIN, top_p=0.8, min_p=0.02, seed=9),
    "penalties": replace(
        PLAIN,
        repetition_penalty=1.3,
        presence_penalty=0.5,
        frequency_penalty=0.4,
        seed=10,
        logprobs=2,
    ),
    "bias": replace(PLAIN, logit_bias={3: 5.0, 4: -100.0}, seed=11),
    "stop string": replace(PLAIN, stop=("e", "\n"), min_tokens=4, seed=12),
    "stop token": replace(PLAIN, stop_token_ids=tuple(range(60, 90)), min_tokens=6, seed=13),
    "eos": replace(PLAIN, ignore_eos=False, logit_bias={257: 4.0}, min_tokens=3, seed=14),
    "greedy": SamplingParams(temperature=0.0, max_tokens=30, repetition_penalty=1.2, logprobs=3),
}


def one_engine(model: Path, prompts: dict[str, tuple[int, ...]]) -> dict[str, Completion]:
    with LLM(str(model), dtype="float32", kv_tokens=4096, threads=1) as llm:
        done = llm.generate([list(prompt) for prompt in prompts.values()], list(ASKED.values()))
    return dict(zip(ASKED, done, strict=True))


@pytest.mark.timeout(300)
async def test_the_same_tokens_as_one_engine(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", max_position_embeddings=1024)
    prompts = {
        name: tuple((i * 31 + k * 7) % 250 for k in range(50 + i)) for i, name in enumerate(ASKED)
    }
    completions = await asyncio.to_thread(one_engine, model, prompts)
    alone = {name: completion.token_ids for name, completion in completions.items()}
    lengths = {name: len(tokens) for name, tokens in alone.items()}
    assert lengths["plain"] == 30 and min(lengths.values()) >= 3
    assert lengths["stop token"] < 30, "no stop was met; choose others"

    common: dict[str, Any] = {
        "engine": {"dtype": "float32", "kv_tokens": 4096, "threads": 1},
        "transport": {"backend": "inline"},
    }
    roles = {name: {"role": "decode"} | common for name in ("d", "e")}
    async with workers(tmp_path, model, p={"role": "prefill"} | common, **roles) as up:
        p, d = up["p"].stub.Prefill, up["d"].decode

        async def check(name: str, emitted: int) -> None:
            """Prompt and `emitted` tokens are known, as after a death; the rest must not change."""
            tokens = prompts[name] + tuple(alone[name][:emitted])
            what = Request(f"{name}-{emitted}", tokens, len(prompts[name]), ASKED[name])
            admitted, rest = await both(p, d, what)
            assert alone[name][:emitted] + rest == alone[name], f"{name} after {emitted}"
            assert admitted.transport in ("inline", "")

        await asyncio.gather(*(check(name, 0) for name in ASKED))
        for emitted in (1, 2, 17):
            await asyncio.gather(
                *(check(name, emitted) for name in ASKED if len(alone[name]) > emitted + 1)
            )

        async def move(name: str, after: int) -> bool:
            what = Request(f"{name}-moves-{after}", prompts[name], len(prompts[name]), ASKED[name])
            ticket, first = await prefill(p, what)
            moved, tokens = await moving(
                d, up["d"].stub.Move, up["e"].decode, what, ticket, first.token, after
            )
            assert [token.id for token in tokens] == alone[name], f"{name} moved after {after}"
            start = len(prompts[name])
            assert [token.position for token in tokens] == list(range(start, start + len(tokens)))
            wanted = completions[name].logprobs
            for token, right in zip(tokens, wanted or (), strict=wanted is not None):
                assert token.logprob == pytest.approx(right.logprob, abs=1e-4)
                found = [(top.token_id, top.logprob) for top in token.top_logprobs]
                assert [id_ for id_, _ in found] == [id_ for id_, _ in right.top_logprobs]
            return moved

        for after in (2, 11):
            names = [name for name in ASKED if lengths[name] > after + 2]
            done = dict(
                zip(names, await asyncio.gather(*(move(n, after) for n in names)), strict=True)
            )
            assert done["plain"] and done["penalties"] and done["greedy"], f"few moved: {done}"
        for process in up.values():
            await process.idle()
