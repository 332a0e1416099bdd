"""Sampling across the handoff: the same tokens as one engine alone, whatever was asked, also when a
request is taken up again in the middle. Blocks go inline here, inside gRPC."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import make_checkpoint
from tests.handoff import both
from tests.workers.processes import workers
from workers.core.request import Request, SamplingParams
from workers.llm import LLM

PLAIN = SamplingParams(temperature=0.9, seed=7, max_tokens=30, ignore_eos=True)
ASKED = {
    "plain": PLAIN,
    "top-k": replace(PLAIN, top_k=5, seed=8),
    "top-p, min-p": replace(PLAIN, top_p=0.8, min_p=0.02, seed=9),
    "penalties": replace(
        PLAIN, repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.4, seed=10
    ),
    "bias": replace(PLAIN, logit_bias={3: 5.0, 4: -100.0}, seed=11),
    "stop string": replace(PLAIN, stop=("e", "\n"), min_tokens=4, seed=12),
    "stop token": replace(PLAIN, stop_token_ids=tuple(range(60, 90)), min_tokens=6, seed=13),
    "eos": replace(PLAIN, ignore_eos=False, logit_bias={257: 4.0}, min_tokens=3, seed=14),
    "greedy": SamplingParams(temperature=0.0, max_tokens=30, repetition_penalty=1.2),
}


def one_engine(model: Path, prompts: dict[str, tuple[int, ...]]) -> dict[str, list[int]]:
    with LLM(str(model), dtype="float32", kv_tokens=4096, threads=1) as llm:
        done = llm.generate([list(prompt) for prompt in prompts.values()], list(ASKED.values()))
    return {name: completion.token_ids for name, completion in zip(ASKED, done, strict=True)}


@pytest.mark.timeout(180)
async def test_the_same_tokens_as_one_engine(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", max_position_embeddings=1024)
    prompts = {
        name: tuple((i * 31 + k * 7) % 250 for k in range(50 + i)) for i, name in enumerate(ASKED)
    }
    alone = await asyncio.to_thread(one_engine, model, prompts)
    lengths = {name: len(tokens) for name, tokens in alone.items()}
    assert lengths["plain"] == 30 and min(lengths.values()) >= 3
    assert lengths["stop token"] < 30, "no stop was met; choose others"

    common: dict[str, Any] = {
        "engine": {"dtype": "float32", "kv_tokens": 4096, "threads": 1},
        "transport": {"backend": "inline"},
    }
    async with workers(
        tmp_path, model, p={"role": "prefill"} | common, d={"role": "decode"} | common
    ) as up:
        p, d = up["p"].stub.Prefill, up["d"].stub.Decode

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
        await up["p"].idle()
        await up["d"].idle()
