"""Long prompts: refused before they cost anything, tokenised beside the loop otherwise."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

import workers.demo
from router import generation
from router.api import Call, ModelCard, Prompt
from router.flow.classes import SloConfig
from router.flow.control import FlowControl
from router.flow.room import PoolRoom
from router.generation import RouterGenerator
from router.latency import FittedLatency
from tests.router.fleet import SHAPE, House, house, until
from workers.core.errors import ContextTooLong
from workers.core.request import SamplingParams
from workers.text import Tokenizer

DEMO = Path(workers.demo.__file__).parent / "model"
TOO_LONG = "ab cd " * 1_390_000  # 8 MB, as much as a body may have


@dataclass
class Inside:
    house: House
    tokenizer: Tokenizer
    generator: RouterGenerator

    async def ask(self, prompt: Prompt) -> list[int]:
        """The tokens that the first worker in line was given."""
        params = SamplingParams(max_tokens=2, temperature=0.0)
        call = Call("demo", prompt, params, request_id="r")
        async for _ in self.generator.generate(call):
            pass
        first = next(fake for fake in self.house.fleet.workers.values() if fake.calls)
        return list(first.calls[-1].sequence.token_ids)


@asynccontextmanager
async def inside(*names: str) -> AsyncIterator[Inside]:
    async with house(*(names or ("prefill-1", "decode-1"))) as parts:
        tokenizer = Tokenizer.load(str(DEMO))
        latency = FittedLatency(SHAPE)
        generator = RouterGenerator(
            ModelCard("demo", 512, 0),
            tokenizer.vocab_size,
            tokenizer,
            parts.pool,
            FlowControl(SloConfig(), PoolRoom(parts.pool, latency, parts.placement), parts.clock),
            parts.dispatcher,
            parts.metrics,
            parts.clock,
            random.Random(1),
        )
        yield Inside(parts, tokenizer, generator)


def chat(text: str) -> Prompt:
    return [{"role": "user", "content": text}]


async def test_what_cannot_fit_is_never_tokenised(monkeypatch: pytest.MonkeyPatch) -> None:
    async with inside() as it:
        monkeypatch.setattr(it.tokenizer, "cache", None)
        monkeypatch.setattr(generation, "check_token_ids", None)
        with pytest.raises(ContextTooLong, match=r"at least \d+ tokens.* is 512 tokens") as caught:
            await it.ask(TOO_LONG)
        assert caught.value.param == "prompt"
        with pytest.raises(ContextTooLong, match=r"at least \d+ tokens.* is 512 tokens") as caught:
            await it.ask(chat(TOO_LONG))
        assert caught.value.param == "messages"
        with pytest.raises(ContextTooLong, match=r"has 600 tokens.* is 512 tokens") as caught:
            await it.ask([10**9] * 600)
        assert caught.value.param == "prompt"


@pytest.mark.parametrize("kind", ["text", "chat"])
async def test_one_token_too_many_names_the_field(kind: str) -> None:
    async with inside() as it:
        text = "ab cd " * 300  # could fit, if its tokens were long
        with pytest.raises(ContextTooLong, match=r"has \d+ tokens") as caught:
            await it.ask(text if kind == "text" else chat(text))
        assert caught.value.param == ("prompt" if kind == "text" else "messages")


@pytest.mark.parametrize("roomy", ["aggregated-1", "decode-1"])
async def test_what_one_way_can_hold_is_taken(roomy: str) -> None:
    names = ("aggregated-1", "prefill-1", "decode-1")
    async with inside(*names) as it:
        for fake in it.house.fleet.workers.values():
            fake.blocks_total = 256 if fake.name in (roomy, "prefill-1") else 10

        def known() -> bool:
            return all(
                r.load.blocks_total == it.house.fleet[r.id].blocks_total for r in it.house.pool
            )

        await until(known)
        await it.ask([1] * 60)
        assert it.house.fleet[roomy].calls
        it.house.fleet[roomy].blocks_total = 10
        await until(known)
        with pytest.raises(ContextTooLong, match="KV memory is 40 tokens"):
            await it.ask([1] * 60)


async def test_long_texts_are_tokenised_in_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    async with inside() as it:
        text = "The fox and the dog. " * 20
        plain, as_chat = it.tokenizer.encode(text), it.tokenizer.apply_chat_template(chat(text))
        used: list[str] = []
        encode = it.tokenizer._encode

        def watched(*args: object, **kwargs: object) -> list[int]:
            used.append(threading.current_thread().name)
            return encode(*args, **kwargs)

        monkeypatch.setattr(it.tokenizer, "_encode", watched)
        monkeypatch.setattr(generation, "THREAD_CHARS", 100)
        assert await it.ask(text) == plain
        assert await it.ask(chat(text)) == as_chat
        await asyncio.gather(*(it.ask(text) for _ in range(4)))
        assert set(used) == {"tokenise_0"} and len(used) == 6
        assert await it.ask("The fox") == it.tokenizer.encode("The fox")
        assert used[-2] == "MainThread"
