"""A step that is prepared while the one before runs: the same tokens, on real models."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.checkpoints import make_checkpoint
from workers.llm import LLM, Completion, SamplingParams

PROMPTS = [[5, 80, 33, 7, 7], [200, 1], list(range(3, 40)), [9] * 17]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model"), "qwen3")


def generated(
    directory: Path, overlap: bool, params: SamplingParams | list[SamplingParams], **sizes: int
) -> list[Completion]:
    cpu = {"block_size": 4, "device": "cpu", **sizes}
    with LLM(str(directory), "float32", overlap=overlap, **cpu) as llm:  # type: ignore[arg-type]
        return llm.generate(PROMPTS, params)


CASES = {
    "greedy": SamplingParams(temperature=0.0, max_tokens=30),
    "drawn": SamplingParams(seed=7, max_tokens=30, top_p=0.9, min_tokens=4),
    "logprobs": SamplingParams(temperature=0.0, max_tokens=9, logprobs=3),
    "stopped": SamplingParams(seed=3, max_tokens=200, stop_token_ids=tuple(range(60))),
    "penalised": SamplingParams(seed=5, max_tokens=20, presence_penalty=1.5),
}


@pytest.mark.parametrize("name", CASES)
def test_running_ahead_changes_no_token(directory: Path, name: str) -> None:
    plain = generated(directory, False, CASES[name], step_tokens=16)
    assert plain == generated(directory, True, CASES[name], step_tokens=16)
    assert all(completion.token_ids for completion in plain)


def test_requests_of_every_kind_side_by_side(directory: Path) -> None:
    mixed = [CASES[name] for name in ("greedy", "drawn", "stopped", "penalised")]
    assert generated(directory, False, mixed) == generated(directory, True, mixed)


def test_too_few_pages_for_all_change_no_token(directory: Path) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
    few = {"kv_tokens": 80, "context_length": 80}
    plain, squeezed = (
        [completion.token_ids for completion in generated(directory, overlap, params, **sizes)]
        for overlap, sizes in ((False, {}), (True, few))
    )
    assert plain == squeezed
