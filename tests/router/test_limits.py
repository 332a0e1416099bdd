"""Small rules: retry budget, parameter ranges, config."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from router.config import RouterConfig, load_config
from router.flight import RetryBudget
from workers.core.errors import ConfigError, InvalidRequest, Overloaded, Unavailable
from workers.core.request import SamplingParams
from workers.core.validation import check_params, check_token_ids
from workers.wire.codec import params_from_wire, params_to_wire


class HandClock:
    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        return self.time


def test_retry_budget_by_count() -> None:
    budget = RetryBudget(HandClock(), attempts=2, retry_s=10, wait_s=3)
    assert budget.left_s() == 3
    pauses = [budget.failed(Unavailable("x")) for _ in range(2)]
    assert 0 < pauses[0] < pauses[1]
    with pytest.raises(Unavailable, match="gave up after 3 failures; the last one: x"):
        budget.failed(Unavailable("x"))


def test_retry_budget_by_time_starts_anew_with_each_token() -> None:
    clock = HandClock()
    budget = RetryBudget(clock, attempts=9, retry_s=10, wait_s=3)
    budget.failed(Unavailable("x"))
    clock.time = 9
    assert budget.left_s() == 1
    budget.progressed()
    assert budget.left_s() == 10  # an answer that has begun is worth the longer wait
    clock.time = 100
    budget.failed(Overloaded("full"))
    clock.time = 111
    with pytest.raises(Overloaded, match="full"):
        budget.failed(Overloaded("full"))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", float("nan")),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("min_p", -1.0),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", 0.0099),
        ("repetition_penalty", float("inf")),
        ("presence_penalty", 3.0),
        ("frequency_penalty", -3.0),
        ("top_k", -1),
        ("seed", -1),
        ("seed", 1 << 64),
        ("max_tokens", 0),
        ("max_tokens", 1 << 40),
        ("min_tokens", -1),
        ("logprobs", 21),
        ("stop", ("",)),
        ("stop", ("x",) * 17),
        ("stop", ("x" * 2000,)),
        ("stop_token_ids", (1000,)),
        ("stop_token_ids", (1,) * 1025),
        ("logit_bias", {-1: 1.0}),
        ("logit_bias", {1: 101.0}),
    ],
)
def test_params_out_of_range_name_the_field(field: str, value: object) -> None:
    with pytest.raises(InvalidRequest, match=field) as caught:
        check_params(replace(SamplingParams(), **{field: value}), vocab_size=1000)
    assert caught.value.param == field


def test_params_in_range_pass() -> None:
    check_params(SamplingParams(), 1000)
    lowest = SamplingParams(repetition_penalty=0.01)
    check_params(lowest, 1000)
    check_params(params_from_wire(params_to_wire(lowest)), 1000)  # float32 rounds it down
    check_params(
        SamplingParams(
            temperature=0.0,
            top_k=1 << 20,
            seed=(1 << 63) - 1,
            stop=("x", "y"),
            logprobs=0,
            max_tokens=5,
            min_tokens=5,
            logit_bias={999: -100.0},
        ),
        1000,
    )


def test_min_tokens_above_max_tokens_says_both() -> None:
    with pytest.raises(InvalidRequest, match=r"min_tokens is 6, more than max_tokens, 5"):
        check_params(SamplingParams(max_tokens=5, min_tokens=6), 1000)


def test_ranges_of_integers_are_said_in_full() -> None:
    with pytest.raises(InvalidRequest, match=r"is 0; it must lie in \[1, 2147483647\]"):
        check_params(SamplingParams(max_tokens=0), 1000)
    with pytest.raises(InvalidRequest, match=r"is 2.5; it must lie in \[0, 2\]"):
        check_params(SamplingParams(temperature=2.5), 1000)


def test_token_ids_outside_the_vocabulary_are_named() -> None:
    with pytest.raises(InvalidRequest, match="token id 1000 is outside the vocabulary of 1000"):
        check_token_ids([1, 1000], 1000, "prompt")


def test_config_names_file_key_and_fault(tmp_path: Path) -> None:
    path = tmp_path / "slice.json"
    with pytest.raises(ConfigError, match=r"slice\.json"):
        load_config(path)
    path.write_text('{"model": "m", "served_name": "s", "limits": {"max_request": 5}}')
    with pytest.raises(ConfigError, match=r"slice\.json: limits\.max_request: Extra"):
        load_config(path)
    path.write_text('{"model": "m", "served_name": "s", "http": {"port": "a"}}')
    with pytest.raises(ConfigError, match=r"http\.port"):
        load_config(path)
    path.write_text("{")
    with pytest.raises(ConfigError, match="Invalid JSON"):
        load_config(path)
    config = RouterConfig(model="m", served_name="s")
    path.write_text(config.model_dump_json())
    assert load_config(path) == config
