"""The offline engine end to end: always the tokens of transformers' generate()."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import Example, Oracle, make_checkpoint
from workers.core.errors import ConfigError, ContextTooLong, InvalidRequest
from workers.core.request import FinishReason, SamplingParams
from workers.llm import LLM

NEW_TOKENS = 8
GREEDY = SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS, ignore_eos=True)
LENGTHS = [1, 2, 3, 4, 5, 16, 17, 64, 129, 400]


def open_llm(directory: Path, **sizes: Any) -> LLM:
    return LLM(str(directory), "float32", **({"block_size": 4, "kv_tokens": 4096} | sizes))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Oracle]:
    directory = make_checkpoint(tmp_path_factory.mktemp("model"), "qwen3")
    return directory, Oracle(directory)


@pytest.fixture(scope="module")
def examples(model: tuple[Path, Oracle]) -> list[Example]:
    """Prompts of all lengths; the longer ones share a prefix of 60 tokens."""
    _, oracle = model
    shared = oracle.example(60, 1).prompt
    return [
        oracle.example(length, NEW_TOKENS, prefix=shared if length > 60 else ())
        for length in LENGTHS
    ]


def prompts_of(examples: list[Example]) -> list[list[int]]:
    return [list(example.prompt) for example in examples]


def outputs_of(examples: list[Example]) -> list[list[int]]:
    return [list(example.output) for example in examples]


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"step_tokens": 7, "max_seqs": 3},
        {"block_size": 16, "step_tokens": 1},
        {"block_size": 1, "step_tokens": 50},
        {"kv_tokens": 420, "step_tokens": 64},  # room for one long sequence: they are preempted
    ],
    ids=str,
)
def test_tokens_equal_generate(
    model: tuple[Path, Oracle], examples: list[Example], sizes: dict[str, Any]
) -> None:
    with open_llm(model[0], **sizes) as llm:
        together = llm.generate(prompts_of(examples), GREEDY)
        again = llm.generate(prompts_of(examples), GREEDY)  # now with prefix hits
        alone = [llm.generate([prompt], GREEDY)[0] for prompt in prompts_of(examples)[-2:]]
    assert [completion.token_ids for completion in together] == outputs_of(examples)
    assert [completion.token_ids for completion in again] == outputs_of(examples)
    assert [completion.token_ids for completion in alone] == outputs_of(examples)[-2:]
    assert {completion.finish_reason for completion in together} == {FinishReason.LENGTH}


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_tokens_equal_generate_in_other_families(family: str, tmp_path: Path) -> None:
    oracle = Oracle(make_checkpoint(tmp_path, family, num_key_value_heads=1, head_dim=24))
    examples = [oracle.example(length, NEW_TOKENS) for length in (1, 33, 200)]
    with open_llm(tmp_path, step_tokens=50) as llm:
        got = llm.generate(prompts_of(examples), GREEDY)
    assert [completion.token_ids for completion in got] == outputs_of(examples)


def test_a_cached_prefix_is_not_computed_again(
    model: tuple[Path, Oracle], examples: list[Example]
) -> None:
    prompt = list(examples[-1].prompt)
    with open_llm(model[0]) as llm:
        first, second = (llm.generate([prompt], GREEDY)[0] for _ in range(2))
    assert (first.cached_tokens, second.cached_tokens) == (0, 396)  # the last block never is
    assert first.token_ids == second.token_ids


def test_pages_run_out_and_nothing_changes(
    model: tuple[Path, Oracle], examples: list[Example]
) -> None:
    """Eight sequences that fit when they start and not when they end."""
    example = examples[LENGTHS.index(17)]
    params = SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS, ignore_eos=True)
    draw = random.Random(3)
    others = [[draw.randrange(256) for _ in range(17)] for _ in range(7)]
    with open_llm(model[0], kv_tokens=8 * 20) as llm:
        got = llm.generate([list(example.prompt), *others], params)
    with open_llm(model[0]) as llm:
        want = llm.generate([list(example.prompt), *others], params)
    assert [c.token_ids for c in got] == [c.token_ids for c in want]
    assert got[0].token_ids == list(example.output)


def test_text_in_text_out(model: tuple[Path, Oracle]) -> None:
    with open_llm(model[0]) as llm:
        text, ids = llm.generate(["Hello", list(b"Hello")], GREEDY)
        assert llm.tokenizer is not None
        assert text.prompt_token_ids == llm.tokenizer.encode("Hello")
        assert text.text == llm.tokenizer.decode(text.token_ids)
        assert len(ids.token_ids) == NEW_TOKENS


def test_eos_and_stop_tokens_end_a_sequence(
    model: tuple[Path, Oracle], examples: list[Example]
) -> None:
    prompt, output = list(examples[-1].prompt), list(examples[-1].output)
    end = next(i for i, token in enumerate(output) if i > 0 and token not in output[:i])
    params = SamplingParams(temperature=0.0, max_tokens=8, stop_token_ids=(output[end],))
    with open_llm(model[0]) as llm:
        (got,) = llm.generate([prompt], params)
    assert got.finish_reason is FinishReason.STOP
    assert got.token_ids == output[: end + 1]


def test_own_params_for_each_prompt_and_logprobs(model: tuple[Path, Oracle]) -> None:
    params = [
        SamplingParams(temperature=0.0, max_tokens=2, ignore_eos=True),
        SamplingParams(temperature=0.0, max_tokens=5, ignore_eos=True, logprobs=2),
    ]
    with open_llm(model[0]) as llm:
        short, long = llm.generate([[1, 2, 3], [1, 2, 3]], params)
    assert long.token_ids[:2] == short.token_ids
    assert short.logprobs is None
    assert long.logprobs is not None
    assert [entry.id for entry in long.logprobs] == long.token_ids
    assert [entry.position for entry in long.logprobs] == [3, 4, 5, 6, 7]
    for entry in long.logprobs:
        assert entry.top_logprobs[0] == (entry.id, entry.logprob)  # greedy takes the best


def test_seeds_make_samples_repeatable(model: tuple[Path, Oracle]) -> None:
    def sample(llm_seed: int, seed: int | None = None) -> list[list[int]]:
        params = SamplingParams(temperature=1.5, max_tokens=12, ignore_eos=True, seed=seed)
        with open_llm(model[0], seed=llm_seed) as llm:
            return [c.token_ids for c in llm.generate([[5, 6]] * 3, params)]

    drawn = sample(1)
    assert drawn == sample(1)
    assert drawn != sample(2)
    assert len({tuple(tokens) for tokens in drawn}) == 3
    assert sample(1, seed=9) == sample(2, seed=9) == [sample(3, seed=9)[0]] * 3


def test_a_sample_does_not_depend_on_its_neighbours(model: tuple[Path, Oracle]) -> None:
    params = SamplingParams(temperature=1.0, top_p=0.9, max_tokens=12, ignore_eos=True, seed=4)
    with open_llm(model[0]) as llm:
        crowd = llm.generate([[7, 8, 9], [1] * 40, [2] * 90], params)
        (alone,) = llm.generate([[7, 8, 9]], params)
    assert crowd[0].token_ids == alone.token_ids


def test_without_a_tokenizer_token_ids_work(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, "llama")
    (tmp_path / "tokenizer.json").unlink()
    with open_llm(tmp_path) as llm:
        (got,) = llm.generate([[1, 2]], GREEDY)
        assert len(got.token_ids) == NEW_TOKENS
        assert got.text == ""
        with pytest.raises(InvalidRequest, match=r"no tokenizer\.json"):
            llm.generate(["text"], GREEDY)


def test_bad_input_is_refused_and_the_engine_lives_on(
    model: tuple[Path, Oracle], examples: list[Example]
) -> None:
    prompt: Any = list(examples[0].prompt)
    with open_llm(model[0]) as llm:
        for prompts, params, message in [
            ("text", GREEDY, "a list of prompts"),
            ([prompt, []], GREEDY, "empty"),
            ([prompt, [260]], GREEDY, "token ids must lie in 0..259"),
            ([prompt, [-1]], GREEDY, "token ids must lie in 0..259"),
            ([prompt, [1.5]], GREEDY, "a text or a list of integers"),
            ([prompt, 3], GREEDY, "a text or a list of integers"),
            ([prompt], [GREEDY, GREEDY], "1 prompts, but 2 sampling params"),
        ]:
            with pytest.raises(InvalidRequest, match=message):
                llm.generate(prompts, params)
        with pytest.raises(ContextTooLong, match=r"600 tokens.*512"):
            llm.generate([prompt, [1] * 600], GREEDY)
        assert llm.generate([], GREEDY) == []
        (got,) = llm.generate([prompt], GREEDY)
        assert got.token_ids == list(examples[0].output)
    with pytest.raises(InvalidRequest, match="closed"):
        llm.generate([prompt], GREEDY)
    llm.close()


def test_params_that_leave_no_token_are_refused_when_it_comes_to_it(
    model: tuple[Path, Oracle], examples: list[Example]
) -> None:
    prompt = list(examples[0].prompt)
    bad = SamplingParams(max_tokens=4, min_tokens=2, stop_token_ids=tuple(range(260)))
    with open_llm(model[0]) as llm:
        with pytest.raises(InvalidRequest, match="below min_tokens 2"):
            llm.generate([prompt, prompt], [GREEDY, bad])
        (got,) = llm.generate([prompt], GREEDY)
    assert got.token_ids == list(examples[0].output)


def test_generation_ends_with_the_context(model: tuple[Path, Oracle]) -> None:
    params = SamplingParams(temperature=0.0, ignore_eos=True)
    with open_llm(model[0], context_length=20) as llm:
        (got,) = llm.generate([[1] * 15], params)
    assert len(got.token_ids) == 5
    assert got.finish_reason is FinishReason.LENGTH


async def test_within_an_event_loop_it_says_how(model: tuple[Path, Oracle]) -> None:
    llm = open_llm(model[0])
    with pytest.raises(InvalidRequest, match="to_thread"):
        llm.generate([[1]], GREEDY)
    (got,) = await asyncio.to_thread(llm.generate, [[1]], GREEDY)
    assert len(got.token_ids) == NEW_TOKENS
    await asyncio.to_thread(llm.close)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"kv_tokens": 7}, "two blocks of 4 tokens"),
        ({"kv_tokens": 1 << 50}, "MiB are free"),
        ({"context_length": 513}, "context_length 513 is longer than the model's own, 512"),
        ({"block_size": 0}, "block_size"),
        ({"max_seqs": "many"}, "max_seqs"),
    ],
)
def test_sizes_that_cannot_be(
    model: tuple[Path, Oracle], sizes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        open_llm(model[0], **sizes)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("heads", [(4, 4, 16), (4, 2, 24), (6, 1, 40)])
@pytest.mark.parametrize("tied", [True, False])
def test_matrix(family: str, heads: tuple[int, int, int], tied: bool, tmp_path: Path) -> None:
    query, kv, width = heads
    make_checkpoint(
        tmp_path,
        family,
        hidden_size=96,
        num_attention_heads=query,
        num_key_value_heads=kv,
        head_dim=width,
        tie_word_embeddings=tied,
        max_position_embeddings=4096,
    )
    oracle = Oracle(tmp_path)
    examples = [oracle.example(length, 24) for length in (1, 100, 1000, 3000)]
    params = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
    with open_llm(tmp_path, block_size=16, kv_tokens=8192) as llm:
        got = llm.generate(prompts_of(examples), params)
    assert [completion.token_ids for completion in got] == outputs_of(examples)
