"""What the clients of chaos_live ask, and the right answers, from the cluster itself while nothing
disturbs it."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, replace

import grpc
import grpc.aio

from workers.wire import common_pb2 as common
from workers.wire import inference_pb2 as inference
from workers.wire import inference_pb2_grpc

WORDS = "one two three four five six seven eight nine ten eleven twelve".split()
KINDS = 24


@dataclass(frozen=True)
class Work:
    """One request that can be asked again and again. `tokens` is what it must give."""

    text: str
    seed: int | None  # None: greedy
    max_tokens: int
    num_prompt: int = 0
    tokens: tuple[int, ...] = ()

    def message(self, model: str) -> inference.GenerateRequest:
        sampling = common.SamplingParams(
            temperature=0.0 if self.seed is None else 0.8,
            seed=self.seed,
            max_tokens=self.max_tokens,
            ignore_eos=True,
        )
        return inference.GenerateRequest(model=model, text=self.text, sampling=sampling)

    def __str__(self) -> str:
        return f"{len(self.text.split())} words, seed {self.seed}, {self.max_tokens} tokens"


def works(rng: random.Random) -> list[Work]:
    """Short and long prompts; some share a prefix, some are sampled."""
    shared = " ".join(rng.choices(WORDS, k=120))
    found = []
    for _ in range(KINDS):
        text = " ".join(rng.choices(WORDS, k=rng.choice((4, 20, 60, 300))))
        found.append(
            Work(
                text=f"{shared} {text}" if rng.random() < 0.4 else text,
                seed=rng.choice((None, rng.randrange(1 << 30))),
                max_tokens=rng.choice((8, 40, 120)),
            )
        )
    return found


async def same_tokens(address: str, model: str, asked: list[Work]) -> list[Work]:
    """Those that give the same tokens alone and among all the others. float32 sums depend on how
    many rows a matrix has; an answer that hangs on the last bit compares nothing."""
    options = [("grpc.enable_http_proxy", 0)]
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        stub = inference_pb2_grpc.InferenceStub(channel)
        alone = [await _answered(stub, model, work) for work in asked]
        crowd = await asyncio.gather(*(_answered(stub, model, work) for work in asked))
    steady = [one for one, other in zip(alone, crowd, strict=True) if one == other]
    assert len(steady) > len(asked) // 2, "the answers change without any fault"
    return steady


async def _answered(stub: inference_pb2_grpc.InferenceStub, model: str, work: Work) -> Work:
    tokens = [
        token
        async for response in stub.Generate(work.message(model), timeout=120)
        for token in response.tokens
    ]
    return replace(work, num_prompt=tokens[0].position, tokens=tuple(token.id for token in tokens))
