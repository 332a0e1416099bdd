"""Experts move between ranks while sequences are decoded."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.checkpoints import make_checkpoint
from workers.config import EngineConfig
from workers.core.errors import ConfigError
from workers.core.request import Request, SamplingParams
from workers.engine import Engine
from workers.llm import LLM
from workers.models.config import load_config
from workers.models.split import check_split
from workers.runner.ranks import load_replica

GREEDY = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True)
PROMPTS = [[5, 80, 33, 7], [200] * 9, list(range(30))]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model"), "qwen3_moe")


def sizes(**more: int) -> EngineConfig:
    config = {"dtype": "float32", "block_size": 4, "kv_tokens": 1024, "threads": 1, **more}
    return EngineConfig.model_validate(config)


def test_no_request_is_dropped_and_no_token_changes(directory: Path) -> None:
    with LLM(str(directory), "float32", block_size=4, device="cpu") as llm:
        expected = [completion.token_ids for completion in llm.generate(PROMPTS, GREEDY)]

    async def scene() -> None:
        runner = load_replica(
            str(directory), sizes(expert_parallel=2, redundant_experts=2), device="cpu"
        )
        engine = Engine(runner, block_size=4, step_tokens=64, max_seqs=8)
        try:
            sequences = [
                engine.add(Request(f"r{i}", tuple(prompt), len(prompt), GREEDY))
                for i, prompt in enumerate(PROMPTS)
            ]
            moved = []
            while engine.has_work:
                _, balance = await asyncio.gather(engine.step(), runner.balance_experts())
                moved.append(0 if balance is None else balance.moved)
            assert [sequence.tokens[sequence.prompt_len :] for sequence in sequences] == expected
            assert sum(moved) > 0, "nothing had to move: this test shows nothing"
        finally:
            await engine.close()

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("experts", "redundant", "complaint"),
    [
        (1, 2, "of use to several expert parallel ranks alone"),
        (2, 3, "2 does not divide 8 experts and 3 redundant ones"),
        (2, 10, "10 redundant experts are more than 2 ranks can use"),
    ],
)
def test_copies_that_cannot_be_placed_are_refused(
    directory: Path, experts: int, redundant: int, complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        check_split(load_config(directory), 1, experts, redundant)
