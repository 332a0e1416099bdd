"""Every family says what Hugging Face transformers says, whatever ranks compute it."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3TextConfig

from tests.checkpoints import FAMILIES, SHAPE, SMALL, Example, Oracle, make_checkpoint
from tests.decoding import BLOCK, load, logits, new_sequence, step, tokens_of
from tests.ranks import ThreadGroup, run_ranks
from tests.workers.test_oracle import LONGROPE
from workers.core.errors import ConfigError
from workers.parallel.group import Ranks

WITH_EXPERTS = ("mixtral", "qwen3_moe", "deepseek_v2", "deepseek_v3", "gpt_oss")
PROMPT, PREFIX = 45, 5 * BLOCK


@dataclass(frozen=True)
class Case:
    directory: Path
    example: Example
    logits: Tensor  # of prompt and output, but for the last token


def new_case(directory: Path, family: str, new_tokens: int, **fields: Any) -> Case:
    oracle = Oracle(make_checkpoint(directory, family, **fields))
    example = oracle.example(PROMPT, new_tokens)
    tokens = [*example.prompt, *example.output[:-1]]
    return Case(directory, example, oracle.logits(tokens))


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return new_case(tmp_path_factory.mktemp(request.param), request.param, 12)


@pytest.fixture(scope="module", params=WITH_EXPERTS)
def with_experts(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Case:
    return new_case(tmp_path_factory.mktemp(request.param), request.param, 6)


def follow(case: Case, ranks: Ranks) -> Tensor | None:
    """The case's logits on rank 0: its prompt in two chunks, then token by token. Between them, in
    the same steps, a second sequence continues the first one's pages from a block on."""
    model = load(case.directory, ranks=ranks, kv_tokens=4096)  # shared out among shards
    tokens = [*case.example.prompt, *case.example.output[:-1]]
    blocks = random.Random(0).sample(range(150), len(tokens) // BLOCK + 1)
    first = new_sequence(tokens, blocks)
    second = new_sequence(tokens, blocks[: PREFIX // BLOCK] + list(range(150, 250)))
    found = [step(model, (first, 0, 29)), step(model, (first, 29, PROMPT))]
    shared = [step(model, (second, PREFIX, PROMPT - 1))]
    for at in range(PROMPT, len(tokens)):
        both = step(model, (first, at, at + 1), (second, at - 1, at))
        if both is not None:
            found.append(both[:1])
            shared.append(both[1:])
    if found[0] is None:
        return None
    whole, part = torch.cat(found), torch.cat(shared)  # type: ignore[arg-type]
    torch.testing.assert_close(part, whole[PREFIX:-1], atol=2e-4, rtol=1e-4)
    return whole


def check(case: Case, found: Tensor | None) -> None:
    assert found is not None
    torch.testing.assert_close(found, case.logits, atol=3e-4, rtol=2e-4)
    chosen = found[PROMPT - 1 :].argmax(-1)
    assert tuple(chosen.tolist()) == case.example.output


def test_logits_and_greedy_tokens_are_hugging_faces(case: Case) -> None:
    (found,) = run_ranks(1, lambda ranks: follow(case, ranks))
    check(case, found)


def on_ranks(case: Case, tensor: int, experts: int) -> None:
    """Rank 0 of each tensor group has the logits."""
    size = max(tensor, experts)
    found = run_ranks(size, lambda ranks: follow(case, ranks), tensor=tensor, experts=experts)
    for rank, own in enumerate(found):
        if rank % tensor:
            assert own is None
        else:
            check(case, own)


@pytest.mark.parametrize("size", [2, 4])
def test_tensor_ranks_say_the_same(case: Case, size: int) -> None:
    """Four are more than there are key/value heads: two hold the same."""
    on_ranks(case, size, 1)


@pytest.mark.parametrize(("tensor", "experts"), [(1, 2), (2, 4)])
def test_expert_ranks_say_the_same(with_experts: Case, tensor: int, experts: int) -> None:
    on_ranks(with_experts, tensor, experts)


@pytest.mark.parametrize("size", [2, 4])
def test_uneven_vocabularies_and_biases(size: int, tmp_path: Path) -> None:
    """Of 263 tokens the last of four ranks has 65, the others 66. Biases count once."""
    fields = {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}
    case = new_case(tmp_path, "llama", 6, vocab_size=263, **fields)
    on_ranks(case, size, 1)


def test_short_factors_of_longrope_where_only_short_contexts_are_served(tmp_path: Path) -> None:
    fields = {"original_max_position_embeddings": 64} | LONGROPE
    case = new_case(tmp_path, "phi3", 12, **fields)
    tokens = list(case.example.prompt)
    sequence = new_sequence(tokens, list(range(20)))
    want = case.logits[:PROMPT]
    short, long = load(case.directory, context_length=64), load(case.directory)
    found = logits(short, (sequence, 0, PROMPT))
    torch.testing.assert_close(found, want, atol=2e-4, rtol=1e-4)
    assert not torch.allclose(logits(long, (sequence, 0, PROMPT)), want, atol=1e-2)


def test_a_model_that_sees_speaks_without_its_eyes(tmp_path: Path) -> None:
    directory = tmp_path / "seeing"
    config = Gemma3Config(
        text_config=Gemma3TextConfig(**SHAPE | SMALL["gemma3"]),
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
        mm_tokens_per_image=4,
    )
    torch.manual_seed(0)
    model = Gemma3ForConditionalGeneration(config).eval()
    model.save_pretrained(directory)
    tokens = tokens_of(3, 40)
    with torch.no_grad():
        want = model(torch.tensor([tokens])).logits[0]
    found = logits(load(directory), (new_sequence(tokens, list(range(20))), 0, 40))
    torch.testing.assert_close(found, want, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("family", "tensor", "experts", "reason"),
    [
        ("llama", 3, 1, "3 does not divide 4 attention heads"),
        ("llama", 2, 2, "the model has no experts"),
        ("mixtral", 1, 3, "3 does not divide 4 experts"),
    ],
)
def test_sizes_that_cannot_work_are_refused_by_name(
    family: str, tensor: int, experts: int, reason: str, tmp_path: Path
) -> None:
    make_checkpoint(tmp_path, family)
    size = max(tensor, experts)
    with pytest.raises(ConfigError, match=reason):
        run_ranks(size, lambda ranks: load(tmp_path, ranks=ranks), tensor=tensor, experts=experts)


def test_a_plain_model_sums_twice_a_layer(tmp_path: Path) -> None:
    """And once for embeddings; logits are gathered once."""
    make_checkpoint(tmp_path, "llama")

    def calls(ranks: Ranks) -> dict[str, int]:
        model = load(tmp_path, ranks=ranks)
        assert isinstance(ranks.tensor, ThreadGroup)
        ranks.tensor.calls.clear()
        step(model, (new_sequence([1, 2, 3], [0]), 0, 3))
        return ranks.tensor.calls

    for found in run_ranks(2, calls, tensor=2, experts=1):
        assert found == {"all_reduce": 5, "gather": 1}


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_200_steps_on_every_number_of_ranks(family: str, tmp_path: Path) -> None:
    case = new_case(tmp_path, family, 200)
    for tensor in (1, 2, 4):
        for experts in (1, 2, 4) if family in WITH_EXPERTS else (1,):
            on_ranks(case, tensor, experts)
