"""Every family decoded apart from its prefill: what one engine computed, another continues."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.checkpoints import FAMILIES, Example, Oracle, make_checkpoint
from workers.config import EngineConfig
from workers.core.request import Request, SamplingParams, Sequence, SequenceStatus
from workers.engine import Engine
from workers.runner.load import load_runner

BLOCK, PROMPT, OUTPUT = 4, 45, 12
SIZES = EngineConfig(dtype="float32", block_size=BLOCK, kv_tokens=256)
GREEDY = SamplingParams(temperature=0.0, max_tokens=OUTPUT, ignore_eos=True)


def engine_of(directory: Path) -> Engine:
    runner = load_runner(str(directory), SIZES, device="cpu")
    return Engine(runner, block_size=BLOCK, step_tokens=16, max_seqs=4)


def asked(prompt: list[int], *emitted: int) -> Request:
    return Request("r", (*prompt, *emitted), len(prompt), GREEDY)


async def prefilled(engine: Engine, prompt: list[int]) -> Sequence:
    """Computed in chunks, its pages held as by a ticket."""
    seq = engine.add(asked(prompt), hold=True)
    while seq.status is not SequenceStatus.HELD:
        await engine.step()
    return seq


async def continued(engine: Engine, held: Sequence, pages: bytes) -> tuple[list[int], int]:
    """The output, and how many blocks were cached here and not taken from `pages`."""
    seq = engine.new_sequence(asked(held.tokens[:PROMPT], held.tokens[-1]))
    await engine.reserve(seq)
    cached = seq.num_cached // BLOCK
    staging = engine.runner.pages.from_bytes(pages[cached * engine.runner.pages.block_bytes :])
    engine.runner.pages.scatter(staging, list(seq.blocks)[cached : len(held.blocks)])
    engine.start(seq)
    while engine.has_work:
        await engine.step()
    engine.check_integrity()
    return seq.tokens[PROMPT:], cached


@pytest.mark.parametrize("family", FAMILIES)
def test_another_engine_goes_on_with_the_pages(family: str, tmp_path: Path) -> None:
    directory = make_checkpoint(tmp_path / "model", family)
    example: Example = Oracle(directory).example(PROMPT, OUTPUT)

    async def scene() -> None:
        prefill, decode = engine_of(directory), engine_of(directory)
        held = await prefilled(prefill, list(example.prompt))
        pages = prefill.runner.pages
        assert prefill.info.kv_abi == decode.info.kv_abi
        staging = pages.new_staging(len(held.blocks) * pages.block_bytes)
        pages.gather(held.blocks, staging)
        data = pages.to_bytes(staging, len(staging))
        for cached in (0, PROMPT // BLOCK):  # the second time only the last block is new
            output, found = await continued(decode, held, data)
            assert (output, found) == (list(example.output), cached)
        await prefill.close()
        await decode.close()

    asyncio.run(scene())
