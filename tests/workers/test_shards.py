"""Data-parallel attention: shards with sequences of their own, experts over all of them."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.checkpoints import make_checkpoint
from tests.ranks import run_ranks
from workers.config import EngineConfig
from workers.core.request import Request, SamplingParams
from workers.engine import Engine
from workers.llm import LLM
from workers.parallel.group import Ranks
from workers.runner.inputs import StepInputs
from workers.runner.load import load_forward
from workers.runner.model_runner import ModelRunner

GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
SHARED = [(7 * i) % 250 for i in range(24)]
PROMPTS = [[5, 80, 33], [*SHARED, 1, 2], [200], [*SHARED, 9], list(range(40)), [3, 3, 3, 3]]
SIZES = EngineConfig(dtype="float32", block_size=4, kv_tokens=2048, step_tokens=16, max_seqs=8)


@pytest.fixture(scope="module", params=["mixtral", "qwen3_moe"])
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp(request.param), request.param)


def expected(directory: Path) -> list[list[int]]:
    with LLM(str(directory), "float32", block_size=4, device="cpu") as llm:
        return [completion.token_ids for completion in llm.generate(PROMPTS, GREEDY)]


async def led(runner: ModelRunner, overlap: bool) -> tuple[list[list[int]], set[int]]:
    """The tokens of all prompts, and the shards that had some. One comes alone, the rest later, so
    that shards are idle and prompts are computed beside decodes."""
    engine = Engine(runner, block_size=4, step_tokens=16, max_seqs=8, overlap=overlap)
    sequences = []
    for i, prompt in enumerate(PROMPTS):
        sequences.append(engine.add(Request(f"r{i}", tuple(prompt), len(prompt), GREEDY)))
        if i == 0:
            await engine.step()
            await engine.step()
    used = set()
    while engine.has_work:
        await engine.step()
        engine.check_integrity()
        used |= {sequence.shard for sequence in engine.scheduler.running}
    await engine.close()
    return [sequence.tokens[sequence.prompt_len :] for sequence in sequences], used


@pytest.mark.parametrize(
    ("tensor", "experts", "overlap"),
    [(1, 2, False), (1, 2, True), (2, 4, False), (1, 4, True)],
)
def test_tokens_do_not_depend_on_shards(
    directory: Path, tensor: int, experts: int, overlap: bool
) -> None:
    steps: list[queue.Queue[Sequence[StepInputs] | None]] = [queue.Queue() for _ in range(experts)]

    def work(ranks: Ranks) -> tuple[list[list[int]], set[int]] | None:
        info, forward = load_forward(str(directory), SIZES, ranks=ranks, device="cpu")
        assert info.shards == experts // tensor
        assert not forward.capturable, "a graph cannot wait for other ranks"
        forward.warm_up()
        if ranks.world.rank > 0:
            while (parts := steps[ranks.world.rank].get(timeout=60)) is not None:
                forward.run(parts)
            return None

        def announce(parts: Sequence[StepInputs] | None) -> None:
            for follower in steps[1:]:
                follower.put(parts)

        result = asyncio.run(led(ModelRunner(info, forward, announce=announce), overlap))
        announce(None)
        return result

    first, *_ = run_ranks(experts, work, tensor=tensor, experts=experts)
    assert first is not None
    tokens, used = first
    assert tokens == expected(directory)
    assert used == set(range(experts // tensor))
